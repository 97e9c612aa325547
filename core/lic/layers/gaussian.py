"""A zero-mean Gaussian conditional (arXiv 1802.01436, section 3): its bits, and 64 integer tables for 64 scales.

A thousandth of it is eight times as wide: tables that follow pictures have such tails anyway, and without them a single
outlier in a batch costs more than all the rest, until the hyperlatents have learned to announce it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.entropy import PRECISION, integer_frequencies
from lic.layers.gain import OCTAVE

SCALES = 64
_PER_OCTAVE, NARROWEST = 5, -3.25  # scale k is 2**(k / 5 - 3.25) steps
REACH = 255  # the largest symbol of a table
_TAIL, _WIDER = 1e-3, 8


class _AtLeastNarrowest(torch.autograd.Function):
    """A lower limit. What is below can still widen; narrowing, which noise around zero always asks for, ends there."""

    @staticmethod
    def forward(ctx: Any, log2_scale: Tensor) -> Tensor:
        ctx.save_for_backward(log2_scale < NARROWEST)
        return log2_scale.clamp(min=NARROWEST)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (below,) = ctx.saved_tensors
        return gradient * (~below | (gradient < 0))


def at_least_narrowest(log2_scale: Tensor) -> Tensor:
    return _AtLeastNarrowest.apply(log2_scale)


def gaussian_bits(symbols: Tensor, log2_scale: Tensor) -> Tensor:
    """Bits of symbols, integers or with uniform noise added; any shape. In log space: an outlier keeps its gradient."""
    scale, distance = torch.exp2(at_least_narrowest(log2_scale)), symbols.abs()
    body = _log_probability(distance, scale) + math.log(1 - _TAIL)
    tail = _log_probability(distance, scale * _WIDER) + math.log(_TAIL)
    return torch.logaddexp(body, tail) * (-1 / math.log(2))


def _log_probability(distance: Tensor, scale: Tensor) -> Tensor:
    """The logarithm of the probability of a Gaussian's interval of length 1 that far from its mean."""
    near = torch.special.log_ndtr((0.5 - distance) / scale)
    far = torch.special.log_ndtr((-0.5 - distance) / scale)
    return near + torch.log(-torch.expm1(far - near))


def table_index(log2_scale: Tensor) -> Tensor:
    """log2_scale, integers in 1 / OCTAVE -> the nearest table's index, int32."""
    distance = log2_scale - round(NARROWEST * OCTAVE)
    return ((distance * _PER_OCTAVE + OCTAVE // 2) >> 8).clamp(0, SCALES - 1).int()


def gaussian_frequencies() -> NDArray[np.int64]:
    """(SCALES, 2 * REACH + 2): frequencies of the escape and of the symbols -REACH..REACH, for each scale."""
    edges = torch.arange(-REACH, REACH + 2).double() - 0.5
    scales = torch.exp2(torch.arange(SCALES).double() / _PER_OCTAVE + NARROWEST)[:, None]
    cumulative = torch.special.ndtr(edges / scales) * (1 - _TAIL) + torch.special.ndtr(edges / scales / _WIDER) * _TAIL
    inside = cumulative.diff(dim=1)
    probabilities = torch.cat([1 - inside.sum(1, keepdim=True), inside], 1).clamp(min=0).numpy()
    return np.stack([integer_frequencies(row) for row in probabilities])


def count(counts: NDArray[np.float64], index: NDArray[np.integer], symbols: NDArray[np.integer]) -> None:
    """Count symbols by table into counts (tables, 2 * reach + 2): of the escape, and of -reach..reach."""
    reach = counts.shape[1] // 2 - 1
    entries = np.where(np.abs(symbols) > reach, 0, symbols + reach + 1)
    np.add.at(counts, (index, entries), 1)


_BELIEF = 2000.0  # symbols that a Gaussian counts as much as


def calibrated(counts: NDArray[np.float64]) -> Tensor:
    """Frequencies that start as Gaussians and follow what was counted, int32."""
    weights = counts + gaussian_frequencies() * (_BELIEF / 2**PRECISION)
    return torch.from_numpy(np.stack([integer_frequencies(row) for row in weights]).astype(np.int32))
