"""The CDF 9/7 wavelet by lifting: analysis in floating point, synthesis in integers.

Daubechies and Sweldens, "Factoring wavelet transforms into lifting steps" (1998). The coefficients are rounded to 12
fractional bits, in both directions, so that synthesis inverts analysis. The synthesis, on which encoder and decoder
must agree, works on integers in units of 1 / 2**FRACTION quantisation steps: additions, multiplications, shifts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FRACTION = 7  # fractional bits of a sample in synthesis
_BITS = 12
_STEPS = (-6497, -217, 3616, 1817)  # the four lifting coefficients, times 2**12
_K2 = 5413  # the square of the scaling factor 1.149604398 (near orthonormal), times 2**12
_INVERSE_K2 = 3099  # and its inverse


def around_odd(even: Tensor, count: int, dim: int) -> Tensor:
    """The sum of the two even samples beside each odd one; a missing last one is its mirror image."""
    after = even.narrow(dim, 1, even.shape[dim] - 1)
    if even.shape[dim] == count:
        after = torch.cat([after, even.narrow(dim, count - 1, 1)], dim)
    return even.narrow(dim, 0, count) + after


def around_even(odd: Tensor, count: int, dim: int) -> Tensor:
    """The sum of the two odd samples beside each even one; missing ones are mirror images."""
    n = odd.shape[dim]
    before = torch.cat([odd.narrow(dim, 0, 1), odd.narrow(dim, 0, count - 1)], dim)
    return before + (odd if n == count else torch.cat([odd, odd.narrow(dim, n - 1, 1)], dim))


def every_second(x: Tensor, dim: int, first: int) -> Tensor:
    return x[..., first::2] if dim == 3 else x[..., first::2, :]


def interleave(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    """The inverse of `every_second`."""
    shape = list(even.shape)
    shape[dim] += odd.shape[dim]
    out = even.new_empty(shape)
    every_second(out, dim, 0).copy_(even)
    every_second(out, dim, 1).copy_(odd)
    return out


def join(low: Tensor, *bands: Tensor) -> Tensor:
    """HL, LH, HH, each (N, C, h, w) -> (N, 3C, h, w) of the low band's sides, zero where a band is shorter."""
    h, w = low.shape[2:]
    return torch.cat([F.pad(b, (0, w - b.shape[3], 0, h - b.shape[2])) for b in bands], 1)


def _split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    even, odd = every_second(x, dim, 0), every_second(x, dim, 1)
    m, n = even.shape[dim], odd.shape[dim]
    if n:
        a, b, c, d = (step / 2**_BITS for step in _STEPS)
        odd = odd + a * around_odd(even, n, dim)
        even = even + b * around_even(odd, m, dim)
        odd = odd + c * around_odd(even, n, dim)
        even = even + d * around_even(odd, m, dim)
    return even, odd


def _merge(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    m, n = even.shape[dim], odd.shape[dim]
    if not n:
        return even
    a, b, c, d = _STEPS
    even = even - _scaled(around_even(odd, m, dim), d)
    odd = odd - _scaled(around_odd(even, n, dim), c)
    even = even - _scaled(around_even(odd, m, dim), b)
    odd = odd - _scaled(around_odd(even, n, dim), a)
    return interleave(even, odd, dim)


def _scaled(x: Tensor, factor: int) -> Tensor:
    """x * factor / 2**12, rounded half up."""
    return (x * factor + (1 << _BITS - 1)) >> _BITS


def analyse(x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """(N, C, H, W) float32 -> low band and, finest first, the bands (N, 3C, h, w): HL, LH, HH.

    Each level halves the sides, rounding up; where a side is odd, the high bands' last row or column is zero.
    """
    bands = []
    for _ in range(levels):
        low, high = _split(x, 3)
        (x, lh), (hl, hh) = _split(low, 2), _split(high, 2)
        x, hh = x * (2**_BITS / _INVERSE_K2), hh * (2**_BITS / _K2)
        bands.append(join(x, hl, lh, hh))
    return x, bands


def synthesise(low: Tensor, band: Tensor, height: int, width: int) -> Tensor:
    """One level: low (N, C, h, w) and band (N, 3C, h, w) -> (N, C, height, width); int32 in 1 / 2**FRACTION steps,
    saturating at 2**30: at the smallest step there is, 1/128 of an 8-bit pixel value, pictures reach 2**29."""
    # In 64 bits they are the same integers, on a CPU four times as slow; to ask a GPU costs more than that.
    if low.device.type != "cpu" or not _fits(low, band):
        low, band = low.long(), band.long()
    hl, lh, hh = band.chunk(3, 1)
    rows, columns = height // 2, width // 2
    left = _merge(_scaled(low, _INVERSE_K2), lh[:, :, :rows], 2)
    right = _merge(hl[..., :columns], _scaled(hh[:, :, :rows, :columns], _K2), 2)
    return _merge(left, right, 3).clamp(-(2**30), 2**30).int()


def _fits(low: Tensor, band: Tensor) -> bool:
    """Whether every product in synthesis stays within 32 bits: the largest is at most 56 600 times the largest input
    (the sums of the absolute values of each intermediate's impulse response, over both dimensions)."""
    return max(int(low.abs().max()), int(band.abs().max())) < 2**31 // 56_600
