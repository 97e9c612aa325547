"""How much an error of each coefficient is seen, from a first coding: what an encoder prices its bits by.

Steps already follow what structural similarity says of each place (lic.layers.visibility), as far as a decoder knows
it. An encoder knows the original, and what is wrong: SSIMULACRA 2 and MS-SSIM say by their gradients how much worse
they become by the errors of a neighbourhood. Where that is more than the steps suppose, errors count more than bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lic.layers import lifting, tiles, visibility
from lic.layers.perceptual import ms_ssim, ssimulacra2
from lic.layers.tiles import Area

_POWER, _MOST = 0.9, 2**1.75  # of what the gradients say; how much that may be at most, and its inverse at least
_NEIGHBOURS = 5  # coefficients along each axis that are looked at together
_BELIEF = 0.5  # of the plane's mean errors, as which the usual sensitivity counts


def gradient(original: Tensor, decoded: Tensor) -> Tensor:
    """How what is seen of errors grows with each sample of what is decoded; RGB (1, 3, H, W) float32 0..255. Squares
    are looked at each for itself, to bound the memory."""
    out = torch.empty_like(decoded)
    whole = Area(0, 0, *decoded.shape[2:])
    for part in whole.squares(tiles.TILE):
        here = part.within(whole)
        with torch.inference_mode(False), torch.enable_grad():
            a, b = original[here].clone(), decoded[here].clone().requires_grad_()
            unlike = (1 - ms_ssim(a, b)).clamp_min(0)  # rounding can make it negative
            # A per cent of the bits changes both by about as much.
            seen = 2 * torch.log(101 - ssimulacra2(a, b)) + torch.log(unlike + 1e-4)
            (slopes,) = torch.autograd.grad(seen.sum() * part.positions(), b)
        out[here] = slopes
    return out


def weights(gradient: Tensor, error: Tensor, picture: Tensor, step: int, weighting: Sequence[int]) -> list[Tensor]:
    """What a squared error of each coefficient counts, (1, 9, h, w) of each level, the finest first, about 1 in
    the mean.

    gradient, by what is decoded, and the error of that; picture: that before the post-filter. All planes (1, 3, H, W)
    in steps. step in 1 / STEP_UNIT; weighting: by how many quarters of an octave each level's is smaller.
    """
    sums: list[tuple[Tensor, Tensor]] = []
    for level, finer in enumerate(weighting, 1):
        (gradient, [slopes]), (error, [off]), (picture, _) = (lifting.analyse(x, 1) for x in (gradient, error, picture))
        low = (picture * 2**lifting.FRACTION).round().int()
        quarters = (visibility.finer(low, step, level) + finer).repeat_interleave(3, 1)
        squares = (off * 2 ** (quarters / 4)).square()
        sums.append((_around(slopes * off), _around(squares)))
    mean = float(sum(seen.sum() for seen, _ in sums)) / max(float(sum(x.sum() for _, x in sums)), 1e-9)
    if not mean > 0:  # nothing is wrong, or nothing is seen of it
        return [torch.ones_like(seen).repeat(1, 3, 1, 1) for seen, _ in sums]
    out = []
    for seen, squares in sums:
        belief = _BELIEF * squares.mean((2, 3), keepdim=True) + 1e-3
        ratio = (seen / mean + belief) / (squares + belief)
        out.append(ratio.clamp(1 / _MOST, _MOST).pow(_POWER).repeat(1, 3, 1, 1))
    return out


def _around(x: Tensor) -> Tensor:
    """Means of the neighbourhoods, of all three bands together: (1, 9, h, w) -> (1, 3, h, w)."""
    planes = x.unflatten(1, (3, 3)).sum(1)
    margin = _NEIGHBOURS // 2
    return F.avg_pool2d(F.pad(planes, [margin] * 4, mode="replicate"), _NEIGHBOURS, 1)
