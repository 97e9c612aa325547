"""JPEG's way from quantised coefficients to samples, with libjpeg's arithmetic: the same integers as its decoder's.

ITU-T T.81; libjpeg's jidctint.c ("islow", its default; after Loeffler, Ligtenberg, Moschytz, ICASSP 1989) and
jdsample.c ("fancy upsampling", a triangle filter, its default, too).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

COUNT = 64  # coefficients of a block
LARGEST, REACH = 255, 2**11  # step; and quantised coefficient, which samples of 8 bits don't reach
TURNS, TRANSPOSED = 8, 4

# Coefficients by growing frequency (T.81, figure A.6): each one's number, row by row.
ZIGZAG = sorted(range(COUNT), key=lambda i: (d := i // 8 + i % 8, i if d % 2 else -i))
_PLACE = torch.tensor(ZIGZAG).argsort()  # the inverse

# T.81, tables K.1 and K.2, row by row, as far as the latter has others than 99; for luma and chroma, in zigzag order.
_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]  # fmt: skip
_CHROMA = torch.full((8, 8), 99)
_CHROMA[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
TABLES = torch.stack([torch.tensor(_LUMA), _CHROMA]).flatten(1)[:, ZIGZAG]

# Those of libjpeg's qualities from 1 to 99, each for luma and chroma, (198, 64) int32.
_SCALES = [5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 100)]
USUAL = torch.cat([(TABLES * scale + 50).div(100, rounding_mode="floor").clamp(1, LARGEST) for scale in _SCALES]).int()

_BITS, _EXTRA = 13, 2  # fractional bits of constants, and of samples between the two dimensions
_SUMS = 0.541196100, -1.847759065, 0.765366865
_ODD = 0.298631336, 2.053119869, 3.072711026, 1.501321110  # of coefficients 7, 5, 3, 1
_PAIRS = -0.899976223, -2.562915447, -1.961570560, -0.390180644  # of 7 + 1, 5 + 3, 7 + 3, 5 + 1
_ROTATION = 1.175875602

_DCT = torch.tensor(
    [[math.cos((2 * x + 1) * u * math.pi / 16) * (0.5 if u else 8**-0.5) for x in range(8)] for u in range(8)],
    dtype=torch.float64,
)

# What a unit of each coefficient is in its block's samples, row by row, (64, 64).
BASIS = torch.einsum("uy,vx->uvyx", _DCT, _DCT).reshape(COUNT, COUNT)[ZIGZAG]


class Component(NamedTuple):
    """Quantised coefficients (64, h, w) int32, -REACH..REACH, in zigzag order; and the steps (64,) int32, 1..LARGEST,
    or 0 where none is used."""

    coefficients: Tensor
    table: Tensor

    @staticmethod
    def rounded(real: Tensor, table: Tensor) -> Component:
        """From coefficients (64, h, w) before quantisation, float32."""
        steps = table.view(-1, 1, 1)
        return Component((real / steps.clamp(min=1)).round().int() * (steps > 0), table)

    def plane(self, sampling: tuple[int, int], height: int, width: int) -> Tensor:
        """(height, width) int32, -128..127, where it has a sample for so many rows and columns."""
        x = samples(self.coefficients, self.table)[: -(-height // sampling[0]), : -(-width // sampling[1])]
        return upsampled(x, *sampling)[:height, :width]


class Jpeg(NamedTuple):
    """sampling: the rows and columns of a sample of chroma, in samples of luma. turn: see `turned`."""

    components: list[Component]
    sampling: tuple[int, int]
    turn: int = 0

    def planes(self, height: int, width: int) -> Tensor:
        """(C, height, width) int32, -128..127."""
        sides = (width, height) if self.turn & TRANSPOSED else (height, width)
        samplings = (1, 1), self.sampling, self.sampling
        pairs = zip(self.components, samplings, strict=False)
        planes = torch.stack([component.plane(sampling, *sides) for component, sampling in pairs])
        return turned(planes, self.turn, back=True)


def turned(x: Tensor, turn: int, back: bool = False) -> Tensor:
    """(..., H, W), mirrored if turn has the bit 1, upside down if 2, then transposed if 4; or the inverse."""
    if back and turn & TRANSPOSED:
        x = x.mT
    x = x.flip([dim for bit, dim in ((1, -1), (2, -2)) if turn & bit])
    return x if back or not turn & TRANSPOSED else x.mT


def transformed(samples: Tensor) -> Tensor:
    """Samples (..., 8h, 8w) -> their coefficients (..., 64, h, w) in zigzag order, real numbers of the same dtype."""
    dct = _DCT.to(samples)
    x = samples.unflatten(-2, (-1, 8)).unflatten(-1, (-1, 8))  # ..., h, y, w, x
    x = torch.einsum("uy,...hywx,vx->...uvhw", dct, x, dct)
    return x.flatten(-4, -3)[..., ZIGZAG, :, :]


def _fixed(x: float) -> int:
    return round(x * 2**_BITS)


def _inverse(x: tuple[Tensor, ...], shift: int) -> list[Tensor]:
    """One dimension of the inverse transform of eight coefficients; the sums, divided by 2**shift and rounded."""
    even = (x[2] + x[6]) * _fixed(_SUMS[0])
    high, low = even + x[6] * _fixed(_SUMS[1]), even + x[2] * _fixed(_SUMS[2])
    plus, minus = x[0] + x[4] << _BITS, x[0] - x[4] << _BITS
    evens = plus + low, minus + high, minus - high, plus - low
    pairs = [s * _fixed(c) for s, c in zip((x[7] + x[1], x[5] + x[3], x[7] + x[3], x[5] + x[1]), _PAIRS, strict=True)]
    both = (x[7] + x[3] + x[5] + x[1]) * _fixed(_ROTATION)
    pairs[2], pairs[3] = pairs[2] + both, pairs[3] + both
    odds = [x[7 - 2 * i] * _fixed(c) for i, c in enumerate(_ODD)]
    odds = [odds[0] + pairs[0] + pairs[2], odds[1] + pairs[1] + pairs[3],
            odds[2] + pairs[1] + pairs[2], odds[3] + pairs[0] + pairs[3]]  # fmt: skip
    half = 1 << shift - 1
    first = [even + odd + half >> shift for even, odd in zip(evens, odds[::-1], strict=True)]
    last = [even - odd + half >> shift for even, odd in zip(evens, odds[::-1], strict=True)]
    return first + last[::-1]


def samples(coefficients: Tensor, table: Tensor, limit: int = 128) -> Tensor:
    """Quantised coefficients (64, h, w) int32, in zigzag order, and the quantisation table (64,) -> the component's
    samples (8h, 8w) int32, -limit..limit - 1."""
    h, w = coefficients.shape[1:]
    x = (coefficients * table.view(-1, 1, 1))[_PLACE.to(coefficients.device)].clamp(-(2**14), 2**14).view(8, 8, h, w)
    x = torch.stack(_inverse(x.unbind(0), _BITS - _EXTRA)).clamp(-(2**15), 2**15)  # columns
    x = torch.stack(_inverse(x.unbind(1), _BITS + _EXTRA + 3))  # rows: x, y, h, w
    return x.clamp(-limit, limit - 1).permute(2, 1, 3, 0).reshape(8 * h, 8 * w)


def upsampled(samples: Tensor, rows: int, columns: int) -> Tensor:
    """A component's samples (..., h, w) int32, each for (rows, columns) pixels, 1 or 2 -> (..., rows h, columns w)."""
    if rows == columns == 2:
        return _between(_between(samples, -2, (0, 0), 0), -1, (8, 7), 4)
    x = _between(samples, -2, (1, 2), 2) if rows == 2 else samples
    return _between(x, -1, (1, 2), 2) if columns == 2 else x


def _between(x: Tensor, dim: int, roundings: tuple[int, int], shift: int) -> Tensor:
    """Twice as many samples along dim, three quarters of the one they are in, and a quarter of the nearest other; in
    units of 1 / 2**shift, or times 4 where that is 0. Beyond the borders, the last one is repeated."""
    last = x.shape[dim] - 1
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, last)], dim)
    after = torch.cat([x.narrow(dim, 1, last), x.narrow(dim, last, 1)], dim)
    pairs = [3 * x + other + rounding >> shift for other, rounding in zip((before, after), roundings, strict=True)]
    dim %= x.dim()
    return torch.stack(pairs, dim + 1).flatten(dim, dim + 1)
