"""A Gaussian-mixture conditional (arXiv 1912.12817): its bits in training, and the same in integers, to code with.

What a network gives of a mixture is relative to a scale s that is known beforehand: each component has the logarithm of
its weight, its mean in units of s, and the logarithm of its scale in units of s.

In files, all is integers: logarithms in 1 / OCTAVE, means in 1 / 64 steps, a component's cumulative out of a table
(the weights file holds its knots) at the distance in scales. There are two ways to code. Where a latent is nearly
surely zero, how surely chooses one of SURE tables, which follow the training pictures. Elsewhere it is coded in two
digits with the mixture's own frequencies: what it is in units of 2**shift, then the rest. The shift follows from the
mixture's width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lic.entropy import PRECISION, Decoder, Encoder, Table, integer_frequencies
from lic.layers import gaussian
from lic.layers.gain import OCTAVE, POWER_BITS, POWERS
from lic.layers.gaussian import NARROWEST, at_least_narrowest

COMPONENTS = 3
PARAMETERS = 3 * COMPONENTS  # of a latent
WIDEST = 9.5  # the logarithms of the scales that files know are between NARROWEST and this
_TAIL, _WIDER = 1e-3, 4  # a thousandth of a mixture is Cauchy-distributed, so many times as wide

SURE, SURE_REACH = 60, 2  # tables for latents that are nearly surely zero, and the largest symbol there
_PER_OCTAVE, _LEAST_SURE = 4, 5  # in table k, anything but zero has the probability 2**(-k / 4 - 5)
_BELIEF = 2000.0  # symbols that what the mixtures say of a table counts as much as
_SHIFTS = 0, 2, 4, 7
_DIGITS = 16  # what the first digit can be, beside an escape
_ROWS = 8192  # latents that frequencies are computed for at once

_UNIT_BITS = 6  # fractional bits of means, in steps
_OCTAVE_BITS = OCTAVE.bit_length() - 1
_WEIGHTS = np.array([round(2 ** (10 - i / OCTAVE)) for i in range(12 * OCTAVE)], np.int64)
_FAR = 16  # scales away from a mean, where cumulatives end
_KNOT_BITS, _LENGTH_BITS = 6, 11  # fractional bits of distances, in scales: of the knots, and in all
_LIMIT = _FAR << _LENGTH_BITS
_NARROWEST, _WIDEST = round(NARROWEST * OCTAVE), round(WIDEST * OCTAVE)
# Of anything but zero, from the surest table to the least sure: up to where a table is the nearest, in 2**-PRECISION.
_OTHERS = np.array([round(2 ** (PRECISION - _LEAST_SURE - (k - 0.5) / _PER_OCTAVE)) for k in reversed(range(SURE))])


def first_parameters(channels: int) -> Tensor:
    """Of components half as wide, as wide and twice as wide as the known scale, (PARAMETERS * channels,)."""
    start = torch.zeros(3, COMPONENTS, channels)
    start[0, 1], start[2] = 1.0, torch.tensor([-1.0, 0.0, 1.0])[:, None]
    return start.flatten()


def mixture_bits(symbols: Tensor, log2_scale: Tensor, parameters: Tensor) -> Tensor:
    """Bits of symbols, integers or with uniform noise added, (N, C, H, W), as is log2_scale. parameters (N, PARAMETERS
    * C, H, W) are a network's: logarithms of weights, means, logarithms of scales, component after component."""
    weights, means, widths = parameters.unflatten(1, (3, COMPONENTS, -1)).unbind(1)
    base = at_least_narrowest(log2_scale.clamp(max=WIDEST))
    inverse = torch.exp2(-at_least_narrowest(log2_scale[:, None] + widths))
    distance = symbols[:, None] - means * torch.exp2(base)[:, None]
    upper, lower = ((distance + half) * inverse * 0.5**0.5 for half in (0.5, -0.5))
    inside = (torch.erf(upper) - torch.erf(lower)) * (F.softmax(weights * math.log(2), 1) * (0.5 - _TAIL / 2))
    reach = torch.exp2(base) * _WIDER + 0.5
    tail = _TAIL / math.pi * reach / (reach.square() + symbols.square())  # an outlier keeps its gradient
    return -torch.log2(inside.sum(1) + tail)


def knots() -> Tensor:
    """A component's cumulative from -_FAR to _FAR scales, 1 being 2**PRECISION; int32."""
    at = torch.arange(-_FAR << _KNOT_BITS, (_FAR << _KNOT_BITS) + 1).double() / 2**_KNOT_BITS
    cumulative = torch.special.ndtr(at) * (1 - _TAIL) + (0.5 + torch.atan(at / _WIDER) / math.pi) * _TAIL
    return (cumulative * 2**PRECISION).round().int()


def cumulative(knots: Tensor) -> NDArray[np.int64]:
    """The knots, and, linearly, what lies between them: (2 * _LIMIT + 1,)."""
    values, parts = knots.numpy().astype(np.int64), 2 ** (_LENGTH_BITS - _KNOT_BITS)
    steps = np.arange(parts) * np.diff(values)[:, None] // parts
    return np.append(values[:-1, None] + steps, values[-1])


def _power(logarithm: NDArray[np.int64]) -> NDArray[np.int64]:
    """2**(logarithm / OCTAVE), between 2**-12 and 2**12, in 2**-POWER_BITS."""
    return (POWERS[logarithm & (OCTAVE - 1)] << ((logarithm >> _OCTAVE_BITS) + 12)) >> 12


def relative(symbols: Tensor, log2_scale: Tensor) -> Tensor:
    """Symbols (any integers) in sixteenths of their scales, whose logarithms are integers in 1 / OCTAVE: int64."""
    powers = torch.from_numpy(POWERS).to(symbols.device)
    logarithm = -log2_scale.long().clamp(_NARROWEST, _WIDEST)
    power = (powers[logarithm & (OCTAVE - 1)] << ((logarithm >> _OCTAVE_BITS) + 12)) >> 12
    return (symbols * power + (1 << POWER_BITS - 5)) >> (POWER_BITS - 4)


class Mixtures(NamedTuple):
    """Those of n latents, int64; row k is what component k has."""

    weights: NDArray[np.int64]  # (COMPONENTS, n)
    means: NDArray[np.int64]  # (COMPONENTS, n), in 2**-_UNIT_BITS steps
    inverses: NDArray[np.int64]  # (COMPONENTS, n), of the scales, in 2**-POWER_BITS
    cumulative: NDArray[np.int64]  # of a component, as the function of that name gives it

    @staticmethod
    def of(parameters: Tensor, log2_scale: Tensor, cumulative: NDArray[np.int64]) -> Mixtures:
        """parameters (PARAMETERS * C, m), exact in float32, log2_scale (C, m) int64 in 1 / OCTAVE; n is C * m."""
        integers = (parameters * OCTAVE).round().long().cpu().numpy().reshape(3, COMPONENTS, -1)
        weights, means, widths = integers
        known = log2_scale.cpu().numpy().ravel()
        return Mixtures(
            _WEIGHTS[(weights.max(0) - weights).clip(0, len(_WEIGHTS) - 1)],
            means.clip(-64 * OCTAVE, 64 * OCTAVE) * _power(known.clip(_NARROWEST, _WIDEST))
            >> _OCTAVE_BITS + POWER_BITS - _UNIT_BITS,
            _power(-(known + widths).clip(_NARROWEST, _WIDEST)),
            cumulative,
        )

    def at(self, which: NDArray[np.intp]) -> Mixtures:
        return Mixtures(self.weights[:, which], self.means[:, which], self.inverses[:, which], self.cumulative)

    def total(self) -> NDArray[np.int64]:
        return self.weights.sum(0) << PRECISION

    def below(self, integers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of `total`, what lies below each of the integers (n, m)."""
        edges, out = (integers << _UNIT_BITS) - (1 << _UNIT_BITS - 1), np.zeros_like(integers)
        for weights, means, inverses in zip(self.weights, self.means, self.inverses, strict=True):
            distances = (edges - means[:, None]) * inverses[:, None] >> _UNIT_BITS + POWER_BITS - _LENGTH_BITS
            out += self.cumulative[distances.clip(-_LIMIT, _LIMIT) + _LIMIT] * weights[:, None]
        return out

    def sure_tables(self) -> NDArray[np.int64]:
        """The table of each latent that is nearly surely zero, (n,); -1 for all others."""
        edges = self.below(np.repeat([[0, 1]], len(self.weights[0]), 0))
        other = ((self.total() - edges[:, 1] + edges[:, 0]) << PRECISION) // self.total()
        return SURE - 1 - np.searchsorted(_OTHERS, other)

    def by_width(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64], int]]:
        """Which latents have which shift, and the smallest integer that their first digit can stand for."""
        reach = (4 << _UNIT_BITS + POWER_BITS) // self.inverses
        matters = self.weights * 32 > self.weights.max(0)
        low = np.where(matters, self.means - reach, 2**60).min(0) >> _UNIT_BITS
        high = np.where(matters, self.means + reach, -(2**60)).max(0) >> _UNIT_BITS
        width = np.searchsorted([_DIGITS << shift for shift in _SHIFTS[:-1]], high - low + 2)
        for index, shift in enumerate(_SHIFTS):
            which = np.flatnonzero(width == index)
            start = ((low + high + 1) >> 1) - (_DIGITS // 2 << shift)
            for first in range(0, len(which), _ROWS):
                part = which[first : first + _ROWS]
                yield part, start[part], shift

    def first_digit(self, start: NDArray[np.int64], shift: int) -> NDArray[np.float64]:
        """Frequencies (n, 1 + _DIGITS): of an escape and of each digit."""
        below = self.below(start[:, None] + (np.arange(_DIGITS + 1) << shift))
        return _frequencies(self.total() - below[:, -1] + below[:, 0], below)

    def second_digit(self, start: NDArray[np.int64], shift: int) -> NDArray[np.float64]:
        """Likewise, given the first: of the integers start, start + 1, ..."""
        below = self.below(start[:, None] + np.arange(2**shift + 1))
        return _frequencies(np.zeros_like(start), below)


def _frequencies(outside: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.column_stack([outside, np.diff(below)]) + 1.0


def encode(encoder: Encoder, symbols: NDArray[np.int64], mixtures: Mixtures, family: list[Table]) -> None:
    """symbols (n,), each under its own mixture."""
    tables = mixtures.sure_tables()
    sure, others = np.flatnonzero(tables >= 0), np.flatnonzero(tables < 0)
    encoder.encode(symbols[sure], tables[sure], family)
    symbols, mixtures = symbols[others], mixtures.at(others)
    for which, start, shift in mixtures.by_width():
        these = mixtures.at(which)
        first = (symbols[which] - start) >> shift
        encoder.encode_each(first, these.first_digit(start, shift))
        if shift:
            start += first << shift
            encoder.encode_each(symbols[which] - start, these.second_digit(start, shift))


def decode(decoder: Decoder, mixtures: Mixtures, family: list[Table]) -> NDArray[np.int64]:
    """The inverse: symbols (n,)."""
    tables = mixtures.sure_tables()
    sure, others = np.flatnonzero(tables >= 0), np.flatnonzero(tables < 0)
    symbols = np.empty(len(tables), np.int64)
    symbols[sure] = decoder.decode(tables[sure], family)
    mixtures = mixtures.at(others)
    for which, start, shift in mixtures.by_width():
        these = mixtures.at(which)
        start += decoder.decode_each(these.first_digit(start, shift)).astype(np.int64) << shift
        if shift:
            start += decoder.decode_each(these.second_digit(start, shift))
        symbols[others[which]] = start
    return symbols


def count(counts: NDArray[np.float64], symbols: NDArray[np.int64], mixtures: Mixtures) -> None:
    """Count the symbols of each table for surely zero latents into counts (SURE, 2 * SURE_REACH + 2)."""
    tables = mixtures.sure_tables()
    gaussian.count(counts, tables[tables >= 0], symbols[tables >= 0])


def calibrated(counts: NDArray[np.float64]) -> Tensor:
    """Frequencies of those tables, an escape's first, int32: as the mixtures have them, then as was counted."""
    other = 2.0 ** (-np.arange(SURE) / _PER_OCTAVE - _LEAST_SURE)[:, None]
    prior = other * np.array([0.002, 0.009, 0.49, 0, 0.49, 0.009])
    prior[:, SURE_REACH + 1] = 1 - other[:, 0]
    return torch.from_numpy(np.stack([integer_frequencies(row) for row in counts + prior * _BELIEF]).astype(np.int32))
