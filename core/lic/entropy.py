"""Symbols <-> bytes over constriction's range coder, from integer probability tables.

A symbol is an integer; its table is chosen by index. Symbols are coded grouped by table: all those of one table are a
single vectorised call, or some few. Whatever lies outside a table is escaped: the table's entry 0, then an Exp-Golomb
code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from lic.errors import FormatError

PRECISION = 24  # the frequencies of a table sum to 2**PRECISION
_LATE_ESCAPES = 2**14
_ESCAPE_LIMIT = 22  # binary digits, after the first, of the largest escaped number
# Whose frequencies, exact in float64, come with the call: row by row in memory, or they are taken for others.
_EACH = constriction.stream.model.Categorical(perfect=False)


class Table:
    """Frequencies of the escape and of the integers first, first + 1, ...; they sum to 2**PRECISION."""

    def __init__(self, first: int, frequencies: Sequence[int] | NDArray[np.integer]):
        numbers = np.asarray(frequencies, np.int64)
        if numbers.ndim != 1 or len(numbers) < 2 or numbers.min() < 1 or numbers.sum() != 2**PRECISION:
            raise ValueError(f"a table needs two or more positive frequencies that sum to 2**{PRECISION}")
        self.first = first
        self.frequencies = numbers
        self.size = len(numbers) - 1
        # Multiples of 2**-24 are exact in float64, and so is what constriction makes of them.
        self.model = constriction.stream.model.Categorical(numbers / 2.0**PRECISION, perfect=False)

    def bits(self) -> NDArray[np.float32]:
        """The cost of each entry, the escape (without its number) first."""
        return (PRECISION - np.log2(self.frequencies)).astype(np.float32)

    def put(self, entries: NDArray[np.int32], encode: Callable[..., None]) -> None:
        """Entries (n,), with encode(entries, model)."""
        encode(entries, self.model)

    def take(self, count: int, decode: Callable[..., NDArray[np.int32]]) -> NDArray[np.int32]:
        """The inverse, with decode(count, model)."""
        return decode(count, self.model)


class SparseTable(Table):
    """A table whose integers are nearly all zero. Where there are many of them, they come in blocks: whether each block
    has others than zeros; where the first of these are; they themselves; and, one by one, what follows them in their
    blocks, and what is left over by the blocks. This takes as many bits, and less time.
    """

    def __init__(self, first: int, frequencies: Sequence[int] | NDArray[np.integer]):
        super().__init__(first, frequencies)
        self._zero = 1 - first  # the entry
        chance = int(self.frequencies[self._zero])
        self._chances = [chance]  # that blocks of 1, 2, 4, ... are zeros, as frequencies; as long as most blocks are
        while (chance := chance * chance >> PRECISION) > 0.9 * 2**PRECISION:
            self._chances.append(chance)
        others = self.frequencies.astype(np.float64)
        others[self._zero] = 1
        self._others = Table(first, integer_frequencies(others)).model

    def _blocks(self, count: int) -> tuple[int, Any] | None:
        """The size of the blocks of so many integers, and the model of whether they have others than zeros; nothing
        where blocks wouldn't save time."""
        if count < 1024 or len(self._chances) < 4:
            return None
        size = min(len(self._chances) - 1, (2 * count).bit_length() // 2)  # blocks and rest are fewest at the root
        zeros = self._chances[size]
        frequencies = np.array([zeros, 2**PRECISION - zeros]) / 2.0**PRECISION
        return 1 << size, constriction.stream.model.Categorical(frequencies, perfect=False)

    def put(self, entries: NDArray[np.int32], encode: Callable[..., None]) -> None:
        if not (blocked := self._blocks(len(entries))):
            super().put(entries, encode)
            return
        size, model = blocked
        whole = len(entries) // size * size
        blocks = entries[:whole].reshape(-1, size)
        others = blocks != self._zero
        hit = others.any(1)
        encode(hit.astype(np.int32), model)
        blocks, places = blocks[hit], others[hit].argmax(1)
        encode(places.astype(np.int32), constriction.stream.model.Uniform(size))
        encode(blocks[np.arange(len(blocks)), places], self._others)
        after = np.arange(size) > places[:, None]
        encode(np.concatenate([blocks[after], entries[whole:]]), self.model)

    def take(self, count: int, decode: Callable[..., NDArray[np.int32]]) -> NDArray[np.int32]:
        if not (blocked := self._blocks(count)):
            return super().take(count, decode)
        size, model = blocked
        whole = count // size * size
        hit = np.flatnonzero(decode(whole // size, model))
        places = decode(len(hit), constriction.stream.model.Uniform(size))
        entries = np.full(count, self._zero, np.int32)
        blocks = entries[:whole].reshape(-1, size)
        blocks[hit, places] = decode(len(hit), self._others)
        rows, columns = np.nonzero(np.arange(size) > places[:, None])
        rest = decode(len(rows) + count - whole, self.model)
        blocks[hit[rows], columns] = rest[: len(rows)]
        entries[whole:] = rest[len(rows) :]
        return entries


def integer_frequencies(probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Probabilities (any positive weights) -> frequencies of at least 1 that sum to 2**PRECISION."""
    weights = np.asarray(probabilities, np.float64)
    free = 2**PRECISION - len(weights)
    frequencies = 1 + np.floor(weights / weights.sum() * free).astype(np.int64)
    frequencies[np.argmax(frequencies)] += 2**PRECISION - frequencies.sum()
    return frequencies


def _groups(tables: NDArray[np.integer]) -> tuple[NDArray[np.intp], list[tuple[int, slice]]]:
    """The positions sorted by table, of which there are less than 2**15, and where among them each table's are."""
    order = np.argsort(tables.astype(np.int16), kind="stable")  # a radix sort
    counts = np.bincount(tables)
    present = np.flatnonzero(counts)
    ends = np.cumsum(counts)[present]
    spans = zip(present.tolist(), (ends - counts[present]).tolist(), ends.tolist(), strict=True)
    return order, [(table, slice(start, end)) for table, start, end in spans]


class Encoder:
    """Codes integers into one stream of bytes, first in, first out."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, values: NDArray[np.integer], tables: NDArray[np.integer], family: Sequence[Table]) -> None:
        """values[i] is coded with family[tables[i]]; both (n,), any integers. Escaped numbers follow all others."""
        firsts, sizes = np.array([(table.first, table.size) for table in family]).T
        symbols, size = values - firsts[tables], sizes[tables]
        outside = (symbols < 0) | (symbols >= size)
        order, groups = _groups(tables)
        entries = np.where(outside, 0, symbols + 1).astype(np.int32)[order]
        for index, group in groups:
            family[index].put(entries[group], self._coder.encode)
        for i in order[outside[order]].tolist():
            self._escape(int(symbols[i]), int(size[i]))

    def encode_shared(self, values: NDArray[np.integer], table: Table) -> None:
        """All of the values (n,) are coded with one table."""
        self.encode(values, np.zeros(len(values), np.int16), [table])

    def encode_each(self, values: NDArray[np.integer], frequencies: NDArray[np.float64]) -> None:
        """values (n,), each with frequencies of its own (n, 1 + m): of the escape and of 0..m-1; positive integers."""
        size = frequencies.shape[1] - 1
        self.entries(np.where((values < 0) | (values >= size), 0, values + 1), frequencies)
        self.escapes(values, size)

    def entries(self, entries: NDArray[np.integer], frequencies: NDArray[np.float64]) -> None:
        """entries (n,), 0..m-1, each with frequencies of its own (n, m), positive integers. Likely ones that come first
        are decoded faster."""
        self._coder.encode(entries.astype(np.int32), _EACH, np.ascontiguousarray(frequencies))

    def escapes(self, values: NDArray[np.integer], size: int) -> None:
        """Those of the values (n,) that lie outside 0..size-1."""
        for value in values[(values < 0) | (values >= size)].tolist():
            self._escape(value, size)

    def _escape(self, symbol: int, size: int) -> None:
        below = symbol < 0
        number = (-symbol if below else symbol - size + 1) + 1  # at least 2
        length = number.bit_length() - 1
        if length > _ESCAPE_LIMIT:
            raise ValueError(f"a symbol lies {number} outside its table; less than 2**{_ESCAPE_LIMIT + 1} can be coded")
        self.uniform([int(below)], 2)
        self.uniform([1] * (length - 1) + [0], 2)
        self.uniform([number >> i & 1 for i in reversed(range(length))], 2)

    def uniform(self, values: Sequence[int] | NDArray[np.integer], size: int) -> None:
        """Integers 0..size-1, all equally likely."""
        self._coder.encode(np.asarray(values, np.int32), constriction.stream.model.Uniform(size))

    def bytes(self) -> bytes:
        """What was coded, without the zero bytes at its end, which the decoder supplies."""
        return self._coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """The inverse of Encoder, over the same families in the same order.

    incomplete: the data was cut off; a call for symbols that hang on what is missing raises FormatError.
    """

    def __init__(self, data: bytes, incomplete: bool = False):
        self._incomplete = incomplete
        self._late = 0  # escapes after the data's end
        words = -(-len(data) // 4)
        numbers = np.frombuffer(data.ljust(4 * words, b"\0"), "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(numbers)
        if incomplete:  # what is the same whether zeros or ones follow is sure
            numbers = np.frombuffer(data.ljust(4 * words + 8, b"\xff"), "<u4").astype(np.uint32)
            self._other_coder = constriction.stream.queue.RangeDecoder(numbers)

    def decode(self, tables: NDArray[np.integer], family: Sequence[Table]) -> NDArray[np.int32]:
        """The values (n,) whose tables those are. Raises FormatError where the bytes can't be what an Encoder wrote."""
        order, groups = _groups(tables)
        symbols = np.empty(len(tables), np.int32)
        for index, group in groups:
            symbols[group] = family[index].take(group.stop - group.start, self._take)
        escaped = np.flatnonzero(symbols == 0)
        for index, group in groups:
            symbols[group] += family[index].first - 1
        for at in escaped.tolist():
            table = family[tables[order[at]]]
            symbols[at] = table.first + self._escape(table.size)
        values = np.zeros_like(symbols)
        which = np.flatnonzero(symbols != 0)  # mostly few
        values[order.take(which)] = symbols.take(which)
        return values

    def decode_shared(self, count: int, table: Table) -> NDArray[np.int32]:
        """The next values (count,), all coded with one table."""
        return self.decode(np.zeros(count, np.int16), [table])

    def decode_each(self, frequencies: NDArray[np.float64]) -> NDArray[np.int32]:
        """The next values (n,), each with frequencies of its own."""
        return self.escapes(self.entries(np.ascontiguousarray(frequencies)) - 1, frequencies.shape[1] - 1)

    def entries(self, frequencies: NDArray[np.float64]) -> NDArray[np.int32]:
        """The next entries (n,), each with frequencies of its own (n, m), row by row in memory."""
        return self._take(frequencies, _EACH)

    def escapes(self, values: NDArray[np.int32], size: int) -> NDArray[np.int32]:
        """The values (n,), and, for each -1, the number that was escaped."""
        for at in np.flatnonzero(values == -1).tolist():
            values[at] = self._escape(size)
        return values

    def _escape(self, size: int) -> int:
        self._late += self._coder.maybe_exhausted()
        if self._late > _LATE_ESCAPES:  # zeros, which the decoder supplies, are escapes: it could go on for hours
            raise FormatError("the coded data ends too early")
        below = self.uniform(1, 2)[0]
        length = 1
        while self.uniform(1, 2)[0]:
            length += 1
            if length > _ESCAPE_LIMIT:
                raise FormatError("the coded data is damaged: an escaped number has no end")
        number = 1
        for bit in self.uniform(length, 2).tolist():
            number = number << 1 | bit
        return -(number - 1) if below else number - 1 + size - 1

    def uniform(self, count: int, size: int) -> NDArray[np.int32]:
        """The next integers (count,) of 0..size-1, all equally likely."""
        return self._take(count, constriction.stream.model.Uniform(size))

    def _take(self, parameters: int | NDArray[np.float64], model: Any) -> NDArray[np.int32]:
        """As many symbols as told, or one for each row of frequencies."""
        try:
            symbols = self._coder.decode(model, parameters)
            if self._incomplete and (self._other_coder.decode(model, parameters) != symbols).any():
                raise FormatError("the coded data ends too early")
            return symbols
        except AssertionError as error:
            raise FormatError("the coded data is damaged") from error
