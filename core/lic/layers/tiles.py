"""Which coefficients of a wavelet decomposition are coded together, and which of them a part of the picture needs.

Coarse levels are coded whole; finer ones in tiles that cover about TILE x TILE pixels each, as JPEG 2000's precincts do
(ISO 15444-1, B.6). A tile's coefficients are coded apart from its neighbours', given the decoded picture one level up.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType
from typing import NamedTuple

TILE = 1024  # pixels, a multiple of 2**TILED_LEVELS
TILED_LEVELS = 3  # the finest ones
REACH = 4  # how many samples on each side lifting synthesis needs


class Area(NamedTuple):
    """Rows top..bottom - 1 and columns left..right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    def positions(self) -> int:
        """How many."""
        return (self.bottom - self.top) * (self.right - self.left)

    def within(self, origin: Area) -> tuple[EllipsisType, slice, slice]:
        """What indexes it in a tensor (..., H, W) that holds `origin`."""
        rows = slice(self.top - origin.top, self.bottom - origin.top)
        return ..., rows, slice(self.left - origin.left, self.right - origin.left)

    def finer(self, height: int, width: int) -> Area:
        """The same area one level finer, where the picture has these sides."""
        return Area(2 * self.top, 2 * self.left, min(2 * self.bottom, height), min(2 * self.right, width))

    def around(self, margin: int, multiple: int, height: int, width: int) -> Area:
        """The area with a margin, in whole squares of `multiple`, as far as the picture goes."""
        top, left = (max(0, side - margin) // multiple * multiple for side in (self.top, self.left))
        bottom, right = (-(-(side + margin) // multiple) * multiple for side in (self.bottom, self.right))
        return Area(top, left, min(height, bottom), min(width, right))

    def squares(self, side: int) -> Iterator[Area]:
        """The area in pieces of at most that side."""
        for top in range(self.top, self.bottom, side):
            for left in range(self.left, self.right, side):
                yield Area(top, left, min(top + side, self.bottom), min(left + side, self.right))

    def blocks(self, side: int) -> Iterator[Area]:
        """Of a grid that begins at the picture's corner, the squares of that side, as far as they are in the area."""
        for top in range(self.top // side * side, self.bottom, side):
            for left in range(self.left // side * side, self.right, side):
                bottom, right = min(top + side, self.bottom), min(left + side, self.right)
                yield Area(max(top, self.top), max(left, self.left), bottom, right)

    def coarser(self) -> Area:
        return Area(self.top // 2, self.left // 2, -(-self.bottom // 2), -(-self.right // 2))


class Level(NamedTuple):
    """What to decode of one level: the area, in its positions, and the numbered tiles that make it up."""

    number: int
    area: Area
    tiles: list[tuple[int, Area]]


def size(height: int, width: int, level: int) -> tuple[int, int]:
    """The sides of the low band after that many levels: halved, rounding up."""
    return -(-height >> level), -(-width >> level)


def parts(height: int, width: int) -> int:
    """How many parts a picture is coded in: one where there is one tile."""
    count = _count(height, width)
    return 1 if count == 1 else 1 + TILED_LEVELS * count


def part(height: int, width: int, level: int, tile: int) -> int:
    """The number of the part that a tile of a level is in: all that isn't tiled comes first, then coarse to fine."""
    count = _count(height, width)
    return 0 if count == 1 or level > TILED_LEVELS else 1 + (TILED_LEVELS - level) * count + tile


def _count(height: int, width: int) -> int:
    return (len(_edges(height, 0)) - 1) * (len(_edges(width, 0)) - 1)


def plan(height: int, width: int, levels: int, region: Area | None = None, halvings: int = 0) -> list[Level]:
    """The levels, coarsest first, of a picture (or of what its region needs, at 1 / 2**halvings of the resolution)."""
    if region is None:
        region = Area(0, 0, *size(height, width, halvings))
    out: list[Level] = []
    for level in range(halvings + 1, levels + 1):
        h, w = size(height, width, level)
        rows, columns = (_edges(height, level), _edges(width, level)) if level <= TILED_LEVELS else ([0, h], [0, w])
        first = region.coarser()
        vertical = _needed(rows, first.top - REACH, first.bottom + REACH)
        horizontal = _needed(columns, first.left - REACH, first.right + REACH)
        tiles = [
            (i * (len(columns) - 1) + j, Area(rows[i], columns[j], rows[i + 1], columns[j + 1]))
            for i in vertical
            for j in horizontal
        ]
        region = Area(*tiles[0][1][:2], *tiles[-1][1][2:])
        out.append(Level(level, region, tiles))
    return out[::-1]


def _edges(side: int, level: int) -> list[int]:
    """Where tiles begin, and the last one's end: tiles of TILE pixels, the last between half and one and a half."""
    tiles = max(1, (side + TILE // 2) // TILE)
    return [i * TILE >> level for i in range(tiles)] + [-(-side >> level)]


def _needed(edges: list[int], first: int, end: int) -> list[int]:
    return [i for i in range(len(edges) - 1) if edges[i] < end and edges[i + 1] > first]
