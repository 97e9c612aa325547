"""The Bjøntegaard delta rate: how many more bits one curve needs than another for the same quality."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator


def log_rate(rate: ArrayLike, quality: ArrayLike) -> PchipInterpolator:
    """The natural logarithm of the rate as a monotone cubic function (PCHIP) of quality.

    rate: (points,) bits per pixel or any other unit; quality: (points,) dB or any other scale that rises with quality.
    Infinite ones, of pictures that came out exactly, are left out.
    """
    from scipy.interpolate import PchipInterpolator

    quality, first = np.unique(np.asarray(quality, np.float64), return_index=True)
    first, quality = first[np.isfinite(quality)], quality[np.isfinite(quality)]
    return PchipInterpolator(quality, np.log(np.asarray(rate, np.float64)[first]), extrapolate=False)


def bd_rate(rate: ArrayLike, quality: ArrayLike, reference_rate: ArrayLike, reference_quality: ArrayLike) -> float:
    """Per cent more bits than the reference for the same quality, averaged over the range that both curves cover.

    Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with monotone cubic
    pieces in place of his one cubic polynomial. Negative: fewer bits. NaN where the curves share no range of quality.
    """
    curves = [log_rate(rate, quality), log_rate(reference_rate, reference_quality)]
    low = max(curve.x[0] for curve in curves)
    high = min(curve.x[-1] for curve in curves)
    if low >= high:
        return math.nan
    difference = curves[0].integrate(low, high) - curves[1].integrate(low, high)
    return 100 * math.expm1(difference / (high - low))
