"""Pictures that repeat themselves, as screenshots and drawings do: LZMA of their pixels.

Pixels are coded one after another, red and blue less green modulo 2**depth, as bytes (16 bits: the low one first); from
each byte, one of its predictors may be subtracted.
"""

from __future__ import annotations

import lzma
import math

import numpy as np
from numpy.typing import NDArray

from lic.codec import PlaneShape
from lic.errors import FormatError

# Nothing; the pixel to the left; the one above: axes of (H, W, bytes).
PREDICTORS: tuple[int | None, ...] = (None, 1, 0)
ALL, COMMON = len(PREDICTORS), len(PREDICTORS) + 1  # in the place of a predictor's number: what colours are listed
METHODS = COMMON + 1
_FEW = 16  # colours that all are listed
_OTHER = 255  # the number of a pixel whose colour is not among the common ones, as many as that
_SHARE = 0.3
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0, "dict_size": 2**24}]


def likely(planes: NDArray[np.int32]) -> bool:
    """Whether many pixels of (C, H, W) equal both the one to their left and the one above."""
    inner = planes[:, 1:, 1:]
    same = (inner == planes[:, 1:, :-1]) & (inner == planes[:, :-1, 1:])
    return same.size > 0 and bool(same.all(0).mean() > _SHARE)


def encode(planes: NDArray[np.int32], shape: PlaneShape) -> tuple[int, bytes]:
    """Planes (C, H, W) -> the number of the predictor that suits them best, or ALL or COMMON, and the coded bytes."""
    samples = _less_green(planes, 1) & 2**shape.bit_depth - 1
    interleaved = np.ascontiguousarray(samples.transpose(1, 2, 0).astype("<u2" if shape.bit_depth == 16 else "u1"))
    raw = interleaved.view(np.uint8).reshape(shape.height, shape.width, -1)
    candidates = []
    for number, axis in enumerate(PREDICTORS):
        residuals = raw if axis is None else np.diff(raw, axis=axis, prepend=np.uint8(0))
        candidates.append((number, _compress(residuals)))
    keys = sum(plane.astype(np.int64) << 16 * i for i, plane in enumerate(planes)).ravel()
    colours, examples, numbers, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    if len(colours) <= _FEW:
        listed = b"".join((colours >> 16 * i & 65535).astype("<u2").tobytes() for i in range(shape.channels))
        packed = _pack(numbers.reshape(shape.height, shape.width), _bits(len(colours)))
        candidates.append((ALL, bytes([len(colours) - 1]) + listed + _compress(packed)))
    pixels = raw.reshape(len(keys), -1)
    common = np.sort(np.argsort(-counts, kind="stable")[:_OTHER])
    renumbered = np.full(len(colours), _OTHER, np.uint8)
    renumbered[common] = np.arange(len(common))
    coded = _compress(pixels[examples[common]], renumbered[numbers], pixels[renumbered[numbers] == _OTHER])
    candidates.append((COMMON, bytes([len(common) - 1]) + coded))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def decode(method: int, data: bytes, shape: PlaneShape) -> NDArray[np.int32]:
    """The inverse. Raises FormatError."""
    sides, bytes_a_pixel = (shape.height, shape.width), shape.channels * shape.bit_depth // 8
    size = math.prod(sides)
    if method < ALL:
        pixels = _decompress(data, size * bytes_a_pixel).reshape(*sides, bytes_a_pixel)
        axis = PREDICTORS[method]
        return _planes(pixels if axis is None else np.cumsum(pixels, axis, np.uint8), shape)
    count = data[0] + 1 if data else 0
    if method == ALL:
        end = 1 + 2 * count * shape.channels
        if not 0 < count <= _FEW or len(data) < end:
            raise FormatError("the list of colours is damaged")
        listed = np.frombuffer(data[1:end], "<u2").astype(np.int32).reshape(shape.channels, count)
        bits = _bits(count)
        packed = _decompress(data[end:], shape.height * -(-shape.width * bits // 8)).reshape(shape.height, -1)
        return _coloured(_unpack(packed, bits, shape.width), listed) & 2**shape.bit_depth - 1
    if not 0 < count <= _OTHER:
        raise FormatError("the list of colours is damaged")
    start = count * bytes_a_pixel
    raw = _decompress(data[1:], start + size, size * bytes_a_pixel)
    numbers = raw[start : start + size].reshape(sides)
    other = numbers == _OTHER
    end = start + size + int(other.sum()) * bytes_a_pixel
    if len(raw) < end:
        raise FormatError("the coded pixels are damaged: there are too few")
    planes = _coloured(np.where(other, 0, numbers), _planes(raw[:start].reshape(count, -1), shape))
    planes[:, other] = _planes(raw[start + size : end].reshape(-1, bytes_a_pixel), shape)
    return planes


def _planes(raw: NDArray[np.uint8], shape: PlaneShape) -> NDArray[np.int32]:
    """Pixels' bytes, (..., bytes) -> (C, ...)."""
    samples = np.ascontiguousarray(raw).view("<u2" if shape.bit_depth == 16 else "u1").astype(np.int32)
    return _less_green(np.moveaxis(samples, -1, 0), -1) & 2**shape.bit_depth - 1


def _coloured(numbers: NDArray[np.integer], colours: NDArray[np.int32]) -> NDArray[np.int32]:
    if numbers.max() >= colours.shape[1]:
        raise FormatError("a pixel's colour is not in the list")
    return colours[:, numbers]


def _less_green(planes: NDArray[np.int32], times: int) -> NDArray[np.int32]:
    if len(planes) == 1:
        return planes
    green = planes[1:2]
    return np.concatenate([planes[:1] - times * green, green, planes[2:] - times * green])


def _bits(colours: int) -> int:
    return 1 if colours <= 2 else 2 if colours <= 4 else 4


def _pack(numbers: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """(H, W) of 0..2**bits - 1 -> rows of bytes, the first pixel in the highest bits."""
    digits = numbers[..., None] >> np.arange(bits)[::-1] & 1
    return np.packbits(digits.astype(np.uint8).reshape(len(numbers), -1), 1)


def _unpack(rows: NDArray[np.uint8], bits: int, width: int) -> NDArray[np.int64]:
    digits = np.unpackbits(rows, 1, width * bits).reshape(len(rows), width, bits)
    return digits @ (1 << np.arange(bits)[::-1])


def _compress(*parts: NDArray[np.uint8]) -> bytes:
    raw = b"".join(part.tobytes() for part in parts)
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=_FILTERS)


def _decompress(data: bytes, size: int, more: int = 0) -> NDArray[np.uint8]:
    """The first `size` bytes of what was compressed, and up to so many more. Raises FormatError."""
    try:
        raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(data, size + more)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError("the coded pixels are damaged") from error
    if len(raw) < size:
        raise FormatError("the coded pixels are damaged: there are too few")
    return np.frombuffer(raw, np.uint8)
