"""Transforms of integers to integers that lose nothing: YCoCg-R, and the 5/3 wavelet by lifting.

Malvar, Sullivan, "YCoCg-R: A Color Space with RGB Reversibility and Low Dynamic Range" (JVT-I014r3, 2003); Le Gall,
Tabatabai (ICASSP 1988), rounded as in JPEG 2000 (ISO 15444-1, annex F.3, equations F-5 and F-6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lic.layers.lifting import around_even, around_odd, every_second, interleave, join


def to_ycocg(rgb: Tensor) -> Tensor:
    """(..., 3, H, W) integers -> Y, Co, Cg; of b bits, Y has b and the others have b + 1."""
    r, g, b = rgb.unbind(-3)
    co = r - b
    t = b + (co >> 1)
    cg = g - t
    return torch.stack([t + (cg >> 1), co, cg], -3)


def from_ycocg(planes: Tensor) -> Tensor:
    y, co, cg = planes.unbind(-3)
    t = y - (cg >> 1)
    b = t - (co >> 1)
    return torch.stack([b + co, cg + t, b], -3)


def _split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    even, odd = every_second(x, dim, 0), every_second(x, dim, 1)
    if odd.shape[dim]:
        odd = odd - (around_odd(even, odd.shape[dim], dim) >> 1)
        even = even + (around_even(odd, even.shape[dim], dim) + 2 >> 2)
    return even, odd


def _merge(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    if not odd.shape[dim]:
        return even
    even = even - (around_even(odd, even.shape[dim], dim) + 2 >> 2)
    odd = odd + (around_odd(even, odd.shape[dim], dim) >> 1)
    return interleave(even, odd, dim)


def analyse(x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """(N, C, H, W) integers -> low band and, finest first, the bands (N, 3C, h, w), as `lifting.analyse` has them."""
    bands = []
    for _ in range(levels):
        low, high = _split(x, 3)
        (x, lh), (hl, hh) = _split(low, 2), _split(high, 2)
        bands.append(join(x, hl, lh, hh))
    return x, bands


def synthesise(low: Tensor, band: Tensor, height: int, width: int) -> Tensor:
    """One level of the inverse: low (N, C, h, w) and band (N, 3C, h, w) -> (N, C, height, width)."""
    hl, lh, hh = band.chunk(3, 1)
    rows, columns = height // 2, width // 2
    left = _merge(low, lh[:, :, :rows], 2)
    right = _merge(hl[..., :columns], hh[:, :, :rows, :columns], 2)
    return _merge(left, right, 3)
