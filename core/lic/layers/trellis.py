"""Trellis-coded quantisation: each coefficient has one of two quantisers, as the parities of those before it say.

Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources" (1990); each of the two has a
zero, as in VVC's dependent quantisation (Schwarz et al., "Hybrid video coding with trellis-coded quantization", 2019).
The quantisers are coarse, and together fine: choosing the cheapest path through the trellis, an encoder packs its
errors into a ball better than any cube could.

Quantiser 0 has the even multiples of a unit, quantiser 1 the odd ones and zero; all relative to `nearest`, a multiple
of 2 units beside the mean that is expected, and mirrored where that mean lies below. Symbol j stands for
2 j - quantiser * sgn(j). Coefficients that are nearly surely zero gain nothing by it. They have quantiser 0, a smaller
unit, and no part in the trellis.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.entropy import PRECISION, Decoder, Encoder, SparseTable, Table, integer_frequencies
from lic.errors import FormatError
from lic.layers import lifting
from lic.layers.coefficients import (
    MEANS,
    SCALE_STEPS,
    SCALES,
    Calibration,
    logistic_tables,
    scale_index,
    scaled,
    unpack_tables,
)

FIRST, BROAD = 11, 27  # table scales, 0.2 and 2 steps, from where on: the trellis; and both quantisers code alike
TABLES = SCALES * MEANS  # of one quantiser
_FIRST_TABLE = FIRST * MEANS
_NARROW = (BROAD - FIRST) * MEANS  # tables from there on: of coefficients that are decoded row after row of the trellis
REACH = 16  # symbols farther out are escaped; in the trellis they are odd, so that the escape says how a path goes on
_AT_ONCE = 2**14  # symbols whose frequencies are gathered together
_LENGTH = 256  # coefficients, of the longest paths
_UNIT, _SURE_UNIT = 72, 64  # in 1 / 2**FRACTION steps

_MEMORY = 4  # the logarithm of the number of states
_PARITY_CHECKS = 0o23, 0o04  # Ungerboeck, "Channel coding with multilevel/phase signals" (1982), table I


def _machine() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The state that follows each state (states,) at each parity: (states, 2); and what leads to each state: the two
    states and, given them, the choices 2 * quantiser + parity, (2, 2, states)."""
    of_quantiser, of_parity = _PARITY_CHECKS
    following = np.zeros((2**_MEMORY, 2), np.intp)
    before: list[list[tuple[int, int]]] = [[] for _ in following]
    for state in range(2**_MEMORY):
        quantiser = state & 1
        for parity in (0, 1):
            after = (state >> 1) ^ (of_quantiser >> 1) * quantiser ^ (of_parity >> 1) * parity
            following[state, parity] = after
            before[after].append((state, 2 * quantiser + parity))
    return following, np.array(before).transpose(1, 2, 0)


_FOLLOWING, _BEFORE = _machine()


class Expected(NamedTuple):
    """What the prior says of coefficients, as int32 of one shape."""

    table: Tensor  # of quantiser 0; that of quantiser 1 is TABLES further
    nearest: Tensor  # of the multiples of 2 units, to the mean
    sign: Tensor  # -1 where the mean lies below that
    unit: Tensor  # in 1 / 2**FRACTION steps

    @staticmethod
    def of(mean: Tensor, log_scale: Tensor, finer: int | Tensor = 0) -> Expected:
        """finer: by how many quarters of an octave the step is smaller than that which mean and log_scale are in."""
        scale = scale_index(log_scale, finer)
        in_trellis = scale >= FIRST
        fine_mean = scaled((mean * 1024).round().int(), finer)
        unit = torch.where(in_trellis, _UNIT, _SURE_UNIT).int()
        # In eighths of 2 units, rounded half up. Everything is exact, and so is all that follows.
        eighths = torch.div(fine_mean + unit, 2 * unit, rounding_mode="floor")
        nearest = (eighths + 4) >> 3
        offset = eighths - (nearest << 3)  # -4..3
        return Expected(scale * MEANS + offset.abs(), nearest, 1 - 2 * (offset < 0).int(), unit)

    def at(self, which: Tensor) -> Expected:
        return Expected(*(x[which] for x in self))

    def positions(self, values: Tensor) -> Tensor:
        """Real values in steps -> where they are, in units, relative to `nearest`, mirrored as `sign` says."""
        return self.sign * (values * 2**lifting.FRACTION / self.unit - 2 * self.nearest)

    def cells(self, symbols: Tensor, quantisers: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper end, in steps, of what is nearer to a symbol than to others of its quantiser."""
        ends = [
            (2 * self.nearest + self.sign * end) * self.unit / 2**lifting.FRACTION for end in cell(symbols, quantisers)
        ]
        return torch.minimum(*ends), torch.maximum(*ends)

    def values(self, symbols: Tensor, quantisers: Tensor, points: Tensor) -> Tensor:
        """What symbols stand for, int32 in 1 / 2**FRACTION steps; points in the same unit, at `point_index`."""
        moved = points.round().int()[point_index(self.table + TABLES * quantisers, symbols)]
        return (2 * self.nearest + self.sign * position(symbols, quantisers)) * self.unit + self.sign * moved


def position(symbols: Tensor, quantisers: Tensor) -> Tensor:
    """Of symbols, in units."""
    return 2 * symbols - quantisers * symbols.sign()


def cell(symbols: Tensor, quantisers: Tensor) -> tuple[Tensor, Tensor]:
    """Whatever is nearer to a symbol than to others of its quantiser: lower and upper end, in units."""
    distance = position(symbols, quantisers).abs()
    first = torch.where(quantisers > 0, 0.5, 1.0)  # the end of the cell around zero
    inner = torch.where(distance == 0, -first, torch.maximum(distance - 1, first))
    outer = torch.where(distance == 0, first, distance + 1)
    below = symbols < 0
    return torch.where(below, -outer, inner), torch.where(below, -inner, outer)


# Where in its cell a coefficient is reconstructed depends on its table and symbol; symbols beyond +-2 share points.
_POINTS_REACH = 2
_POINTS = 2 * _POINTS_REACH + 1
POINTS = 2 * TABLES * _POINTS


def point_index(table: Tensor, symbols: Tensor) -> Tensor:
    return table * _POINTS + symbols.clamp(-_POINTS_REACH, _POINTS_REACH) + _POINTS_REACH


class Centroids:
    """Where in their cells coefficients are, for points to follow."""

    _BELIEF = 2000  # coefficients that a point counts as much as

    def __init__(self, device: torch.device):
        self._sums, self._counts = torch.zeros(2, POINTS, device=device)

    def add(self, values: Tensor, expected: Expected, symbols: Tensor, quantisers: Tensor) -> None:
        """Values in steps, and as what they are coded."""
        at = point_index(expected.table + TABLES * quantisers, symbols).flatten()
        off = expected.positions(values) - position(symbols, quantisers)
        self._sums.index_add_(0, at, (off * expected.unit).flatten())
        self._counts.index_add_(0, at, torch.ones_like(at, dtype=torch.float32))

    def moved(self, points: Tensor) -> Tensor:
        """Points, see `Expected.values`, nearer to where the coefficients are."""
        return (self._sums + self._BELIEF * points) / (self._counts + self._BELIEF)


class Prices(NamedTuple):
    """What choices cost: weights * squared error, in squared steps, + lagrangian * bits."""

    bits: Tensor  # (2 * TABLES, 2 * REACH + 1), of symbols -REACH..REACH
    points: Tensor  # see `Expected.values`
    lagrangian: float
    weights: Tensor | None = None  # of values, one each; or all count alike

    def at(self, which: Tensor) -> Prices:
        return self if self.weights is None else self._replace(weights=self.weights[which])

    def of(self, symbols: Tensor, quantisers: Tensor, x: Tensor, expected: Expected) -> Tensor:
        """x: what they stand for, see `Expected.positions`."""
        table = expected.table + TABLES * quantisers
        moved = self.points[point_index(table, symbols)]
        error = ((x - position(symbols, quantisers)) * expected.unit - moved) / 2**lifting.FRACTION
        squared = error.square() if self.weights is None else error.square() * self.weights
        return squared + self.lagrangian * self.bits[table, symbols.clamp(-REACH, REACH) + REACH]


@torch.no_grad()
def rounded(values: Tensor, expected: Expected, prices: Prices) -> tuple[Tensor, Tensor]:
    """Values of any shape, real numbers in steps -> of quantiser 0's two symbols beside each the cheaper one, and the
    quantisers, int32."""
    return _rounded(expected.positions(values), expected, prices)


def _rounded(x: Tensor, expected: Expected, prices: Prices) -> tuple[Tensor, Tensor]:
    lower = torch.floor(x / 2).int()
    quantisers = torch.zeros_like(lower)
    costs = [prices.of(symbols, quantisers, x, expected) for symbols in (lower, lower + 1)]
    return lower + (costs[1] < costs[0]).int(), quantisers


@torch.no_grad()
def quantise(values: Tensor, expected: Expected, prices: Prices) -> tuple[Tensor, Tensor]:
    """Values, real numbers in steps -> the symbols and quantisers, int32, of the cheapest path through the trellis. Of
    any shape, but of one dimension where they have weights."""
    flat = Expected(*(x.flatten() for x in expected))
    x = flat.positions(values.flatten())
    symbols, quantisers = _rounded(x, flat, prices)
    which = torch.cat([torch.nonzero(kind)[:, 0] for kind in (_narrow(flat.table), _broad(flat.table))])
    if len(which):
        choices = _choices(x[which], flat.at(which), prices.at(which))
        costs_each = torch.stack([cost for cost, _ in choices]).cpu().numpy()
        chosen = torch.from_numpy(_cheapest_path(costs_each)).to(x.device)
        symbols[which] = torch.stack([symbols for _, symbols in choices]).gather(0, chosen[None])[0]
        quantisers[which] = (chosen >> 1).int()
    return symbols.view(values.shape), quantisers.view(values.shape)


def _choices(x: Tensor, expected: Expected, prices: Prices) -> list[tuple[Tensor, Tensor]]:
    """Cost and symbol of the best choice at 2 * quantiser + parity."""
    out = []
    side = torch.where(x < 0, -1, 1).int()
    narrow = _narrow(expected.table)
    for quantiser in (0, 1):
        quantisers = torch.full_like(expected.table, quantiser)
        for parity in (0, 1):
            near = 2 * torch.floor((x.abs() + quantiser - 2 * parity) / 4).int() + parity
            one, two = side * near, side * (near + 2)
            costs = [prices.of(symbols, quantisers, x, expected) for symbols in (one, two)]
            if parity == 0:
                beyond = [narrow & (symbols.abs() > REACH) for symbols in (one, two)]
                costs = [torch.where(far, math.inf, cost) for far, cost in zip(beyond, costs, strict=True)]
            cheaper = costs[1] < costs[0]
            out.append((torch.minimum(*costs), torch.where(cheaper, two, one)))
    return out


def _narrow(tables: Any) -> Any:
    """Of which tables, a tensor or an array, coefficients are coded each with its own frequencies."""
    return (tables >= _FIRST_TABLE) & (tables < _FIRST_TABLE + _NARROW)


def _broad(tables: Any) -> Any:
    """And of which they only are part of the trellis."""
    return tables >= _FIRST_TABLE + _NARROW


def _width(count: int) -> int:
    return count // _LENGTH + 1


def _rows(start: int, stop: int, width: int) -> list[slice]:
    """The coefficients of a pass, row after row of a rectangle: each column is a path of its own. Long paths gain more;
    short rows take more time."""
    return [slice(first, min(first + width, stop)) for first in range(start, stop, width)]


def _cheapest_path(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The Viterbi algorithm: costs (4, n) of each choice 2 * quantiser + parity -> the choices (n,) of the cheapest
    path in each column of `_rows`, starting in state 0."""
    width = _width(costs.shape[1])
    rows = _rows(0, costs.shape[1], width)
    totals = np.full((2**_MEMORY, width), np.inf, np.float32)
    totals[0] = 0
    (one, one_choice), (two, two_choice) = _BEFORE
    second = []
    for row in rows:
        now, here = totals[:, : row.stop - row.start], costs[:, row]
        through_one, through_two = now[one] + here[one_choice], now[two] + here[two_choice]
        second.append(through_two < through_one)
        np.minimum(through_one, through_two, out=now)
    states, columns = totals.argmin(0), np.arange(width)
    choices = np.empty(costs.shape[1], np.int64)
    for row, from_second in zip(reversed(rows), reversed(second), strict=True):
        count = row.stop - row.start
        way = from_second[states[:count], columns[:count]].astype(np.intp)
        choices[row] = _BEFORE[way, 1, states[:count]]
        states[:count] = _BEFORE[way, 0, states[:count]]
    return choices


# Entries of a narrow coefficient's table: symbols 0, 1, -1, 2, … -REACH, and the escape, which counts as odd.
_ENTRIES = 2 * REACH + 2
_ESCAPE = _ENTRIES - 1
_SYMBOLS = np.array([*sorted(range(-REACH, REACH + 1), key=lambda s: (abs(s), -s)), -REACH - 1], np.int32)
# What follows a state, by entry. States count as _NARROW each, which is more than there are entries: so one sum says
# where a state's tables are, too.
_AFTER = np.zeros((2**_MEMORY, _NARROW), np.intp)
_AFTER[:, :_ENTRIES] = _FOLLOWING[:, _SYMBOLS & 1] * _NARROW
_QUANTISERS = np.arange(2**_MEMORY) & 1


class Tables:
    """What symbols are coded with. shared: a table for each scale and mean, for those not in the trellis and for broad
    ones; frequencies (2 * _NARROW, 2 + 2 * REACH) of an escape and of -REACH..REACH, for all others."""

    def __init__(self, shared: list[Table], frequencies: NDArray[np.integer]):
        self.shared = shared
        sure = [SparseTable(table.first, table.frequencies) for table in shared[:_FIRST_TABLE]]
        self._of_passes = [*sure, *shared[_FIRST_TABLE:]]
        self._frequencies = np.ascontiguousarray(frequencies[:, _SYMBOLS + REACH + 1], np.float64)  # as entries
        self._by_state = self._frequencies.reshape(2, _NARROW, -1)[_QUANTISERS].reshape(-1, _ENTRIES)

    @staticmethod
    def unpack(shipped: dict[str, Tensor]) -> Tables:
        """Take them out of what was shipped."""
        return Tables(unpack_tables(shipped), shipped.pop("trellis").numpy())

    def bits(self) -> Tensor:
        """As `quantise` takes them."""
        symbols = np.arange(-REACH, REACH + 1)
        shared = []
        for table in self.shared:
            entries = symbols - table.first
            shared.append(table.bits()[np.where((entries < 0) | (entries >= table.size), 0, entries + 1)])
        out = np.stack([shared, shared])
        ascending = self._frequencies[:, np.argsort(_SYMBOLS)[1:]]
        narrow = (PRECISION - np.log2(ascending)).reshape(2, _NARROW, -1)
        out[:, _FIRST_TABLE : _FIRST_TABLE + _NARROW] = narrow
        return torch.from_numpy(out.astype(np.float32)).flatten(0, 1)

    def encode(self, encoder: Encoder, table: Tensor, symbols: Tensor, quantisers: Tensor) -> None:
        """Those of a pass, (n,); table is that of quantiser 0."""
        tables, numbers, choices = (x.cpu().numpy() for x in (table, symbols, quantisers))
        narrow = _narrow(tables)
        encoder.encode(numbers[~narrow], tables[~narrow], self._of_passes)
        rows, numbers = _narrow_row(tables[narrow], choices[narrow]), numbers[narrow]
        entries = np.where(numbers > 0, 2 * numbers - 1, -2 * numbers).clip(max=_ESCAPE)
        for start in range(0, len(rows), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            encoder.entries(entries[here], self._frequencies[rows[here]])
        encoder.escapes(numbers + REACH, 2 * REACH + 1)

    def decode(self, decoder: Decoder, table: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols and quantisers of a pass, (n,) int32."""
        tables = table.cpu().numpy()
        apart = _narrow(tables)
        narrow, shared, broad = (np.flatnonzero(kind) for kind in (apart, ~apart, _broad(tables)))
        symbols, quantisers = np.zeros_like(tables), np.zeros_like(tables)
        symbols[shared] = decoder.decode(tables.take(shared), self._of_passes)
        count = len(narrow) + len(broad)
        width = _width(count)
        states = np.zeros(count + width, np.intp)  # before each coefficient, and `width` further after it
        rows = tables[narrow] - _FIRST_TABLE
        entries = np.concatenate([np.zeros_like(narrow), symbols[broad] & 1])  # of broad ones, the parity is enough
        after = _AFTER.ravel()
        for here in [*_rows(0, len(narrow), width), *_rows(len(narrow), count, width)]:
            now = states[here]
            if here.stop <= len(narrow):
                entries[here] = decoder.entries(self._by_state.take(now + rows[here], 0))
            states[here.start + width : here.stop + width] = after.take(now + entries[here])
        quantisers[np.concatenate([narrow, broad])] = states[:count] // _NARROW & 1
        numbers = decoder.escapes(_SYMBOLS.take(entries[: len(narrow)]) + REACH, 2 * REACH + 1) - REACH
        if (numbers[abs(numbers) > REACH] % 2 == 0).any():
            raise FormatError("the coded data is damaged: an even number was escaped")
        symbols[narrow] = numbers
        return torch.from_numpy(symbols).to(table.device), torch.from_numpy(quantisers).to(table.device)


def _narrow_row(tables: NDArray[np.integer], quantisers: NDArray[np.integer]) -> NDArray[np.integer]:
    """Where the frequencies are."""
    return tables - _FIRST_TABLE + _NARROW * quantisers


def _logistic_frequencies() -> NDArray[np.int64]:
    symbols = torch.arange(-REACH, REACH + 1)
    out = []
    for quantiser in (0, 1):
        lower, upper = (end.double().numpy() for end in cell(symbols, torch.full_like(symbols, quantiser)))
        for scale in SCALE_STEPS[FIRST:BROAD]:
            for mean in range(MEANS):
                ends = ((x - mean / 4) * (_UNIT / 2**lifting.FRACTION / scale) for x in (lower, upper))
                below, above = (1 / (1 + np.exp(-np.clip(x, -700, 700))) for x in ends)
                inside = np.maximum(above - below, 1e-9)
                out.append(integer_frequencies(np.append(max(1 - inside.sum(), 1e-7), inside)))
    return np.stack(out)


def _shared_scales() -> list[float]:
    """Of the shared tables, in what their symbols are apart."""
    return [*SCALE_STEPS[:BROAD], *(scale * 2**lifting.FRACTION / (2 * _UNIT) for scale in SCALE_STEPS[BROAD:])]


@lru_cache
def logistic_costs() -> Tensor:
    """As `quantise` takes them, of the tables that a trained network starts with."""
    return Tables(logistic_tables(_shared_scales()), _logistic_frequencies()).bits()


class Counts:
    """Tables from counts of the symbols that pictures have, as `Calibration` makes them."""

    def __init__(self) -> None:
        self._shared = Calibration(_shared_scales())
        start = _logistic_frequencies()
        self._narrow = start * (Calibration.BELIEF / start.sum(1, keepdims=True))

    def count(self, table: Tensor, symbols: Tensor, quantisers: Tensor) -> None:
        """Those of a pass, int32 (n,)."""
        tables, numbers, choices = (x.numpy() for x in (table, symbols, quantisers))
        narrow = _narrow(tables)
        self._shared.count(table[~narrow], symbols[~narrow])
        entries = np.where(abs(numbers) > REACH, 0, numbers + REACH + 1)
        np.add.at(self._narrow, (_narrow_row(tables, choices)[narrow], entries[narrow]), 1)

    def packed(self) -> dict[str, Tensor]:
        """The tables as they are shipped."""
        narrow = np.stack([integer_frequencies(row) for row in self._narrow])
        return self._shared.packed() | {"trellis": torch.from_numpy(narrow.astype(np.int32))}
