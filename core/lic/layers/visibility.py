"""Where errors are seen: less beside strong detail, as structural similarity has it. Steps may be larger there.

Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), equation 13: an error
counts in units of 2 * variance + C2 of what is around it. The variance is that of what is decoded already, one level
up, so nobody has to tell the decoder; as JPEG 2000's visual masking (Zeng, Daly, Lei, "An overview of the visual
optimization tools in JPEG 2000", 2002) takes it from the coefficients before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lic.layers import lifting
from lic.layers.band_prior import STEP_UNIT, sums_of_3x3

_C2 = (0.03 * 255) ** 2
_USUAL = 200.0  # 2 * variance + C2, in squared pixel values, where the step is the usual one
_COARSEST, _FINEST = -4, 2  # quarters of an octave; a quarter for each halving of 2 * variance + C2
_FRACTION = 2  # fractional bits of pixel values here
_LARGEST = 1023  # more than any picture has; 81 times its square fits 32 bits
_UNIT = 81 * 3 * 4**_FRACTION  # of the integer variances: of 9 samples, in an orthonormal plane
_BOUNDS = [round((_USUAL * 2 ** (0.5 - k) - _C2) / 2 * _UNIT) for k in range(_FINEST, _COARSEST, -1)]


def finer(low: Tensor, step: int, level: int) -> Tensor:
    """By how many quarters of an octave a level's steps should be smaller than usual: (N, 1, h, w) int32, exactly.

    low: what is decoded one level up, (N, 3, h, w) int32 in 1 / 2**FRACTION steps; step in 1 / STEP_UNIT.
    """
    shift = level + lifting.FRACTION + STEP_UNIT.bit_length() - 1 - _FRACTION
    luma = ((low[:, :1] * step) >> shift).clamp(-_LARGEST, _LARGEST)
    variance = 9 * sums_of_3x3(luma.square()) - sums_of_3x3(luma).square()
    bounds = torch.tensor(_BOUNDS, dtype=torch.int32, device=low.device)
    return _FINEST - torch.bucketize(variance, bounds, out_int32=True)
