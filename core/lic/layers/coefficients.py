"""Wavelet coefficients as integers: the table that codes each of them, and the stream that they make.

A stream is the table scales of the low band (a byte a plane); the lengths (varints) of all parts but the last; and the
parts, each of one range coder: the low band with the levels that aren't tiled, then each tile of each level, coarse to
fine. A picture of one tile is one part.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lic.codec import PlaneShape
from lic.container import Reader, write_varint
from lic.entropy import PRECISION, Decoder, Encoder, Table, integer_frequencies
from lic.errors import FormatError
from lic.layers import tiles
from lic.layers.band_prior import LEVELS, Pass

Decode = Callable[[Decoder, Tensor], tuple[Tensor, Tensor]]

# What the networks' outputs choose: 64 scales of a logistic, MEANS distances of its mean from the nearest integer.
SCALES, MEANS = 64, 5
_NARROWEST, _SCALES_PER_E = 3.2, 7  # scale k is exp(k / 7 - 3.2) steps


def logistic_bits(lower: Tensor, upper: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of what lies between, in steps, under a logistic, in log space throughout: an outlier keeps its gradient."""
    rate = torch.exp(-(3 * log_scale.float()).clamp(-6, 7))
    below, above = ((end - mean.float()) * rate for end in (lower, upper))
    nats = F.logsigmoid(-below) + F.logsigmoid(above) + torch.log(-torch.expm1(below - above))
    return nats * (-1 / math.log(2))


def scale_index(log_scale: Tensor, finer: int | Tensor = 0) -> Tensor:
    """The table scale that the prior's output chooses, int32, exactly. finer: by how many quarters of an octave the
    step is smaller than that which log_scale is in."""
    logarithm = (log_scale * 256).round().int() * (3 * _SCALES_PER_E) + finer * _QUARTER
    return (logarithm + round(_NARROWEST * _SCALES_PER_E * 256) + 128 >> 8).clamp(0, SCALES - 1)


def prediction(mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """What the prior says of each coefficient, as int32, exactly: its mean in eighths, its table scale."""
    return (mean * 8).round().int(), scale_index(log_scale)


def choose_tables(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From that, int32: the table's index, and how a coefficient's integer q becomes the symbol s that is coded with
    it: s = sign * (q - nearest)."""
    nearest = (mean + 4) >> 3
    offset = mean - (nearest << 3)  # -4..3
    return scale * MEANS + offset.abs(), nearest, 1 - 2 * (offset < 0).int()


# Each table's scale, in steps.
SCALE_STEPS = [math.exp(index / _SCALES_PER_E - _NARROWEST) for index in range(SCALES)]


_QUARTER = round(math.log(2) / 4 * _SCALES_PER_E * 256)
_FACTOR_BITS = 12
_FARTHEST = 22  # quarters of an octave that steps are finer or coarser by: 16 by level, up to 6 by place


@lru_cache
def _factors(device: torch.device) -> Tensor:
    quarters = range(-_FARTHEST, _FARTHEST + 1)
    return torch.tensor([round(2 ** (number / 4 + _FACTOR_BITS)) for number in quarters], device=device)


def scaled(x: Tensor, quarters: int | Tensor) -> Tensor:
    """x * 2**(quarters / 4), rounded half up, saturating at 2**30; int32. quarters: int32 of each, or one for all; then
    0 leaves everything as it is."""
    if isinstance(quarters, int) and not quarters:
        return x
    factor = _factors(x.device)[quarters + _FARTHEST]
    return (x.long() * factor + (1 << _FACTOR_BITS - 1) >> _FACTOR_BITS).clamp(-(2**30), 2**30).int()


def logistic_tables(scales: Sequence[float]) -> list[Table]:
    """The tables that a trained network starts with: table k * MEANS + m has scale k and its mean at m / 8."""
    tables = []
    for scale in scales:
        reach = min(127, 1 + math.ceil(12 * scale))
        for m in range(MEANS):
            edges = np.arange(-reach, reach + 2) - 0.5 - m / 8
            cumulative = 1 / (1 + np.exp(-np.clip(edges / scale, -700, 700)))
            inside = np.maximum(np.diff(cumulative), 1e-9)
            outside = max(1 - (cumulative[-1] - cumulative[0]), 1e-7)
            tables.append(Table(-reach, integer_frequencies(np.append(outside, inside))))
    return tables


class Calibration:
    """Tables from counts of the symbols that pictures have, a logistic counting as much as BELIEF symbols."""

    BELIEF = 2000.0

    def __init__(self, scales: Sequence[float]) -> None:
        self._start = logistic_tables(scales)
        self._counts = np.zeros((len(self._start), max(len(t.frequencies) for t in self._start)))
        self._firsts = np.array([t.first for t in self._start])
        self._sizes = np.array([t.size for t in self._start])

    def count(self, table: Tensor, symbols: Tensor) -> None:
        """Tables and symbols, int32 of any shape."""
        indices = table.flatten().numpy()
        entries = symbols.flatten().numpy() - self._firsts[indices]
        entries = np.where((entries < 0) | (entries >= self._sizes[indices]), 0, entries + 1)
        np.add.at(self._counts, (indices, entries), 1)

    def packed(self) -> dict[str, Tensor]:
        """The tables as they are shipped, beside the networks' weights."""
        frequencies = []
        for table, count in zip(self._start, self._counts, strict=True):
            belief = table.frequencies / 2.0**PRECISION * self.BELIEF
            frequencies.append(integer_frequencies(count[: len(belief)] + belief))
        return {
            "tables.first": torch.from_numpy(self._firsts.astype(np.int16)),
            "tables.length": torch.tensor([len(f) for f in frequencies], dtype=torch.int16),
            "tables.frequencies": torch.from_numpy(np.concatenate(frequencies).astype(np.int32)),
        }


def unpack_tables(shipped: dict[str, Tensor], name: str = "tables", kind: type[Table] = Table) -> list[Table]:
    """Take the tables out of what was shipped."""
    first, length, frequencies = (shipped.pop(f"{name}.{k}").numpy() for k in ("first", "length", "frequencies"))
    parts = np.split(frequencies, np.cumsum(length)[:-1])
    return [kind(int(start), part) for start, part in zip(first, parts, strict=True)]


class Inside:
    """The coefficients of one pass that exist: where a side is odd, high bands are a row or a column shorter than the
    arrays that hold them."""

    def __init__(self, shape: PlaneShape, this: Pass):
        area, (dy, dx) = this.area, this.phase
        height, width = tiles.size(shape.height, shape.width, this.level - 1)
        low = area.bottom - area.top, area.right - area.left
        high = min(area.bottom, height // 2) - area.top, min(area.right, width // 2) - area.left
        sides = ((low[0], high[1]), (high[0], low[1]), high)  # HL, LH, HH
        self.sides = [((rows - dy + 1) // 2, (columns - dx + 1) // 2) for rows, columns in sides]

    def take(self, x: Tensor) -> Tensor:
        """(1, C, h, w), C a multiple of the three bands -> (count,)."""
        bands = zip(x[0].chunk(3), self.sides, strict=True)
        return torch.cat([band[:, :rows, :columns].flatten() for band, (rows, columns) in bands])

    def put(self, values: Tensor, shape: torch.Size) -> Tensor:
        """The inverse; zero elsewhere."""
        out = values.new_zeros(shape)
        channels = shape[1] // 3
        parts = values.split([channels * rows * columns for rows, columns in self.sides])
        for band, part, (rows, columns) in zip(out[0].chunk(3), parts, self.sides, strict=True):
            band[:, :rows, :columns] = part.view(channels, rows, columns)
        return out


class BandsWriter:
    """Makes the stream of one picture. low: the low band (C, h, w), any integers."""

    def __init__(self, shape: PlaneShape, tables: list[Table], low: np.ndarray):
        self._shape = shape
        self._encoders: defaultdict[int, Encoder] = defaultdict(Encoder)
        residuals = predicted(low)
        self._scales = bytes(scale_of(plane) for plane in residuals)
        for plane, scale in zip(residuals, self._scales, strict=True):
            self._encoders[0].encode_shared(plane.ravel(), tables[scale * MEANS])

    def encoder(self, this: Pass) -> Encoder:
        """What codes a pass, after those before it."""
        return self._encoders[tiles.part(self._shape.height, self._shape.width, this.level, this.tile)]

    def bytes(self) -> bytes:
        parts = [self._encoders[i].bytes() for i in range(len(self._encoders))]
        return b"".join([self._scales, *(write_varint(len(part)) for part in parts[:-1]), *parts])


class BandsReader:
    """The inverse of BandsWriter. truncated: the stream is cut off, and what is missing is as predicted.

    Raises FormatError on a stream that no BandsWriter made.
    """

    def __init__(self, stream: bytes, shape: PlaneShape, tables: list[Table], truncated: bool):
        self._shape, self._truncated = shape, truncated
        reader = Reader(file := io.BytesIO(stream))
        scales = reader.take(shape.channels)
        if max(scales) >= SCALES:
            raise FormatError("the coded picture's header is damaged")
        lengths = [reader.varint(2**40) for _ in range(tiles.parts(shape.height, shape.width) - 1)]
        self._decoders = _decoders(file.read(), lengths, truncated)
        rows, columns = tiles.size(shape.height, shape.width, LEVELS)
        residuals = [self._decoders[0].decode_shared(rows * columns, tables[scale * MEANS]) for scale in scales]
        self.low = unpredicted(np.stack(residuals).reshape(shape.channels, rows, columns))

    def read(self, this: Pass, table: Tensor, decode: Decode) -> tuple[Tensor, Tensor]:
        """What decode(decoder, table) makes of a pass, int32 of the shape of table; zeros where the data is cut off."""
        part = tiles.part(self._shape.height, self._shape.width, this.level, this.tile)
        try:
            if decoder := self._decoders.get(part):
                return decode(decoder, table)
        except FormatError:
            if not self._truncated:
                raise
            del self._decoders[part]
        return torch.zeros_like(table), torch.zeros_like(table)


def _decoders(data: bytes, lengths: list[int], truncated: bool) -> dict[int, Decoder]:
    """What decodes each part, lengths being those of all but the last; where the data is cut off, there are fewer."""
    if sum(lengths) > len(data) and not truncated:
        raise FormatError("the coded picture's parts are longer than the whole")
    ends = [*itertools.accumulate(lengths), len(data)]
    starts = [0, *ends[:-1]]
    return {
        part: Decoder(data[start:end], incomplete=truncated and end >= len(data))
        for part, (start, end) in enumerate(zip(starts, ends, strict=True))
        if start < len(data) or part == 0 or not truncated
    }


def predicted(low: np.ndarray) -> np.ndarray:
    """Each sample (C, H, W) less its left neighbour; the first column, less the one above."""
    first = np.diff(low[:, :, :1], axis=1, prepend=0)
    return np.concatenate([first, np.diff(low, axis=2)], axis=2)


def unpredicted(residuals: np.ndarray) -> np.ndarray:
    residuals[:, :, 0] = np.cumsum(residuals[:, :, 0], axis=1)
    return np.cumsum(residuals, axis=2).clip(-(2**23), 2**23)  # only damage goes further: see lifting.synthesise


def scale_of(residuals: np.ndarray) -> int:
    """The table scale that suits residuals: a logistic's mean absolute value is 2 log 2 scales."""
    scale = max(np.abs(residuals).mean() / (2 * math.log(2)), 0.05)
    return min(SCALES - 1, max(0, round((math.log(scale) + _NARROWEST) * _SCALES_PER_E)))
