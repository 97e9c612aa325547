"""Where errors are seen: less beside strong detail, as structural similarity has it.

Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), equation 13: an error
counts in units of 2 * variance + C2 of what is around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lic.layers.band_prior import to_multiple

_WINDOW = 11
_C2 = (0.03 * 255) ** 2
_POWER = 0.5  # 1 would be what structural similarity says, of small errors
_MOST = 4.0


def prices_of_bits(luma: Tensor, levels: int) -> list[Tensor]:
    """luma (1, 1, H, W) float32 in pixel values -> for each level, finest first, how much more squared error a bit is
    worth at each of its positions (1, 1, h, w), 1 / _MOST to _MOST, the geometric mean being 1."""
    out = []
    for _ in range(levels):
        window = min(_WINDOW, 2 * ((min(luma.shape[2:]) - 1) // 2) + 1)
        padded = F.pad(luma, [window // 2] * 4, mode="replicate").double()
        mean, square = (F.avg_pool2d(x, window, 1) for x in (padded, padded.square()))
        variance = _halved((square - mean.square()).clamp_min(0))
        logarithm = _POWER * torch.log2(2 * variance + _C2)
        relative = torch.exp2(logarithm - logarithm.mean()).clamp(1 / _MOST, _MOST)
        out.append((relative * 256).round().float() / 256)  # rounded, so that the order of summation can't matter
        luma = _halved(luma)
    return out


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(to_multiple(x, 2), 2)
