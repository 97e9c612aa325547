"""Pictures that repeat themselves, as screenshots and drawings do: LZMA of their pixels.

Pixels are coded one after another, red and blue less green modulo 2**depth, as bytes (16 bits: the low one first); from
each byte, one of its predictors may be subtracted.
"""

from __future__ import annotations

import lzma

import numpy as np
from numpy.typing import NDArray

from lic.codec import PlaneShape
from lic.errors import FormatError

PREDICTORS: tuple[int | None, ...] = (
    None,
    1,
    0,
)  # nothing; the pixel to the left; the one above: axes of (H, W, bytes)
_SHARE = 0.3
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 0, "pb": 0, "dict_size": 2**24}]


def likely(planes: NDArray[np.int32]) -> bool:
    """Whether many pixels of (C, H, W) equal both the one to their left and the one above."""
    inner = planes[:, 1:, 1:]
    same = (inner == planes[:, 1:, :-1]) & (inner == planes[:, :-1, 1:])
    return same.size > 0 and bool(same.all(0).mean() > _SHARE)


def encode(planes: NDArray[np.int32], shape: PlaneShape) -> tuple[int, bytes]:
    """Planes (C, H, W) -> the number of the predictor that suits them best, and the coded bytes."""
    samples = _less_green(planes, 1) & 2**shape.bit_depth - 1
    pixels = np.ascontiguousarray(samples.transpose(1, 2, 0).astype("<u2" if shape.bit_depth == 16 else "u1"))
    raw = pixels.view(np.uint8).reshape(shape.height, shape.width, -1)
    candidates = []
    for number, axis in enumerate(PREDICTORS):
        residuals = raw if axis is None else np.diff(raw, axis=axis, prepend=np.uint8(0))
        candidates.append((number, lzma.compress(residuals.tobytes(), lzma.FORMAT_RAW, filters=_FILTERS)))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def decode(predictor: int, data: bytes, shape: PlaneShape) -> NDArray[np.int32]:
    """The inverse. Raises FormatError."""
    bytes_a_pixel = shape.channels * shape.bit_depth // 8
    size = shape.height * shape.width * bytes_a_pixel
    try:
        raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(data, size)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError("the coded pixels are damaged") from error
    if len(raw) != size:
        raise FormatError("the coded pixels are damaged: there are too few")
    pixels = np.frombuffer(raw, np.uint8).reshape(shape.height, shape.width, bytes_a_pixel)
    axis = PREDICTORS[predictor]
    if axis is not None:
        pixels = np.cumsum(pixels, axis, np.uint8)
    samples = np.ascontiguousarray(pixels).view("<u2" if shape.bit_depth == 16 else "u1").astype(np.int32)
    return _less_green(samples.transpose(2, 0, 1), -1) & 2**shape.bit_depth - 1


def _less_green(planes: NDArray[np.int32], times: int) -> NDArray[np.int32]:
    if len(planes) == 1:
        return planes
    green = planes[1:2]
    return np.concatenate([planes[:1] - times * green, green, planes[2:] - times * green])
