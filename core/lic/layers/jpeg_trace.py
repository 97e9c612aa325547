"""What JPEG file a picture was decoded from: its quantised coefficients and quantisation tables, found in the samples.

The transform of a decoded block has its coefficients at multiples of the quantisation steps, but for the rounding of
samples; the steps show in how they cluster (Fan, de Queiroz, "Identification of bitmap compression history: JPEG
detection and quantizer estimation", 2003). Where steps are so small that rounding is not enough, a search goes on from
there. What is found is what libjpeg's arithmetic (lic.layers.jpeg) makes the very samples of, nearly everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from types import EllipsisType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lic.layers import jpeg, ycbcr
from lic.layers.jpeg import COUNT, LARGEST, TURNS, USUAL, Component, Jpeg
from lic.layers.ycbcr import FEW, JPEG, Conversion, Origin

_SAMPLINGS = (2, 2), (1, 1), (1, 2), (2, 1)  # of chroma, the most usual one first
_PROBE = 512  # pixels, the sides of the middle of a picture that is looked at first

# Of tables, by the pixels that a sample has: how far coefficients are from the multiples of their steps, and what can't
# be mere rounding. How many coefficients a step is found in; how many make sure of it; the share that may be anywhere;
# what has to speak for a step, in nats. How many of the lowest steps aren't all 1; the share of a table of libjpeg's
# that has to be right; what steps have to save, in bits a coefficient.
_SPREADS = {1: 12**-0.5, 2: 0.33, 4: 0.4}
_LEAST = {1: 3.3, 2: 4.0, 4: 5.0}
_MOST, _ENOUGH, _STRAY, _CLEAR = 1024, 12, 0.3, 3.0
_FIRST, _USUAL, _SAVED = 20, 0.75, 0.1

_MOST_WRONG = 0.9  # share of the blocks that a search is worth while for
_PLAIN = 100  # of so many, one may be wrong in what is plain to see
_RARE = 1000  # of so many, one may be in what is found at first, or others are tried
_WITH_CHROMA = 1.1  # times the bits of luma's coefficients
_TAPS = 12  # samples that the inverse of the upsampling looks at, on each side

# Of least squares: the variance of errors, the least one of a coefficient, how often, and how many blocks at most.
_NOISE, _LEAST_POWER, _SWEEPS, _MOST_SOLVED = 1 / 6, 1e-3, 2, 1024

_PART = 4096  # blocks at once
_FILLS, _WORTH = 8, 0.97  # how often what isn't known is made from what is found; what may be left wrong each time
_ODD = 16  # what is off by more is something else
_LIMIT = 2**9  # of samples, as far as nobody cuts them

_HOPE, _FEW_BLOCKS = 0.85, 0.25  # of blocks that are wrong at first, or of all, as many may still be after a few turns

# Of the search: how many coefficients are tried; how often, and for how long none is changed back; and in how many
# turns there have to be so many times fewer blocks left.
_OPTIONS, _TURNS, _TABU, _PATIENCE, _PROGRESS = 12, 32, 3, 5, 1.01


def found(samples: Tensor, origin: Origin | None = None) -> Jpeg | None:
    """What a picture (C, H, W) int32, 0..255, was decoded from, and how it was turned since; None where that can't be
    told. Nearly all samples come out of it. Grey pictures are taken for such that weren't turned; for colour, origin
    has libjpeg's YCbCr."""
    if origin is None:
        return _upright(samples, samples - 128, torch.ones_like(samples[0], dtype=torch.bool))
    parts = samples, origin.planes, origin.known(samples)
    for turn in range(TURNS):
        pixels, planes, known = (jpeg.turned(x, turn).contiguous() for x in parts)
        if there := _upright(pixels, planes, known, turn > 0):
            return there._replace(turn=turn)
    return None


def bits(samples: Tensor) -> float:
    """What a picture (C, H, W) int32, 0..255, would take as a JPEG file's coefficients, roughly, from a look at its
    middle: bits a pixel; infinitely many if it doesn't seem to have been one."""
    part = samples[_middle(samples[0])]
    if grey := bool((part == part[:1]).all()):
        plane, known = part[:1] - 128, torch.ones_like(part[0], dtype=torch.bool)
    else:
        origin = ycbcr.traced(part, usual=True)
        if origin is None or origin.conversion.kind != JPEG:
            return math.inf
        plane, known = origin.planes[:1], origin.known(part)
    luma = _Components.of(plane, known, (1, 1))
    if luma is None:
        return math.inf
    coefficients = luma.components[0].coefficients[1:].abs()
    coded = torch.log2(1 + coefficients.float()).sum() * 2 + 2 * (coefficients > 0).sum()
    return float(coded) / known.numel() * (1 if grey else _WITH_CHROMA)


def _middle(plane: Tensor) -> tuple[EllipsisType, slice, slice]:
    """Of (H, W), what is looked at first."""
    top, left = (max(0, side - _PROBE) // 32 * 16 for side in plane.shape)
    return ..., slice(top, top + _PROBE), slice(left, left + _PROBE)


def _upright(samples: Tensor, planes: Tensor, known: Tensor, doubtful: bool = False) -> Jpeg | None:
    """The same for a picture that wasn't turned, from its grey or YCbCr, (C, H, W) int32, -128..127, as far as that is
    known, (H, W) bool; the least and the largest value stand for all beyond. doubtful: only if it is plain to see."""
    middle = _middle(known)
    part, sure = planes[middle], known[middle].clone()
    for dim, side in enumerate(known.shape):
        if side > _PROBE:  # upsampling looks at what is around
            sure.narrow(dim, 0, 2).zero_()
            sure.narrow(dim, _PROBE - 2, 2).zero_()
    rare = sure.numel() // _RARE

    luma = _Blocks(part[:1], sure, (1, 1)).table()
    if luma is None:
        return None
    if len(planes) == 1:
        there = _Components.of(planes, known, (1, 1), luma.usual)
        return there and Jpeg(there.components, (1, 1))
    likely: list[tuple[_Components, tuple[int, int]]] = []
    tables = [None] if luma.usual is None else [_companion(luma.usual)] if doubtful else [_companion(luma.usual), None]
    for table, sampling in itertools.product(tables, _SAMPLINGS):
        if chroma := _Components.of(part[1:], sure, sampling, table):
            likely.append((chroma, sampling))
            if chroma.wrong <= rare:
                break
    if not likely:
        return None
    chroma, sampling = min(likely, key=lambda each: each[0].wrong)
    if doubtful and chroma.wrong > sure.numel() // _PLAIN:
        return None
    whole = _Components.of(planes[1:], known, sampling, chroma.usual) if max(known.shape) > _PROBE else chroma
    if whole is None:
        return None
    plane, known = _luma(samples, [component.plane(sampling, *known.shape) for component in whole.components])
    there = _Components.of(plane[None], known, (1, 1), luma.usual)
    return there and Jpeg(there.components + whole.components, sampling)


def _luma(samples: Tensor, chroma: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What luma has to be for RGB (3, H, W) where chroma (H, W) is known, by all of red, green and blue that nothing
    was cut off of: (H, W) int32, -128..127, and where they say so. The least and the largest value for black and white.
    """
    dark = torch.stack([torch.full_like(chroma[0], -128), *chroma])
    values, inside = samples - Conversion(JPEG).unlimited(dark) - 128, (samples > 0) & (samples < 255)
    lowest, highest = values.where(inside, 2**9).amin(0), values.where(inside, -(2**9)).amax(0)
    black, white = (samples == 0).all(0), (samples == 255).all(0)
    plane = highest.where(inside.any(0), values.sum(0) // 3).clamp(-128, 127)
    plane = plane.where(~black, -128).where(~white, 127)
    return plane, (lowest == highest) & (highest == plane) | black | white


def _companion(usual: Tensor) -> Tensor:
    """The table of chroma that libjpeg has beside that one of luma."""
    return USUAL[int((usual == USUAL).all(1).nonzero()[0]) | 1]


class _Table(NamedTuple):
    """A quantisation table (64,) int32, 0 for steps that nothing is said of; and itself, if it is one of libjpeg's."""

    steps: Tensor
    usual: Tensor | None


class _Blocks:
    """Planes (C, H, W) int32, -128..127, as far as they are known (H, W), cut into blocks of one sample for so many
    rows and columns."""

    def __init__(self, planes: Tensor, known: Tensor, sampling: tuple[int, int]):
        self.planes, self.known, self.sampling = planes, known, sampling
        sides = [-(-side // (8 * every)) * 8 * every for side, every in zip(known.shape, sampling, strict=True)]
        self._pad = [0, sides[1] - known.shape[1], 0, sides[0] - known.shape[0]]
        self._filled = F.pad(planes[None].float(), self._pad, mode="replicate")[0]
        self._clear = F.pad(known, self._pad) & (self._filled > -128) & (self._filled < 127)  # else it may be anything
        self._real = _transformed(self._filled, sampling)

    def table(self) -> _Table | None:
        """Of all planes; None where they don't seem to have been quantised."""
        values = self._real[:, :, _sure(self._clear.all(0), self.sampling)]
        return _table(values.transpose(0, 1).flatten(1), math.prod(self.sampling))

    def off(self, number: int, component: Component) -> Tensor:
        """How far a plane is from what a component makes, (H, W), as far as it is known."""
        return (component.plane(self.sampling, *self.known.shape) - self.planes[number]).abs() * self.known

    def rounded(self, number: int, steps: Tensor) -> tuple[Component, Tensor]:
        """The component of a plane, rounded, and how far the plane is `off`; what isn't known of that comes from the
        component, again and again."""
        real, target, clear = self._real[number], self._filled[number], self._clear[number]
        before = math.inf
        for _ in range(_FILLS):
            component = Component.rounded(real, steps)
            off = self.off(number, component)
            wrong = int((off > 0).sum())
            if not wrong or wrong > _WORTH * before:
                break
            before = wrong
            made = jpeg.upsampled(jpeg.samples(*component, _LIMIT), *self.sampling).float()
            made = made.where(target < 127, made.clamp(min=127)).where(target > -128, made.clamp(max=-128))
            fits = F.pad(off <= _ODD, self._pad, value=True)
            real = _transformed(target.where(clear & fits, made)[None], self.sampling)[0]
        return component, off


class _Components(NamedTuple):
    """Those of one quantisation table. usual: the table, where it is one of libjpeg's. wrong: samples that are."""

    components: list[Component]
    usual: Tensor | None
    wrong: int

    @staticmethod
    def of(planes: Tensor, known: Tensor, sampling: tuple[int, int], usual: Tensor | None = None) -> _Components | None:
        """Those of planes (C, H, W), if they have any, that have a sample for so many rows and columns."""
        blocks = _Blocks(planes, known, sampling)
        table = blocks.table() if usual is None else _Table(usual, usual)
        if table is None:
            return None
        out, total = [], 0
        for number, plane in enumerate(planes):
            rounded, off = blocks.rounded(number, table.steps)
            search = _Search(rounded, plane, known & (off <= _ODD), sampling)
            if not search.run():
                return None
            component = search.component()
            wrong = int((blocks.off(number, component) > 0).sum())
            if wrong > known.numel() // FEW or component.coefficients.abs().max() > jpeg.REACH:
                return None
            total += wrong
            out.append(component)
        return _Components(out, table.usual, total)


def _transformed(planes: Tensor, sampling: tuple[int, int]) -> Tensor:
    """The coefficients (C, 64, h, w) of what planes (C, H, W) float32, in whole blocks, were upsampled from."""
    for dim, every in enumerate(sampling, 1):
        if every == 2:
            planes = _halved(planes, dim)
    return jpeg.transformed(planes)


def _sure(known: Tensor, sampling: tuple[int, int]) -> Tensor:
    """The blocks that all is known of, (h, w) bool, and of what is about them."""
    margins = [2 * (every - 1) for every in sampling]
    unknown = F.pad((~known).float()[None, None], [margins[1]] * 2 + [margins[0]] * 2)
    kernel = [8 * every + 2 * margin for every, margin in zip(sampling, margins, strict=True)]
    return F.max_pool2d(unknown, kernel, [8 * every for every in sampling])[0, 0] == 0


@lru_cache
def _taps() -> Tensor:
    """What a sample is, by least squares, of the twice as many that `jpeg.upsampled` makes of a row of them."""
    count = 2 * _TAPS + 1
    up = torch.zeros(2 * count, count, dtype=torch.float64)
    for i in range(count):
        up[2 * i : 2 * i + 2, i] += 0.75
        up[2 * i, max(i - 1, 0)] += 0.25
        up[2 * i + 1, min(i + 1, count - 1)] += 0.25
    return torch.linalg.pinv(up)[_TAPS].float()


def _halved(x: Tensor, dim: int) -> Tensor:
    """The samples (C, ...) that x was upsampled from along dim."""
    x = x.transpose(dim, 2)
    rows = F.pad(x.reshape(1, -1, x.shape[2]), [2 * _TAPS] * 2, mode="replicate")
    return F.conv1d(rows.transpose(0, 1), _taps().view(1, 1, -1), stride=2).view(*x.shape[:2], -1).transpose(dim, 2)


def _table(values: Tensor, pixels: int) -> _Table | None:
    """Of coefficients (64, count), for each frequency, of components whose samples have so many pixels."""
    found: list[tuple[int, int]] = []
    for row in values:
        found.append(_step(row[row.abs() > _LEAST[pixels]], _SPREADS[pixels]))
        if len(found) == _FIRST and all(step == 1 and count == _MOST for step, count in found):
            return None
    table, counts = torch.tensor(found, dtype=torch.int32).T
    sure = counts >= _ENOUGH
    if not sure.any() or float(torch.log2(table[sure].float()).mean()) < _SAVED:
        return None
    same = (table == USUAL).float()
    shared = same[:, sure].mean(1)
    if float(shared.max()) < _USUAL:
        return _Table(table, None)
    usual = USUAL[int((shared + same.mean(1) / COUNT).argmax())]
    return _Table(usual, usual)


def _step(values: Tensor, spread: float) -> tuple[int, int]:
    """The step that values (count,), of which none is about 0, are multiples of, and how many there were to tell."""
    values = torch.unique((values * 64).round()) / 64  # what is repeated is so for another reason
    if not len(values):
        return 0, 0
    values = values[torch.linspace(0, len(values) - 1, min(len(values), _MOST)).long()]
    steps = torch.arange(1, min(LARGEST, math.ceil(float(values.abs().max()) + 4 * spread)) + 1)
    multiples = (values[:, None] / steps).round()
    density = torch.zeros_like(multiples)
    for near in (multiples - 1, multiples, multiples + 1):
        distance = (values[:, None] - near * steps) / spread
        density += torch.exp(-0.5 * distance.square()) * (near != 0)
    density *= (1 - _STRAY) * steps / (spread * math.sqrt(2 * math.pi))
    nats = torch.log(density + _STRAY).sum(0)
    best = int(nats.argmax())
    return best + 1 if nats[best] > min(_CLEAR, len(values)) else 1, len(values)


class _Search:
    """Changes a component's coefficients by single steps until its samples are the plane's (H, W) where that is known:
    of each block, of those changes that squares of errors speak for, the one that leaves least wrong; a tabu search."""

    def __init__(self, start: Component, plane: Tensor, known: Tensor, sampling: tuple[int, int]):
        coefficients, self._table = start
        self._sampling, self._blocks = sampling, coefficients.shape[1:]
        self._ring = int(max(sampling) > 1)  # samples around a block that its pixels depend on
        self._margins = [every - 1 for every in sampling]  # pixels around a block's that depend on it
        self._c = coefficients.reshape(COUNT, -1).clone()
        pads: list[int] = []
        for side, blocks, every, margin in zip(plane.shape, self._blocks, sampling, self._margins, strict=True):
            pads = [margin, 8 * every * blocks - side + margin, *pads]
        self._target, self._known = F.pad(plane, pads), F.pad(known, pads)
        sides = [-(-side // every) for side, every in zip(plane.shape, sampling, strict=True)]
        rows, columns = (
            torch.arange(-self._ring, 8 * blocks + self._ring).clamp(0, side - 1)
            for blocks, side in zip(self._blocks, sides, strict=True)
        )
        self._samples = jpeg.samples(*start)[rows][:, columns]
        self._last = [side - 1 for side in sides]
        self._cut = any(side % 8 for side in sides)  # blocks, by the picture's edge
        units = jpeg.BASIS.view(COUNT, 8, 8)  # what a unit of each coefficient does
        if self._ring:
            units = self._upsampled((F.pad(units, [1] * 4) * 2**12).int()) / 2**12
        self._units = units.flatten(1).float()

    def run(self) -> bool:
        """Whether there is hope at all."""
        wrong = self._wrong(torch.arange(self._c.shape[1]))
        left = wrong.nonzero()[:, 0]
        if len(left) > _MOST_WRONG * len(wrong):
            return False
        left = self._solved(left, wrong)
        least, best = wrong.clone(), self._c.clone()
        few = max(_HOPE * len(left), _FEW_BLOCKS * len(wrong))
        tabu = torch.zeros(COUNT, len(wrong), dtype=torch.int8)
        lefts: list[int] = []
        for turn in range(_TURNS):
            lefts.append(len(left))
            stuck = turn >= _PATIENCE and lefts[-1 - _PATIENCE] < _PROGRESS * len(left)
            if stuck or not len(left):
                break
            if turn == _PATIENCE and len(left) > few:
                return False
            here, near = left, left
            if self._ring:  # where most is wrong, or it may be a neighbour's fault; what is about it may change
                here = left[(wrong == self._around(wrong))[left]]
                near = self._around((wrong > 0).int()).nonzero()[:, 0]
            for part in here.split(_PART):
                self._move(part, tabu, turn)
            wrong[near] = self._wrong(near)
            better = near[wrong[near] < least[near]]
            least[better], best[:, better] = wrong[better], self._c[:, better]
            left = near[wrong[near] > 0]
        self._put(left, best[:, left])
        return True

    def component(self) -> Component:
        """What it has come to; steps that nothing is a multiple of are 0."""
        return Component(self._c.view(COUNT, *self._blocks), self._table * self._c.ne(0).any(1))

    def _move(self, blocks: Tensor, tabu: Tensor, turn: int) -> None:
        """Change a coefficient of each of the blocks (count,); tabu (64, all) int8 says from which turn on."""
        used = self._table.nonzero()[:, 0]
        steps = self._table[used, None]
        off, known = (x[:, 0].flatten(1) for x in self._off(blocks, self._c[:, blocks, None]))
        slopes = self._units[used] @ (off * known).T.float()
        squares = self._units[used].square() @ known.T.float()
        changes = (steps**2 * squares - 2 * steps * slopes.abs()).where(tabu[used][:, blocks] <= turn, math.inf)
        order = changes.argsort(0)[:_OPTIONS]
        options = self._c[:, blocks, None].repeat(1, 1, len(order))
        n, option = torch.arange(len(blocks)), torch.arange(len(order))
        options[used[order], n, option[:, None]] += slopes.gather(0, order).sign().int()
        off, known = self._off(blocks, options)
        chosen = (off.abs() * known).sum((2, 3)).argmin(1)
        self._put(blocks, options[:, n, chosen])
        tabu[used[order[chosen, n]], blocks] = turn + _TABU

    def _solved(self, blocks: Tensor, wrong: Tensor) -> Tensor:
        """Blocks (count,) that aren't known as a whole, by successive rounding of a least-squares solution, high
        frequencies first: what is left of them to be changed. Babai, "On Lovász' lattice reduction and the nearest
        lattice point problem" (1986)."""
        used = self._table.nonzero()[:, 0]
        units = (self._units[used] * self._table[used, None]).double()
        scarce = self._c[used].double().square().mean(1).clamp(min=_LEAST_POWER).reciprocal() * _NOISE
        for _ in range(_SWEEPS):
            for part in blocks[wrong[blocks] > 0][:_MOST_SOLVED].split(_PART // 8):
                off, known = (x[:, 0].flatten(1) for x in self._off(part, self._c[:, part, None]))
                rows, columns = self._places(part, self._sampling, self._margins)
                active = known & ((self._target[rows, columns].flatten(1).abs() < 127) | (off != 0))
                incomplete = ~active.all(1)
                here, off, active = part[incomplete], off[incomplete].double(), active[incomplete].double()
                before = self._c[:, here]
                products = (units * active[:, None]) @ units.T
                sums = products @ before[used].T.double()[..., None] + units @ (off * active)[..., None]
                factor = torch.linalg.cholesky(products + torch.diag(scarce), upper=True)
                rest = torch.linalg.solve_triangular(factor.mT, sums, upper=False)[..., 0]
                chosen = torch.zeros_like(rest)
                for i in range(len(used) - 1, -1, -1):
                    chosen[:, i] = ((rest[:, i] - (factor[:, i] * chosen).sum(1)) / factor[:, i, i]).round()
                after = before.clone()
                after[used] = chosen.T.int()
                self._put(here, after)
                worse = self._wrong(here) > wrong[here]
                self._put(here[worse], before[:, worse])
                wrong[here] = self._wrong(here)
        near = self._around((wrong > 0).int()).nonzero()[:, 0]
        wrong[near] = self._wrong(near)
        return wrong.nonzero()[:, 0]

    def _around(self, x: Tensor) -> Tensor:
        """The largest of what each block and its neighbours have, (count,)."""
        return F.max_pool2d(x.view(1, *self._blocks).float(), 3, 1, 1).to(x.dtype).flatten()

    def _put(self, blocks: Tensor, coefficients: Tensor) -> None:
        """Change blocks (count,), and their samples."""
        self._c[:, blocks] = coefficients
        rows, columns = self._places(blocks, (1, 1), (0, 0))
        self._samples[rows + self._ring, columns + self._ring] = self._inner(blocks, coefficients[..., None])[:, 0]

    def _inner(self, blocks: Tensor, coefficients: Tensor) -> Tensor:
        """The samples (count, options, 8, 8) of blocks with coefficients (64, count, options). Beyond the picture, the
        last one is repeated: that is what upsampling sees."""
        _, count, options = coefficients.shape
        samples = jpeg.samples(coefficients.flatten(1)[:, None], self._table)
        samples = samples.view(8, count, options, 8).permute(1, 2, 0, 3)
        if not self._cut:
            return samples
        for dim, places, last in zip((2, 3), self._places(blocks, (1, 1), (0, 0)), self._last, strict=True):
            inside = (places.flatten(1).clamp(max=last) % 8).view(count, 1, *places.shape[1:])
            samples = samples.gather(dim, inside.expand_as(samples))
        return samples

    def _places(self, blocks: Tensor, every: Sequence[int], margins: Sequence[int]) -> list[Tensor]:
        """The rows (count, h, 1) and columns (count, 1, w) that belong to blocks (count,) of so many pixels a sample,
        where margins precede all."""
        numbers = blocks // self._blocks[1], blocks % self._blocks[1]
        rows, columns = (
            number[:, None] * 8 * step + torch.arange(8 * step + 2 * margin)
            for number, step, margin in zip(numbers, every, margins, strict=True)
        )
        return [rows[:, :, None], columns[:, None, :]]

    def _wrong(self, blocks: Tensor) -> Tensor:
        """How much is wrong about blocks (count,)."""
        out = [torch.zeros(0, dtype=torch.int64)]
        for part in blocks.split(_PART):
            off, known = self._off(part, self._c[:, part, None])
            out.append((off.abs() * known).sum((1, 2, 3)))
        return torch.cat(out)

    def _off(self, blocks: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """How far the plane is from what they make of it, (count, options, h, w), and where it is known."""
        x = self._inner(blocks, coefficients)
        if self._ring:
            rows, columns = self._places(blocks, (1, 1), (1, 1))
            around = self._samples[rows, columns][:, None].repeat(1, x.shape[1], 1, 1)
            around[..., 1:-1, 1:-1] = x
            x = self._upsampled(around)
        rows, columns = self._places(blocks, self._sampling, self._margins)
        return self._target[rows, columns][:, None] - x, self._known[rows, columns][:, None]

    def _upsampled(self, around: Tensor) -> Tensor:
        """From samples (..., 10, 10) of a block and what is around it, all pixels that depend on it."""
        x = jpeg.upsampled(around, *self._sampling)
        top, left = (every - margin for every, margin in zip(self._sampling, self._margins, strict=True))
        return x[..., top : x.shape[-2] - top, left : x.shape[-1] - left]
