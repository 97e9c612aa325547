"""Transforms of integers to integers that lose nothing: of colours, and an interpolating wavelet by lifting.

ISO 15444-1, annex G.2, the reversible component transform (RCT). Calderbank, Daubechies, Sweldens, Yeo, "Wavelet
transforms that map integers to integers" (1998), (4, 2): odd samples are predicted from four even ones, even samples
updated by two odd ones. Both dimensions at once, so that each coefficient is rounded once, not twice: Iwahashi, Kiya,
"Non separable 2D factorization of separable 2D DWT for lossless image coding" (2009).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lic.layers.lifting import around_even, join


def to_rct(rgb: Tensor) -> Tensor:
    """(..., 3, H, W) integers -> Y, U = B - G, V = R - G; of b bits, Y has b and the others have b + 1."""
    r, g, b = rgb.unbind(-3)
    u, v = b - g, r - g
    return torch.stack([g + (u + v >> 2), u, v], -3)


def from_rct(planes: Tensor) -> Tensor:
    y, u, v = planes.unbind(-3)
    g = y - (u + v >> 2)
    return torch.stack([v + g, g, u + g], -3)


def _predicted(even: Tensor, count: int, dim: int) -> Tensor:
    """16 times what the odd samples are predicted to be, from the two even ones on each side of each; beyond the
    borders, the nearest one is repeated."""
    first, last = even.narrow(dim, 0, 1), even.narrow(dim, even.shape[dim] - 1, 1)
    x = torch.cat([first, even, last, last], dim)
    far, near, near2, far2 = (x.narrow(dim, i, count) for i in range(4))
    return 9 * (near + near2) - (far + far2)


def _update(odd: Tensor, count: int, dim: int) -> Tensor:
    """4 times what the even samples are updated by."""
    if not odd.shape[dim]:
        shape = list(odd.shape)
        shape[dim] = count
        return odd.new_zeros(shape)
    return around_even(odd, count, dim)


def _corner(low: Tensor, right: Tensor, below: Tensor) -> Tensor:
    """What samples in odd rows and columns are predicted to be, from those in even rows and columns, those beside them
    in odd columns, and those below in odd rows."""
    rows, columns = below.shape[2], right.shape[3]
    both = _predicted(_predicted(low, columns, 3), rows, 2)
    return (_predicted(below, columns, 3) + _predicted(right, rows, 2)) * 16 - both + 128 >> 8


def _edge(low: Tensor, hh: Tensor, dim: int, count: int) -> Tensor:
    """What samples between two even ones along `dim` are predicted to be, less what HH updates them by."""
    across = 5 - dim
    return _predicted(low, count, dim) - 4 * _update(hh, low.shape[across], across) + 8 >> 4


def _gain(hl: Tensor, lh: Tensor, hh: Tensor, height: int, width: int) -> Tensor:
    """What the samples in even rows and columns, (height, width) of them, are updated by."""
    both = _update(_update(hh, width, 3), height, 2)
    return 4 * (_update(hl, width, 3) + _update(lh, height, 2)) - both + 8 >> 4


def analyse(x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """(N, C, H, W) integers -> low band and, finest first, the bands (N, 3C, h, w), as `lifting.analyse` has them."""
    bands = []
    for _ in range(levels):
        x, right, below, corner = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        hh = corner - _corner(x, right, below)
        hl = right - _edge(x, hh, 3, right.shape[3])
        lh = below - _edge(x, hh, 2, below.shape[2])
        x = x + _gain(hl, lh, hh, *x.shape[2:])
        bands.append(join(x, hl, lh, hh))
    return x, bands


def synthesise(low: Tensor, band: Tensor, height: int, width: int) -> Tensor:
    """One level of the inverse: low (N, C, h, w) and band (N, 3C, h, w) -> (N, C, height, width)."""
    hl, lh, hh = band.chunk(3, 1)
    rows, columns = height // 2, width // 2
    hl, lh, hh = hl[..., :columns], lh[:, :, :rows], hh[:, :, :rows, :columns]
    out = low.new_empty(*low.shape[:2], height, width)
    x, right, below, corner = (out[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    x.copy_(low - _gain(hl, lh, hh, *low.shape[2:]))
    right.copy_(hl + _edge(x, hh, 3, columns))
    below.copy_(lh + _edge(x, hh, 2, rows))
    corner.copy_(hh + _corner(x, right, below))
    return out
