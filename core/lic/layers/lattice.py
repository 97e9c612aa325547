"""Finds the matrix by which a picture was converted from integers, YCbCr of any kind, to RGB.

Pixels that are round(M z + o), z integers, lie near the points of a lattice, which shows in the Fourier transform of
their histogram, as atoms do in X-ray crystallography: for each vector k of the dual lattice (a row of M's inverse), the
mean of exp(2 pi i k pixel) is large though k is far from 0. Differences of channels have no luma, so chroma's part of
the lattice shows in two dimensions; luma's, with a gain of more than one, in three: green, and the two of chroma.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FEWEST = 2000  # pixels
_PLANE, _BOX = 512, (256, 128, 128)  # sides of the histograms
_APART = 0.03  # how far apart, in cycles a pixel value, two peaks are
_SMOOTH, _GAIN = 0.12, 0.1  # below these frequencies there are peaks in every picture
_LEAST = 0.2, 0.06  # the mean's absolute value at a peak, for chroma and luma
_LUMAS = 5  # candidates
_STEPS = 20  # towards a fit that rounds to every value
_ROUNDS = 4  # of assigning pixels to points, and fitting the lattice to them
_BRIGHTNESS = np.array([0.25, 0.5, 0.25])
_TOLERATED, _SWEEPS = 0.002, 100  # of a channel's pixels, not rounded as the matrix says; over the corrections
_ROUNDED = 0.497  # and with them
_MARGIN = 0.49  # how far a pixel may be from its point


def found(pixels: NDArray[np.int32]) -> tuple[Floats, Floats] | None:
    """Of RGB pixels (count, 3), none clipped: the matrix (3, 3) that converts luma and two of chroma, and the offset
    (3,) that is added before rounding; None where there seems to be none."""
    if len(pixels) < _FEWEST:
        return None
    differences = pixels[:, [2, 0]] - pixels[:, 1:2]
    histogram = np.zeros((_PLANE, _PLANE))
    np.add.at(histogram, tuple(differences.T % _PLANE), 1 / len(pixels))
    far = np.maximum.outer(*[abs(np.fft.fftfreq(_PLANE))] * 2) > _SMOOTH
    peaks = _peaks(abs(np.fft.fft2(histogram)) * far, histogram.shape, 6)
    dual = _independent([frequency for height, frequency in peaks if height > _LEAST[0]])
    if dual is None:
        return None
    chroma = _assigned(differences, dual)
    if chroma is None:
        return None
    some, less = pixels[::8], chroma[::8]
    best: tuple[float, Floats] | None = None
    for height, (green, first, second) in _luma_peaks(pixels[:, 1], chroma):
        luma = (1 - green) * some[:, 1] - less @ [first, second]
        fit = _fitted(np.column_stack([np.round(luma - _phase(luma)), less]), some)
        for _ in range(_ROUNDS):
            if _plausible(fit):
                points = np.round((some - fit[3]) @ np.linalg.inv(fit[:3]))
                fit = _fitted(points, some)
        if height > _LEAST[1] and _plausible(fit):
            share = float((abs(some - points @ fit[:3] - fit[3]) < 0.6).all(1).mean())
            if best is None or share > best[0]:
                best = share, fit
    if best is None or best[0] < 0.8:
        return None
    fit = best[1]
    for column in (1, 2):  # of all bases, the one whose chroma changes brightness least
        fit[column] -= np.round(fit[column] @ _BRIGHTNESS / (fit[0] @ _BRIGHTNESS)) * fit[0]
    for _ in range(_ROUNDS):
        points = np.round((pixels - fit[3]) @ np.linalg.inv(fit[:3]))
        for channel in range(3):
            fit[:, channel] = _tightened(points, pixels[:, channel], fit[:, channel])
        if not _plausible(fit):
            return None
    return fit[:3].T, fit[3]


def _plausible(fit: Floats) -> bool:
    """Whether luma makes brighter, by more than itself, and there are not more points than pixels."""
    return bool(np.isfinite(fit).all() and fit[0] @ _BRIGHTNESS > 1 and abs(np.linalg.det(fit[:3])) > 1)


def _peaks(heights: NDArray[np.floating], sides: Sequence[int], count: int) -> list[tuple[float, Floats]]:
    """The highest peaks of a spectrum, or of its first half, that has these sides, with their frequencies."""
    heights = heights.copy()
    axes = [np.fft.fftfreq(side)[:there] for side, there in zip(sides, heights.shape, strict=True)]
    out = []
    for _ in range(count):
        at = np.unravel_index(heights.argmax(), heights.shape)
        frequency = np.array([axis[i] for axis, i in zip(axes, at, strict=True)])
        out.append((float(heights[at]), frequency))
        for sign in (1, -1):
            near = [abs((axis - sign * f + 0.5) % 1 - 0.5) < _APART for axis, f in zip(axes, frequency, strict=True)]
            heights[np.ix_(*near)] = 0
    return out


def _independent(frequencies: list[Floats]) -> Floats | None:
    """The first two (2, 2) that aren't multiples of each other: the one that has most of blue first, signs positive."""
    if not frequencies:
        return None
    one = frequencies[0]
    for other in frequencies[1:]:
        multiples = [abs((other - m * one + 0.5) % 1 - 0.5).max() for m in range(-4, 5)]
        if min(multiples) > _APART and abs(np.linalg.det([one, other])) > _APART:
            blue, red = (one, other) if abs(one[0] * other[1]) > abs(one[1] * other[0]) else (other, one)
            return np.array([blue * np.sign(blue[0]), red * np.sign(red[1])])
    return None


def _phase(x: Floats) -> float:
    """What numbers have in common beside integers."""
    return float(np.angle(np.exp(2j * np.pi * x).mean()) / (2 * np.pi))


def _assigned(differences: NDArray[np.int32], dual: Floats) -> Floats | None:
    """The point (count, 2), integers, of each pixel's differences; None where they have but one dimension."""
    products = differences @ dual.T
    points = np.round(products - [_phase(column) for column in products.T])
    for _ in range(_ROUNDS):
        fit = _fitted(points, differences)
        if abs(np.linalg.det(fit[:2])) < 1:
            return None
        points = np.round((differences - fit[2]) @ np.linalg.inv(fit[:2]))
    return points - np.round(points.mean(0))


def _luma_peaks(green: NDArray[np.int32], chroma: Floats) -> list[tuple[float, Floats]]:
    histogram = torch.zeros(_BOX)
    places = [torch.from_numpy(x.astype(np.int64)) % side for x, side in zip((green, *chroma.T), _BOX, strict=True)]
    histogram.index_put_(tuple(places), torch.tensor(1 / len(green)), accumulate=True)
    spectrum = torch.fft.fftn(histogram).abs()[: _BOX[0] // 2]  # the other half mirrors it
    spectrum[: round(_GAIN * _BOX[0])] = 0
    return _peaks(spectrum.numpy(), _BOX, _LUMAS)


def _fitted(points: Floats, pixels: NDArray[np.int32]) -> Floats:
    """Least squares of pixels (count, channels), or of one channel: the matrix, transposed, and below it the offset."""
    middle = points.mean(0)
    system = np.column_stack([points - middle, np.ones(len(points))])
    fit = np.linalg.lstsq(system.T @ system, system.T @ pixels, rcond=None)[0]
    fit[-1] -= middle @ fit[:-1]
    return fit


def _tightened(points: Floats, values: NDArray[np.int32], fit: Floats) -> Floats:
    """A channel's fit anew: least squares; or, if more values are their points', rounded, it and least squares of what
    is too far, again and again."""
    near = abs(values - points @ fit[:3] - fit[3]) < 0.8  # others are other points'
    points, values = points[near], values[near]
    plain = tight = _fitted(points, values)
    system = np.column_stack([points, np.ones(len(points))])
    damping = 1e-6 * system.T @ system
    for _ in range(_STEPS):
        error = values - system @ tight
        wrong = abs(error) > _MARGIN
        if not wrong.any():
            break
        excess = error[wrong] - np.sign(error[wrong]) * _MARGIN
        tight = tight + np.linalg.solve(system[wrong].T @ system[wrong] + damping, system[wrong].T @ excess)
    return min((plain, tight), key=lambda fit: int((abs(values - system @ fit) > 0.5).sum()))


def corrected(
    matrix: Floats, offset: Floats, points: NDArray[np.int64], pixels: NDArray[np.int32], size: int
) -> Floats:
    """What is to be added to matrix @ points + offset, for each channel, coordinate and its value, (3, 3, size), so
    that nearly every pixel is that sum, rounded: converters that round each term, by tables, need it. points, (count,
    3), are numbers into the tables, of which the middle one stands for zero. Channels that need none have zeros."""
    tables = np.zeros((3, 3, size))
    keys = np.ravel_multi_index(tuple(points.T), (size,) * 3)
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    first = first[counts > 1]  # what occurs once may be another point's
    points, pixels = points[first], pixels[first]
    linear = (points - size // 2) @ matrix.T + offset
    for channel in range(3):
        error = pixels[:, channel] - linear[:, channel]
        if (abs(error) > 0.5).mean() < _TOLERATED:
            continue
        for _ in range(_SWEEPS):
            for axis in range(3):
                lowest, highest = np.full(size, -1.0), np.full(size, 1.0)
                np.maximum.at(lowest, points[:, axis], error - _ROUNDED)
                np.minimum.at(highest, points[:, axis], error + _ROUNDED)
                change = np.where(lowest < highest, np.clip(0, lowest, highest), (lowest + highest) / 2)
                tables[channel, axis] += change
                error -= change[points[:, axis]]
            if (abs(error) <= 0.5).all():
                break
    return tables
