"""Alpha, losslessly: a predictor of PNG's kind, then DEFLATE.

A coded plane is one byte, the predictor's number, then the zlib stream of the residuals modulo 256, row by row. A plane
of 16 bits is coded as two of 8 side by side, the high bytes left, the low bytes right.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from lic.errors import FormatError

_DIFFERENCED_AXES: tuple[tuple[int, ...], ...] = ((), (1,), (0,), (0, 1))  # none, left, above, left + above - corner


def encode(alpha: NDArray[np.integer]) -> bytes:
    """alpha (H, W) uint8 or uint16 -> bytes, with the best of the predictors."""
    plane = _to_bytes(alpha)
    candidates = []
    for number, axes in enumerate(_DIFFERENCED_AXES):
        residual = plane
        for axis in axes:
            residual = np.diff(residual, axis=axis, prepend=np.uint8(0))
        candidates.append(bytes([number]) + zlib.compress(residual.tobytes(), 9))
    return min(candidates, key=len)


def decode(data: bytes, height: int, width: int, bit_depth: int) -> NDArray[np.integer]:
    """The inverse: (H, W) uint8 or uint16. Raises FormatError."""
    row = width * (bit_depth // 8)
    try:
        axes = _DIFFERENCED_AXES[data[0]]
        inflate = zlib.decompressobj()
        raw = inflate.decompress(data[1:], height * row)
    except (IndexError, zlib.error) as error:
        raise FormatError("the coded alpha is damaged") from error
    if len(raw) != height * row:
        raise FormatError("the coded alpha is damaged: it holds too few values")
    plane = np.frombuffer(raw, np.uint8).reshape(height, row)
    for axis in axes:
        plane = np.cumsum(plane, axis=axis, dtype=np.uint8)
    if bit_depth == 8:
        return plane
    return plane[:, :width].astype(np.uint16) << 8 | plane[:, width:]


def _to_bytes(alpha: NDArray[np.integer]) -> NDArray[np.uint8]:
    if alpha.dtype == np.uint8:
        return alpha.astype(np.uint8, copy=False)
    return np.concatenate([alpha >> 8, alpha & 255], axis=1).astype(np.uint8)
