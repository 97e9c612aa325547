"""The prior of wavelet coefficients: a network, in integers, that predicts each from what is decoded before it.

After Meyer et al., "Efficient Learned Wavelet Image and Video Coding" (arXiv 2405.12631), for the parallel context.

    low band (decoded), coarser bands, step -> trunk --+
                                                       +-> mean and scale -> entropy coder, coarse to fine
    what this level has coded so far -> context -------+   8 passes a level: 4 phases x (luma, chroma), or 12

It works on cells, 2x2 positions of a level: one sample of the level above, one coefficient of each phase. Lengths are
in units of the quantisation step, in which the picture decoded so far needs no step at all.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lic.layers import lifting, tiles
from lic.layers.integer import Convolution, Scale, add, rectified, rectify, signed
from lic.layers.tiles import Area, Level

LEVELS = 6
STEP_UNIT = 128  # steps are coded as integers, in 1/128 of an 8-bit pixel value
PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # coding order of the 2x2 positions
LUMA, CHROMA = slice(0, 1), slice(1, 3)  # of a band's planes

_LOGARITHM = 10  # what `compress` multiplies the natural logarithm by
_THRESHOLDS = [math.ceil(2**lifting.FRACTION * math.expm1((k - 0.5) / _LOGARITHM)) for k in range(1, 64)]

FEATURE = signed(3)
_STREAM, _CONTEXT, _HIDDEN = signed(2), rectified(3), rectified(2)
_MIXED, _MEAN_SCALE = rectified(3), rectified(4)


@lru_cache
def _compressed(device: torch.device) -> Tensor:
    """sign(x) round(10 log(1 + |x|)) of every x in 1 / 2**FRACTION steps up to where it reaches 63, int16."""
    upper = torch.bucketize(torch.arange(_THRESHOLDS[-1] + 1), torch.tensor(_THRESHOLDS), right=True)
    return torch.cat([-upper.flip(0)[:-1], upper]).short().to(device)


def compress(x: Tensor) -> Tensor:
    """sign(x) round(10 log(1 + |x|)), at most 63, by a table: int32 in 1 / 2**FRACTION steps -> int16."""
    return _compressed(x.device)[x.clamp(-_THRESHOLDS[-1], _THRESHOLDS[-1]) + _THRESHOLDS[-1]]


def step_feature(step: int) -> int:
    """A step in units of 1 / STEP_UNIT as the networks see it: its logarithm, -64..63."""
    return max(-64, min(63, round(32 * (math.log2(step / STEP_UNIT) / 3 - 1.5))))


@lru_cache
def _step_bounds(device: torch.device) -> Tensor:
    """The smallest step with each feature but the lowest, (127,) int64."""
    steps = range(1, 2**18)
    bounds = [steps[bisect_left(steps, feature, key=step_feature)] for feature in range(-63, 64)]
    return torch.tensor(bounds, device=device)


def step_features(step: Tensor) -> Tensor:
    """`step_feature` of each, (N,) int64 -> (N, 1, 1, 1) int16, on its device."""
    return (torch.bucketize(step, _step_bounds(step.device), right=True) - 64).short().view(-1, 1, 1, 1)


class Pass(NamedTuple):
    """What is coded at once: some planes of one phase, of a tile of a level."""

    level: int
    tile: int  # its number
    area: Area  # in positions of the level
    low: Tensor  # what is decoded of it one level up, (N, 3, h, w) int32 in 1 / 2**FRACTION steps
    phase: tuple[int, int]
    planes: slice  # which of the three

    @property
    def first(self) -> bool:
        """Whether it is the first of its tile."""
        return self.phase == PHASES[0] and not self.planes.start

    @property
    def channels(self) -> int:
        """How many coefficients each of its positions has."""
        return 3 * len(range(3)[self.planes])

    def of(self, bands: list[Tensor]) -> Tensor:
        """Its coefficients (N, channels, h/2, w/2), sides rounded up, out of all levels' (N, 9, h, w), band by band."""
        band = bands[self.level - 1][..., self.area.top : self.area.bottom, self.area.left : self.area.right]
        return self.positions(band.unflatten(1, (3, 3))[:, :, self.planes].flatten(1, 2))

    def positions(self, x: Tensor) -> Tensor:
        """Its phase, (N, C, h/2, w/2), sides rounded up, of the whole tile (N, C, h, w)."""
        height, width = x.shape[2:]
        dy, dx = self.phase
        return F.pad(x, (0, width % 2, 0, height % 2))[..., dy::2, dx::2]

    def of_bands(self, x: Tensor) -> Tensor:
        """What the whole tile has for each band and position, (N, 3, h, w), for each coefficient that `of` gives."""
        return self.positions(x).repeat_interleave(self.channels // 3, 1)


Code = Callable[[Pass, Tensor, Tensor], Tensor]  # see `Prior.tile`
Synthesise = Callable[[Tensor, Tensor, int, int], Tensor]  # see `lifting.synthesise`


def _replicate(x: Tensor, before: int, bottom: int, right: int) -> Tensor:
    """Repeat the first row and column of (N, C, H, W), of any dtype, `before` times; the last ones as told."""
    rows, columns = x[:, :, :1], x[:, :, -1:]
    x = torch.cat([rows] * before + [x] + [columns] * bottom, 2) if before or bottom else x
    rows, columns = x[..., :1], x[..., -1:]
    return torch.cat([rows] * before + [x] + [columns] * right, 3) if before or right else x


def to_multiple(x: Tensor, side: int) -> Tensor:
    """Repeat the last row and column of (N, C, H, W) until both sides are multiples of side."""
    return _replicate(x, 0, -x.shape[2] % side, -x.shape[3] % side)


def sums_of_3x3(x: Tensor) -> Tensor:
    """Of each position of (N, C, H, W) and its neighbours; beyond the borders, the nearest ones are repeated."""
    x = _replicate(x, 1, 1, 1)
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def _relative(cells: Tensor) -> tuple[Tensor, Tensor]:
    """cells (N, 3k, h, w): k samples each of three planes -> the samples less the mean of the 3x3 cells around theirs,
    and that mean (N, 3, h, w)."""
    n, channels, h, w = cells.shape
    total = sums_of_3x3(cells.view(n, 3, -1, h, w).sum(2))
    mean = torch.div(total, 3 * channels, rounding_mode="floor").int()
    return cells - mean.repeat_interleave(channels // 3, 1), mean


class Residual(nn.Module):
    """x + b(a(x)), saturating."""

    def __init__(self, conv: type[Convolution], channels: int, hidden: int, stream: Scale, between: Scale):
        super().__init__()
        self.a = conv(channels, hidden, 3, stream, between)
        self.b = conv(hidden, channels, 3, between, stream)

    def forward(self, x: Tensor) -> Tensor:
        return add(x, self.b(self.a(x)))


class _PassNetwork(nn.Module):
    """The coefficients of one phase, luma or chroma: trunk and context -> mean and scale of each."""

    def __init__(self, conv: type[Convolution], trunk: int, channels: int, kernel: int, known: int, coded: int):
        super().__init__()
        self.context = conv(known, channels, kernel, FEATURE, _CONTEXT) if known else None
        self.mix = conv(trunk + (channels if known else 0), channels, 1, _CONTEXT, _MIXED)
        self.hidden = conv(channels, channels, 1, _MIXED, _MEAN_SCALE)
        self.out = conv(channels, 2 * coded, 1, _MEAN_SCALE, None)

    def forward(self, trunk: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.context is not None:
            trunk = torch.cat([trunk, self.context(known)], 1)
        mean, scale = self.out(self.hidden(self.mix(trunk))).chunk(2, 1)
        return mean, scale


class Prior(nn.Module):
    """One network for every step, and for as many levels as are given to it.

    norm: the logarithm to base 2 of what a level's low band is short of an orthonormal transform's, a level.
    kernel: how many cells along each axis a pass sees of those before it.
    planes: what is coded one after the other, phase by phase.
    """

    def __init__(
        self,
        conv: type[Convolution],
        norm: int = 0,
        trunk: int = 96,
        blocks: int = 3,
        channels: int = 64,
        kernel: int = 3,
        planes: Sequence[slice] = (LUMA, CHROMA),
    ):
        super().__init__()
        self.norm, self.planes = norm, planes
        self.form = conv.form
        self.input = conv(23, trunk, 3, FEATURE, _STREAM, biases=LEVELS)
        self.trunk = nn.Sequential(*[Residual(conv, trunk, trunk, _STREAM, _HIDDEN) for _ in range(blocks)])
        self.passes = nn.ModuleList()
        for phase in range(len(PHASES)):
            for these in planes:  # of three bands
                known, coded = 9 * phase + 3 * these.start, 3 * (these.stop - these.start)
                self.passes.append(_PassNetwork(conv, trunk, channels, kernel, known, coded))

    def features(self, low: Tensor, coarser: Tensor | None, step: Tensor, level: int) -> Tensor:
        """low (N, 3, 2h, 2w) and coarser (N, 9, h, w) or None, int32 in 1 / 2**FRACTION steps,
        step (N,) int64 in 1 / STEP_UNIT -> (N, 23, h, w) integers -64..63."""
        details, mean = _relative(F.pixel_unshuffle(low, 2))
        n, _, h, w = details.shape
        bands = compress(low.new_zeros(n, 9, h, w) if coarser is None else coarser)
        brightness = (mean[:, :1] * step.int().view(-1, 1, 1, 1)) >> (level + lifting.FRACTION + 7 + 2)
        logarithms = step_features(step).expand(n, 1, h, w)
        return torch.cat([compress(details), bands, logarithms, brightness.clamp(-64, 63).short()], 1)

    def tile(
        self,
        low: Tensor,
        coarser: Tensor | None,
        step: Tensor,
        place: Callable[[tuple[int, int], slice], Pass],
        code: Code,
        grey: bool = False,
    ) -> Tensor:
        """Code one tile of a level; low (N, 3, h, w), coarser and step as in `features`.

        place(phase, planes) names its passes. code(pass, mean, log_scale) is called for each, with real numbers in
        steps (N, channels, h/2, w/2), sides rounded up, and gives the coefficients there, int32 in 1 / 2**FRACTION
        steps. grey leaves out the passes of chroma, whose coefficients are zero. Returns the tile's (N, 9, h, w).
        """
        height, width = low.shape[2:]
        low = to_multiple(low, 2)
        passes = [place(phase, planes) for phase in PHASES for planes in self.planes]
        level = passes[0].level
        features = self.form(self.features(low, coarser, step, level), FEATURE)
        trunk = rectify(self.trunk(self.input(features, level - 1)))
        n, _, h, w = low.shape
        out = low.new_zeros(n, 9, h, w)
        known: list[Tensor] = []
        for this, network in zip(passes, self.passes, strict=True):
            if grey and this.planes.start:
                values = low.new_zeros(n, this.channels, h // 2, w // 2)
            else:
                values = code(this, *network(trunk, torch.cat(known, 1) if known else None))
                here = out.unflatten(1, (3, 3))[:, :, this.planes, this.phase[0] :: 2, this.phase[1] :: 2]
                here.copy_(values.unflatten(1, (3, -1)))
            known.append(self.form(compress(values), FEATURE))
        return out[..., :height, :width]


def walk(
    priors: Sequence[Prior] | nn.ModuleList,
    low: Tensor,
    height: int,
    width: int,
    step: Tensor,
    code: Code,
    plan: list[Level],
    grey: bool = False,
    synthesise: Synthesise = lifting.synthesise,
) -> Tensor:
    """Code the levels of a plan for a picture of these sides, from the low band up: (N, 3, h, w) int32 in
    1 / 2**FRACTION steps, as all that comes of it; step (N,) int64 in 1 / STEP_UNIT.

    priors: of the finest level and of those above it; the last is that of all coarser ones, too. Returns what the
    plan's last level makes, (N, 3, 2h, 2w) less what lies outside.
    """
    n, _, h, w = low.shape
    picture, covered = low, Area(0, 0, h, w)
    bands: Tensor | None = None
    for level, area, areas in plan:
        prior = cast(Prior, priors[min(level, len(priors)) - 1])
        picture, coarser = picture[area.within(covered)], bands
        bands = picture.new_zeros(n, 9, *picture.shape[2:])
        for tile, here in areas:
            above = None if coarser is None else coarser[here.coarser().within(covered.coarser())]
            inside = here.within(area)
            place = partial(Pass, level, tile, here, picture[inside])
            bands[inside] = prior.tile(picture[inside], above, step << prior.norm * level, place, code, grey)
        covered = area.finer(*tiles.size(height, width, level - 1))
        sides = covered.bottom - covered.top, covered.right - covered.left
        picture = synthesise(picture, bands, *sides)
    return picture
