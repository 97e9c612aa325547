"""Where errors are seen: less beside strong detail, as structural similarity has it. Steps may be larger there.

Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), equation 13: an error
counts in units of 2 * variance + C2 of what is around it. The variance is that of what is decoded already, one level
up, so nobody has to tell the decoder; as JPEG 2000's visual masking (Zeng, Daly, Lei, "An overview of the visual
optimization tools in JPEG 2000", 2002) takes it from the coefficients before.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from lic.layers import lifting
from lic.layers.band_prior import STEP_UNIT, sums_of_3x3

_C2 = (0.03 * 255) ** 2
_USUAL = 200.0  # 2 * variance + C2, in squared pixel values, where the step is the usual one
# Of each level, the finest first: so many quarters of an octave for each halving of 2 * variance + C2.
_SLOPES = 1.25, 1.1, 1.0, 0.9, 0.8, 0.8
_MOST = 4  # doublings that count
_DIAGONAL = -1  # and of the diagonal bands, which are seen least
_FRACTION = 2  # fractional bits of pixel values here
_LARGEST = 1023  # more than any picture has; 81 times its square fits 32 bits
_UNIT = 81 * 3 * 4**_FRACTION  # of the integer variances: of 9 samples, in an orthonormal plane


@lru_cache
def _bounds(level: int, device: torch.device) -> tuple[int, Tensor]:
    """The largest number of quarters, for a variance of 0; and the variances that each lower one begins beyond."""
    slope = _SLOPES[level - 1]
    largest = round(slope * math.log2(_USUAL / _C2))
    bounds = [_USUAL * 2 ** ((0.5 - k) / slope) - _C2 for k in range(largest, round(-_MOST * slope), -1)]
    return largest, torch.tensor([round(x / 2 * _UNIT) for x in bounds], dtype=torch.int32, device=device)


def finer(low: Tensor, step: int | Tensor, level: int) -> Tensor:
    """By how many quarters of an octave the steps of a level's three bands are smaller than usual: (N, 3, h, w) int32,
    exactly.

    low: what is decoded one level up, (N, 3, h, w) int32 in 1 / 2**FRACTION steps; step in 1 / STEP_UNIT, one for all
    or (N, 1, 1, 1) int32.
    """
    shift = level + lifting.FRACTION + STEP_UNIT.bit_length() - 1 - _FRACTION
    luma = ((low[:, :1] * step) >> shift).clamp(-_LARGEST, _LARGEST)
    variance = 9 * sums_of_3x3(luma.square()) - sums_of_3x3(luma).square()
    largest, bounds = _bounds(level, low.device)
    quarters = largest - torch.bucketize(variance, bounds, out_int32=True)
    return torch.cat([quarters, quarters, quarters + _DIAGONAL], 1)
