"""RGB that was converted from integers, YCbCr of some kind, taken back to them.

Of all RGB triples, such a conversion makes a quarter or less, in a pattern that no wavelet sees; but where each pixel
comes from a triple of YCbCr, that one can be coded in its place. libjpeg's arithmetic (jdcolor.c; the matrix is that of
JFIF 1.02) and libwebp's (dsp/yuv.h; ITU-R BT.601, video range) are what nearly all programs have; other conversions, of
video for instance, are found in the picture (`lic.layers.lattice`). A few pixels may differ.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.errors import FormatError
from lic.layers import lattice
from lic.layers.tiles import Area

JPEG, WEBP, FOUND = 1, 2, 3  # kinds of conversions
_BITS, _FINE = 20, 8  # fractional bits of the numbers of a conversion that was found
_WIDEST = 2**9 - 1  # integers that it converts, either sign
_VALUES = 2 * _WIDEST + 1
_MOST = 2**16  # triples that are off

_PART = 2**18  # pixels at once
_SAMPLE = 4096  # pixels that are tried at first
_ENOUGH, _SEEN = 2**15, 2**18  # pixels that a matrix is found in, and corrections to it
_CERTAIN = 0.002  # share of exceptions below which no other conversion is looked for
_MOSTLY = 0.3  # that share may be off before it is known which triples are
FEW = 64  # of so many pixels, one may be an exception
_ENTRY = 7  # bytes of what is listed: how far its number is from the one before, little-endian, and red, green, blue
_CANDIDATES = sorted(itertools.product(range(-2, 3), repeat=3), key=lambda steps: sum(step * step for step in steps))


@dataclass(frozen=True)
class Found:
    """A conversion that was found in a picture: the matrix and the offset, (3, 4) int32 in 1 / 2**_BITS; what to add
    for each channel and value of a plane, (3, 3, values) int16 in 1 / 2**_FINE; and some triples, by their `_key`,
    ascending, (count,) int64, of which the result is off by so much, (3, count) int32, -127..127."""

    affine: NDArray[np.int32]
    corrections: NDArray[np.int16]
    keys: NDArray[np.int64]
    off: NDArray[np.int32]

    @staticmethod
    def of(matrix: lattice.Floats, offset: lattice.Floats, pixels: NDArray[np.int32]) -> Found:
        """From a matrix and an offset as `lattice.found` has them, for these pixels (count, 3)."""
        middle = np.round(np.linalg.solve(matrix, 128 - offset))  # zero is about grey
        offset = offset + matrix @ middle
        points = np.round((pixels - offset) @ np.linalg.inv(matrix).T).astype(np.int64).clip(-_WIDEST, _WIDEST)
        tables = lattice.corrected(matrix, offset, points + _WIDEST, pixels, _VALUES)
        affine = np.round(np.column_stack([matrix, offset + 0.5]) * 2**_BITS).astype(np.int32)
        corrections = np.round(tables * 2**_FINE).astype(np.int16)
        return Found(affine, corrections, np.zeros(0, np.int64), np.zeros((3, 0), np.int32))

    def learned(self, planes: Tensor, lost: Tensor, pixels: Tensor) -> tuple[Found, Tensor]:
        """The same, with triples for the colours that are lost: each one nearby that no other colour has. planes and
        pixels (3, count) int32, lost (count,). And the planes with them."""
        colours, where = np.unique(pixels[:, lost].numpy(), axis=1, return_inverse=True)
        about = np.zeros_like(colours)
        about[:, where.ravel()] = planes[:, lost].numpy()
        taken = np.append(-1, np.unique(_key(planes[:, ~lost]).numpy()))
        keys, off = -np.ones(colours.shape[1], np.int64), np.zeros_like(colours)
        triples, left = about.copy(), np.arange(colours.shape[1])
        for steps in _CANDIDATES[:27]:
            tried = torch.from_numpy(about[:, left] + np.array(steps, np.int32)[:, None]).clamp(-_WIDEST, _WIDEST)
            missing, key = colours[:, left] - self.rgb(tried).numpy(), _key(tried).numpy()
            place = np.searchsorted(taken, key).clip(max=len(taken) - 1)
            free = (taken[place] != key) & ~np.isin(key, keys)
            usable = (abs(missing) < 128).all(0) & free
            _, first = np.unique(np.where(usable, key, -1), return_index=True)
            first = first[usable[first]]
            keys[left[first]], off[:, left[first]] = key[first], missing[:, first]
            triples[:, left[first]] = tried[:, first].numpy()
            left = np.delete(left, first)
        planes = planes.clone()
        planes[:, lost] = torch.from_numpy(triples[:, where.ravel()])
        chosen = np.flatnonzero(keys >= 0)[:_MOST]
        chosen = chosen[keys[chosen].argsort()]
        return Found(self.affine, self.corrections, keys[chosen], off[:, chosen]), planes

    def coded(self) -> bytes:
        numbers = self.affine.astype("<i4").tobytes() + self.corrections.astype("<i2").tobytes()
        return zlib.compress(numbers + _entries(self.keys, self.off).T.tobytes(), 9)

    @staticmethod
    def read(listed: bytes) -> tuple[Found, bytes]:
        """The inverse, and what is left. Raises FormatError where `coded` didn't write it."""
        fixed = 48 + 18 * _VALUES
        raw, rest = _inflated(listed, fixed, _MOST)
        affine, corrections = np.frombuffer(raw[:48], "<i4"), np.frombuffer(raw[48:fixed], "<i2")
        keys, off = _unlisted(np.frombuffer(raw[fixed:], np.uint8).reshape(_ENTRY, -1).T, _VALUES**3)
        affine, corrections = affine.reshape(3, 4).astype(np.int32), corrections.reshape(3, 3, -1).astype(np.int16)
        return Found(affine, corrections, keys, off.view(np.int8).astype(np.int32)), rest

    def rgb(self, planes: Tensor) -> Tensor:
        """Integers (3, ...) int32, -_WIDEST.._WIDEST -> (3, ...) int32, 0..255."""
        out = self.unlimited(planes)
        for channel, tables in zip(out, torch.from_numpy(self.corrections).to(planes.device), strict=True):
            for table, plane in zip(tables, planes, strict=True):
                if not table.any():
                    continue
                channel += table.long()[plane + _WIDEST] << _BITS - _FINE
        out >>= _BITS
        if len(self.keys):
            keys, key = torch.from_numpy(self.keys).to(planes.device), _key(planes)
            place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
            out += torch.from_numpy(self.off).to(planes.device)[:, place] * (keys[place] == key)
        return out.clamp(0, 255).int()

    def unlimited(self, planes: Tensor) -> Tensor:
        """Without limits, corrections and exceptions, in 1 / 2**_BITS, int64."""
        a, b, c = planes.long()
        return torch.stack([a * row[0] + b * row[1] + c * row[2] + row[3] for row in self.affine.tolist()])


def _key(planes: Tensor) -> Tensor:
    """A number for each triple of integers -_WIDEST.._WIDEST, (3, ...) int32 -> (...) int64."""
    a, b, c = planes.long() + _WIDEST
    return (a * _VALUES + b) * _VALUES + c


@dataclass(frozen=True)
class Conversion:
    """How planes of integers about zero become RGB. found: for the kind of that name."""

    kind: int
    found: Found | None = None

    @staticmethod
    def read(kind: int, listed: bytes) -> tuple[Conversion, bytes]:
        """From the list of a file; and what of it is left. Raises FormatError where there is no such conversion."""
        if kind in (JPEG, WEBP):
            return Conversion(kind), listed
        if kind != FOUND:
            raise FormatError("the coded picture's header is damaged")
        found, rest = Found.read(listed)
        return Conversion(kind, found), rest

    def coded(self) -> bytes:
        return self.found.coded() if self.found else b""

    def rgb(self, planes: Tensor) -> Tensor:
        """Integers (3, ...) int32 -> (3, ...) int32, 0..255."""
        planes = planes.clamp(*self.limits)
        return self.found.rgb(planes) if self.found else self.unlimited(planes).clamp(0, 255).int()

    @property
    def limits(self) -> tuple[int, int]:
        """Of the integers."""
        return (-_WIDEST, _WIDEST) if self.found else (-128, 127)

    def unlimited(self, planes: Tensor) -> Tensor:
        """The same, or nearly so, for any integers, and to any."""
        if self.found:
            return self.found.unlimited(planes) >> _BITS
        y, u, v = planes
        if self.kind == JPEG:
            y, half = y + 128, 1 << 15
            red, blue = y + (91881 * v + half >> 16), y + (116130 * u + half >> 16)
            return torch.stack([red, y + (-22554 * u - 46802 * v + half >> 16), blue])
        luma, u, v = (y + 128) * 19077 >> 8, u + 128, v + 128
        green = luma - (u * 6419 >> 8) - (v * 13320 >> 8) + 8708
        return torch.stack([luma + (v * 26149 >> 8) - 14234, green, luma + (u * 33050 >> 8) - 17685]) >> 6


@dataclass(frozen=True)
class Exceptions:
    """Pixels that are something else: their numbers, row by row, (count,) int64, and colours (3, count) int32."""

    places: Tensor
    colours: Tensor

    def coded(self) -> bytes:
        entries = _entries(self.places.numpy(), self.colours.numpy())
        return zlib.compress(entries.tobytes(), 9) if len(entries) else b""

    @staticmethod
    def read(listed: bytes, pixels: int, few: int = FEW) -> Exceptions:
        """The inverse, in a picture of so many pixels, one in a few of which may be exceptions. Raises FormatError
        where `coded` didn't write it."""
        raw, rest = _inflated(listed, 0, pixels // few) if listed else (b"", b"")
        if rest:
            raise FormatError("there is something behind the list of exceptional pixels")
        places, colours = _unlisted(np.frombuffer(raw, np.uint8).reshape(-1, _ENTRY), pixels)
        return Exceptions(torch.from_numpy(places), torch.from_numpy(colours.astype(np.int32)))

    def put(self, rgb: Tensor, area: Area, width: int) -> None:
        """Write those of an area of a picture of that width into its samples (3, h, w)."""
        rows, columns = self.places // width, self.places % width
        here = (area.top <= rows) & (rows < area.bottom) & (area.left <= columns) & (columns < area.right)
        rgb[:, rows[here] - area.top, columns[here] - area.left] = self.colours[:, here].to(rgb.device)


def _entries(numbers: NDArray[np.int64], values: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Ascending numbers (count,), and three of one byte for each, (3, count) -> (count, _ENTRY)."""
    entries = np.empty((len(numbers), _ENTRY), np.uint8)
    entries[:, :4] = np.diff(numbers, prepend=0).astype("<u4")[:, None].view(np.uint8)
    entries[:, 4:] = values.T.astype(np.uint8)
    return entries


def _unlisted(entries: NDArray[np.uint8], end: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The inverse, of numbers below end. Raises FormatError where they aren't, or one comes twice."""
    steps = entries[:, :4].copy().view("<u4")[:, 0].astype(np.int64)
    numbers = steps.cumsum()
    if steps[1:].min(initial=1) < 1 or numbers.max(initial=-1) >= end:
        raise FormatError("in a list of colours or pixels, one lies outside or comes twice")
    return numbers, entries[:, 4:].T.copy()


def _inflated(listed: bytes, fixed: int, most: int) -> tuple[bytes, bytes]:
    """A zlib stream of so many bytes and at most so many entries; and what is behind it. Raises FormatError where it is
    another."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(listed, fixed + _ENTRY * most + 1)
    except zlib.error as error:
        raise FormatError("a list of colours or pixels is damaged") from error
    entries, rest = divmod(len(raw) - fixed, _ENTRY)
    if not inflater.eof or not 0 <= entries <= most or rest:
        raise FormatError("a list of colours or pixels is damaged, or too long")
    return raw, inflater.unused_data


class Origin(NamedTuple):
    """planes: (3, H, W) int32."""

    conversion: Conversion
    planes: Tensor
    exceptions: Exceptions

    def known(self, rgb: Tensor) -> Tensor:
        """Where nothing but the planes can have made rgb (3, H, W), or nearly so: (H, W) bool. Not where red, green or
        blue is cut off, but in black and white."""
        known = _inside(rgb) | (rgb == 0).all(0) | (rgb == 255).all(0)
        known.view(-1)[self.exceptions.places] = False
        return known


def traced(rgb: Tensor, usual: bool = False) -> Origin | None:
    """Where a picture (3, H, W) int32, 0..255, on the CPU, comes from; None for all but those that were converted. One
    pixel in FEW may be an exception; for JPEG, so may those be where red, green or blue is cut off. usual: by libjpeg
    or libwebp, which is soon seen."""
    pixels = rgb.flatten(1)
    conversion = _likeliest(pixels, usual)
    if conversion is None:
        return None
    parts = [_inverted(conversion, part) for part in pixels.split(_PART, 1)]
    planes, lost = (torch.cat(both, -1) for both in zip(*parts, strict=True))
    if conversion.found:
        found, planes = conversion.found.learned(planes, lost, pixels)
        conversion = Conversion(FOUND, found)
        lost = (conversion.rgb(planes) != pixels).any(0)
    counted = lost & _inside(pixels) if conversion.kind == JPEG else lost
    if int(counted.sum()) > pixels.shape[1] // FEW:
        return None
    return Origin(conversion, planes.view(rgb.shape), Exceptions(lost.nonzero()[:, 0], pixels[:, lost]))


def _likeliest(pixels: Tensor, usual: bool) -> Conversion | None:
    """The conversion that some of the pixels (3, count) all come from, or nearly so."""
    sample = pixels[:, :: 1 + pixels.shape[1] // _SAMPLE]

    def lost(conversion: Conversion, sample: Tensor = sample) -> float:
        return float(_inverted(conversion, sample)[1].float().mean())

    tried = [(lost(conversion), conversion) for conversion in map(Conversion, (JPEG, WEBP))]
    clear = sample[:, _inside(sample)]
    unclear = min(tried, key=itemgetter(0))[0] > 1 / FEW and clear.shape[1] > _SAMPLE // FEW
    if unclear and lost(Conversion(JPEG), clear) <= 1 / FEW:
        return Conversion(JPEG)
    if not usual and min(tried, key=itemgetter(0))[0] > _CERTAIN:
        inside = pixels[:, _inside(pixels)]
        seen = inside[:, :: 1 + inside.shape[1] // _SEEN].T.numpy()
        found = lattice.found(seen[:: 1 + len(seen) // _ENOUGH])
        if found is not None:
            other = Conversion(FOUND, Found.of(*found, seen))
            tried.append((lost(other), other))
    share, best = min(tried, key=itemgetter(0))
    return best if share <= (_MOSTLY if best.found else 1 / FEW) else None


def _inside(pixels: Tensor) -> Tensor:
    """Which pixels (3, ...) nothing was cut off of: (...) bool."""
    return ((pixels > 0) & (pixels < 255)).all(0)


def _inverted(conversion: Conversion, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (3, count) -> the integers of each, (3, count) int32, and which of them (count,) come from none nearby."""
    made = conversion.unlimited(torch.cat([torch.zeros(3, 1), 4096 * torch.eye(3)], 1).int()).double()
    matrix = (made[:, 1:] - made[:, :1]) / 4096
    about = (matrix.inverse() @ (pixels - made[:, :1])).round().int()
    planes = about.clamp(*conversion.limits)
    left = torch.arange(pixels.shape[1])
    for steps in _CANDIDATES:
        tried = (about[:, left] + torch.tensor(steps, dtype=torch.int32)[:, None]).clamp(*conversion.limits)
        right = (conversion.rgb(tried) == pixels[:, left]).all(0)
        planes[:, left[right]] = tried[:, right]
        left = left[~right]
        if not len(left):
            break
    lost = torch.zeros(pixels.shape[1], dtype=torch.bool)
    lost[left] = True
    return planes, lost
