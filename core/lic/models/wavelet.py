"""`wavelet`, the default model: a 9/7 wavelet, a learned prior that runs in integers, a learned post-filter.

After iWave++ (Ma et al., "End-to-End Optimized Versatile Image Compression With Wavelet-Like Transform", TPAMI 2020)
and, for the parallel context, Meyer et al., "Efficient Learned Wavelet Image and Video Coding" (arXiv 2405.12631).

    picture -> orthonormal colour transform -> 9/7 lifting, six levels -> one quantisation step for all bands
                                                                              |
    low band (decoded), coarser bands, step -> trunk --+                      v
                                                       +-> mean and scale -> entropy coder, coarse to fine
    what this level has coded so far -> context -------+   8 passes a level: 4 phases x (luma, chroma)

    integers -> reconstruction points -> integer lifting -> post-filter -> colour transform -> picture

The prior works on cells, 2x2 positions of a level: one sample of the level above, one coefficient of each phase.

All that encoder and decoder must agree on is a function of integers (lic.layers.integer, lic.layers.lifting); lengths
are in units of the quantisation step, in which the picture decoded so far needs no step at all.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.container import Reader, write_varint
from lic.entropy import PRECISION, Decoder, Encoder, Table, integer_frequencies
from lic.errors import FormatError
from lic.layers import lifting, tiles
from lic.layers.integer import Convolution, Scale, TrainableConv2d, add, kernel_for, rectified, rectify, signed
from lic.layers.tiles import Area, Level

LEVELS = 6
STEP_UNIT = 128  # steps are coded as integers, in 1/128 of an 8-bit pixel value
PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # coding order of the 2x2 positions
LUMA, CHROMA = [0, 3, 6], [1, 2, 4, 5, 7, 8]  # channels of (HL, LH, HH) x (Y, C1, C2)

# Orthonormal colour transform: an error of one step is the same error in RGB, whatever the plane.
COLOUR = torch.tensor([[3**-0.5] * 3, [2**-0.5, 0, -(2**-0.5)], [6**-0.5, -2 * 6**-0.5, 6**-0.5]])

_LOGARITHM = 10  # what `compress` multiplies the natural logarithm by
_THRESHOLDS = [math.ceil(2**lifting.FRACTION * math.expm1((k - 0.5) / _LOGARITHM)) for k in range(1, 64)]

_FEATURE = signed(3)
_STREAM, _CONTEXT, _HIDDEN = signed(2), rectified(3), rectified(2)
_MIXED, _MEAN_SCALE = rectified(3), rectified(4)
_FILTER_STREAM, _FILTER_HIDDEN = signed(6), rectified(5)


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


class Pass(NamedTuple):
    """What is coded at once: luma or chroma of one phase, of a tile (its number, and its area) of a level."""

    level: int
    tile: int
    area: Area
    phase: tuple[int, int]
    channels: list[int]

    def of(self, bands: list[Tensor]) -> Tensor:
        """Its coefficients (N, len(channels), h/2, w/2), sides rounded up, out of all levels' (N, 9, h, w)."""
        band = bands[self.level - 1][..., self.area.top : self.area.bottom, self.area.left : self.area.right]
        height, width = band.shape[2:]
        dy, dx = self.phase
        return F.pad(band, (0, width % 2, 0, height % 2))[:, self.channels, dy::2, dx::2]


Code = Callable[[Pass, Tensor, Tensor], Tensor]  # see `Prior.tile`


def _replicate(x: Tensor, before: int, bottom: int, right: int) -> Tensor:
    """Repeat the first row and column of (N, C, H, W), of any dtype, `before` times; the last ones as told."""
    rows, columns = x[:, :, :1], x[:, :, -1:]
    x = torch.cat([rows] * before + [x] + [columns] * bottom, 2) if before or bottom else x
    rows, columns = x[..., :1], x[..., -1:]
    return torch.cat([rows] * before + [x] + [columns] * right, 3) if before or right else x


def _to_multiple(x: Tensor, side: int) -> Tensor:
    """Repeat the last row and column of (N, C, H, W) until both sides are multiples of side."""
    return _replicate(x, 0, -x.shape[2] % side, -x.shape[3] % side)


def _relative(cells: Tensor) -> tuple[Tensor, Tensor]:
    """cells (N, 3k, h, w): k samples each of three planes -> the samples less the mean of the 3x3 cells around theirs,
    and that mean (N, 3, h, w)."""
    n, channels, h, w = cells.shape
    sums = _replicate(cells.view(n, 3, -1, h, w).sum(2), 1, 1, 1)
    rows = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    mean = torch.div(total, 3 * channels, rounding_mode="floor").int()
    return cells - mean.repeat_interleave(channels // 3, 1), mean


class _Residual(nn.Module):
    def __init__(self, conv: type[Convolution], channels: int, hidden: int, stream: Scale, between: Scale):
        super().__init__()
        self.a = conv(channels, hidden, 3, stream, between)
        self.b = conv(hidden, channels, 3, between, stream)

    def forward(self, x: Tensor) -> Tensor:
        return add(x, self.b(self.a(x)))


class _PassNetwork(nn.Module):
    """The coefficients of one phase, luma or chroma: trunk and context -> mean and scale of each."""

    def __init__(self, conv: type[Convolution], trunk: int, channels: int, known: int, coded: int):
        super().__init__()
        self.context = conv(known, channels, 3, _FEATURE, _CONTEXT) if known else None
        self.mix = conv(trunk + (channels if known else 0), channels, 1, _CONTEXT, _MIXED)
        self.hidden = conv(channels, channels, 1, _MIXED, _MEAN_SCALE)
        self.out = conv(channels, 2 * coded, 1, _MEAN_SCALE, None)

    def forward(self, trunk: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.context is not None:
            trunk = torch.cat([trunk, self.context(known)], 1)
        mean, scale = self.out(self.hidden(self.mix(trunk))).chunk(2, 1)
        return mean, scale


class Prior(nn.Module):
    """One network for every level and step."""

    def __init__(self, conv: type[Convolution], trunk: int = 96, blocks: int = 3, channels: int = 64):
        super().__init__()
        self.form = conv.form
        self.input = conv(23, trunk, 3, _FEATURE, _STREAM, biases=LEVELS)
        self.trunk = nn.Sequential(*[_Residual(conv, trunk, trunk, _STREAM, _HIDDEN) for _ in range(blocks)])
        self.passes = nn.ModuleList()
        for phase in range(len(PHASES)):
            self.passes.append(_PassNetwork(conv, trunk, channels, 9 * phase, len(LUMA)))
            self.passes.append(_PassNetwork(conv, trunk, channels, 9 * phase + len(LUMA), len(CHROMA)))

    def features(self, low: Tensor, coarser: Tensor | None, step: Tensor, level: int) -> Tensor:
        """low (N, 3, 2h, 2w) and coarser (N, 9, h, w) or None, int32 in 1 / 2**FRACTION steps,
        step (N,) int64 in 1 / STEP_UNIT -> (N, 23, h, w) integers -64..63."""
        details, mean = _relative(F.pixel_unshuffle(low, 2))
        n, _, h, w = details.shape
        bands = compress(low.new_zeros(n, 9, h, w) if coarser is None else coarser)
        brightness = (mean[:, :1] * step.int().view(-1, 1, 1, 1)) >> (level + lifting.FRACTION + 7 + 2)
        logarithms = low.new_tensor([step_feature(s) for s in step.tolist()]).view(-1, 1, 1, 1).expand(n, 1, h, w)
        return torch.cat([compress(details), bands, logarithms.short(), brightness.clamp(-64, 63).short()], 1)

    def levels(
        self,
        low: Tensor,
        height: int,
        width: int,
        step: Tensor,
        code: Code,
        plan: list[Level],
        grey: bool = False,
    ) -> Tensor:
        """Code the levels of a plan for a picture of these sides, from the low band (N, 3, h, w) int32 in steps up.

        Returns what the plan's last level makes, (N, 3, 2h, 2w) less what lies outside, int32 in 1 / 2**FRACTION steps.
        """
        n, _, h, w = low.shape
        picture, covered = low << lifting.FRACTION, Area(0, 0, h, w)
        bands: Tensor | None = None
        for level, area, areas in plan:
            picture, coarser = picture[area.within(covered)], bands
            bands = picture.new_zeros(n, 9, *picture.shape[2:])
            for tile, here in areas:
                above = None if coarser is None else coarser[here.coarser().within(covered.coarser())]
                inside = here.within(area)
                bands[inside] = self.tile(picture[inside], above, step, partial(Pass, level, tile, here), code, grey)
            covered = area.finer(*tiles.size(height, width, level - 1))
            sides = covered.bottom - covered.top, covered.right - covered.left
            picture = lifting.synthesise(picture, bands, *sides)
        return picture

    def tile(
        self,
        low: Tensor,
        coarser: Tensor | None,
        step: Tensor,
        place: Callable[[tuple[int, int], list[int]], Pass],
        code: Code,
        grey: bool = False,
    ) -> Tensor:
        """Code one tile of a level; low (N, 3, h, w), coarser and step as in `features`.

        place(phase, channels) names its passes. code(pass, mean, log_scale) is called for each, with real numbers in
        steps (N, len(channels), h/2, w/2), sides rounded up, and gives the coefficients there, int32 in 1 / 2**FRACTION
        steps. grey leaves out the passes of chroma, whose coefficients are zero. Returns the tile's (N, 9, h, w).
        """
        height, width = low.shape[2:]
        low = _to_multiple(low, 2)
        passes = [place(phase, channels) for phase in PHASES for channels in (LUMA, CHROMA)]
        level = passes[0].level
        features = self.form(self.features(low, coarser, step, level), _FEATURE)
        trunk = rectify(self.trunk(self.input(features, level - 1)))
        n, _, h, w = low.shape
        out = low.new_zeros(n, 9, h, w)
        known: list[Tensor] = []
        for this, network in zip(passes, self.passes, strict=True):
            if grey and this.channels is CHROMA:
                values = low.new_zeros(n, len(CHROMA), h // 2, w // 2)
            else:
                values = code(this, *network(trunk, torch.cat(known, 1) if known else None))
                out[:, this.channels, this.phase[0] :: 2, this.phase[1] :: 2] = values
            known.append(self.form(compress(values), _FEATURE))
        return out[..., :height, :width]


_FOLD = 2  # the side of the squares of pixels that the post-filter takes as one position


class PostFilter(nn.Module):
    """The picture folded into channels, and the step -> residual blocks -> a correction in units of the step."""

    def __init__(self, conv: type[Convolution], channels: int = 64, hidden: int = 32, blocks: int = 3):
        super().__init__()
        self.form = conv.form
        self.reach = _FOLD * (2 * blocks + 2)  # how far from a pixel what decides on it lies
        pixels = 3 * _FOLD**2
        self.input = conv(2 * pixels + 1, channels, 3, _FEATURE, _FILTER_STREAM)
        residuals = [_Residual(conv, channels, hidden, _FILTER_STREAM, _FILTER_HIDDEN) for _ in range(blocks)]
        self.blocks = nn.Sequential(*residuals)
        self.out = conv(channels, pixels, 3, _FILTER_STREAM, None)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, picture: Tensor, step: Tensor) -> Tensor:
        """picture (N, 3, H, W) int32 in 1 / 2**FRACTION steps, step (N,) int64 in 1 / STEP_UNIT
        -> (N, 3, H, W) float32, the correction in steps."""
        height, width = picture.shape[2:]
        picture = _to_multiple(picture, _FOLD)
        halves = (picture * step.int().view(-1, 1, 1, 1) + (1 << 12)) >> 13  # of an 8-bit pixel value
        folded = F.pixel_unshuffle(halves.clamp(-1024, 1023).short(), _FOLD)
        n, _, h, w = folded.shape
        logarithms = folded.new_tensor([step_feature(s) for s in step.tolist()]).view(-1, 1, 1, 1).expand(n, 1, h, w)
        features = torch.cat([folded >> 4, logarithms >> 2, folded & 15], 1)
        x = self.blocks(self.input(self.form(features, _FEATURE)))
        return F.pixel_shuffle(self.out(x), _FOLD)[..., :height, :width]


def logistic_bits(q: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integer q under a logistic, in log space throughout: an outlier keeps its gradient."""
    rate = torch.exp(-(3 * log_scale.float()).clamp(-6, 7))
    distance = (q - mean.float()).abs()
    nats = F.logsigmoid((0.5 - distance) * rate) + F.logsigmoid((0.5 + distance) * rate)
    return (nats + torch.log(-torch.expm1(-rate))) * (-1 / math.log(2))


class Networks(nn.Module):
    """Prior, reconstruction points and post-filter, and how they are trained together (lic.training.loop.Trainable)."""

    points: Tensor

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.prior = Prior(conv)
        self.post_filter = PostFilter(conv)
        self.register_buffer("points", torch.zeros(SCALES * MEANS * _POINTS))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step. Besides `loss`: the rate's part of it, bits per pixel, and the decibels the filter gains."""
        n, _, height, width = pixels.shape
        planes = to_planes(pixels)
        uniform = torch.rand(n, generator=generator)
        wide = torch.rand(1, generator=generator) < 0.15
        low, high = (1.0, 8.7) if wide else (math.log2(5), math.log2(130))
        step = torch.exp2(low + (high - low) * uniform).mul(STEP_UNIT).round().long().to(pixels.device)
        bits: list[Tensor] = []
        errors, counts = torch.zeros_like(self.points), torch.zeros_like(self.points)

        def code(c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            q = optimise(c, mean, log_scale)
            bits.append(logistic_bits(q, mean, log_scale).sum((1, 2, 3)))
            table, nearest, sign = choose_tables(mean.detach(), log_scale.detach())
            symbols = sign * (q.int() - nearest)
            at = point_index(table, symbols).flatten()
            errors.index_add_(0, at, (sign * (c - q)).flatten() * 2**lifting.FRACTION)
            counts.index_add_(0, at, torch.ones_like(at, dtype=torch.float32))
            return reconstruct(table, nearest, sign, symbols, self.points)

        real_step = (step.float() / STEP_UNIT).view(-1, 1, 1, 1)
        picture = self._walk(planes / real_step, step, code)
        if self.training:  # each point follows the mean of its last few thousand coefficients
            self.points += (errors - counts * self.points) / (counts + 2000)
        correction = self.post_filter(picture, step)
        error = planes / real_step - picture / 2**lifting.FRACTION
        before, after = error.square().mean((1, 2, 3)), (error - correction).square().mean((1, 2, 3))
        bits_per_pixel = torch.stack(bits).sum(0) / (height * width)
        rate = (bits_per_pixel / (0.15 + bits_per_pixel.detach())).mean()  # every rate counts alike
        return {
            "loss": rate + torch.log(after / before + 1e-3).mean(),
            "rate_loss": rate,
            "bits_per_pixel": bits_per_pixel.mean(),
            "gain_db": -10 * torch.log10(after / before).mean(),
            "psnr": -10 * torch.log10(after * real_step.flatten().square() / 255**2).mean(),
        }

    def _walk(self, x: Tensor, step: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Analyse planes in steps and code every coefficient but the low band's; the picture decoded."""
        low, bands = lifting.analyse(x, LEVELS)

        def code_pass(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            return code(this.of(bands), mean, log_scale)

        height, width = x.shape[2:]
        plan = tiles.plan(height, width, LEVELS)
        return self.prior.levels(low.round().int(), height, width, step, code_pass, plan)

    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks' integers, and tables that start as logistics and follow what the pictures' coefficients do."""
        out: dict[str, Tensor] = {}
        for name, layer in self.named_modules():
            if isinstance(layer, TrainableConv2d):
                out |= {f"{name}.{field}": tensor for field, tensor in layer.shipped().items()}
        out["points"] = self.points.round().clamp(-127, 127).to(torch.int8)
        networks = Networks(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out)
        return out | pack_tables(networks.calibrated(pictures))

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, TrainableConv2d):
                layer.start_from({field: shipped[f"{name}.{field}"] for field in ("weight", "bias", "exponent")})
        self.points.copy_(shipped["points"])

    @torch.inference_mode()
    def calibrated(self, pictures: list[np.ndarray]) -> list[Table]:
        """Tables from counts over the pictures at six steps, a logistic counting as much as _BELIEF symbols."""
        tables = logistic_tables()
        counts = np.zeros((len(tables), max(len(t.frequencies) for t in tables)))
        firsts = np.array([t.first for t in tables])
        sizes = np.array([t.size for t in tables])

        def code(c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            table, nearest, sign = choose_tables(mean, log_scale)
            symbols = sign * (optimise(c, mean, log_scale).int() - nearest)
            indices = table.flatten().numpy()
            entries = symbols.flatten().numpy() - firsts[indices]
            entries = np.where((entries < 0) | (entries >= sizes[indices]), 0, entries + 1)
            np.add.at(counts, (indices, entries), 1)
            return reconstruct(table, nearest, sign, symbols, self.points)

        for i, pixels in enumerate(tqdm(pictures, desc="calibrating", unit="picture", disable=None)):
            step = 4 * 2 ** (i % 6)
            height, width = (side - side % 2**LEVELS for side in pixels.shape[:2])
            planes = to_planes(torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None].float())
            self._walk(planes / step, torch.tensor([step * STEP_UNIT]), code)
        out = []
        for table, count in zip(tables, counts, strict=True):
            belief = table.frequencies / 2.0**PRECISION * _BELIEF
            out.append(Table(table.first, integer_frequencies(count[: len(belief)] + belief)))
        return out


_BELIEF = 2000.0


def to_planes(pixels: Tensor) -> Tensor:
    """RGB (N, 3, H, W) float32 0..255 -> the planes of COLOUR, whatever autocast says."""
    return torch.stack([sum(row[j] * (pixels[:, j] - 128) for j in range(3)) for row in COLOUR.tolist()], 1)


LAGRANGIAN = 0.10  # squared steps a bit is worth in rate-distortion optimised quantisation


@torch.no_grad()
def optimise(c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Rate-distortion optimised quantisation: the integer beside c with the smaller error + LAGRANGIAN * bits."""
    below = torch.floor(c)
    cost_below = (c - below).square() + LAGRANGIAN * logistic_bits(below, mean, log_scale)
    cost_above = (below + 1 - c).square() + LAGRANGIAN * logistic_bits(below + 1, mean, log_scale)
    return below + (cost_above < cost_below)


# What the networks' outputs choose: 64 scales of a logistic, MEANS distances of its mean from the nearest integer.
SCALES, MEANS = 64, 5
_NARROWEST, _SCALES_PER_E = 3.2, 7  # scale k is exp(k / 7 - 3.2) steps


def logistic_tables() -> list[Table]:
    """The tables that a trained network starts with: table k * MEANS + m has scale k and its mean at m / 8."""
    tables = []
    for k in range(SCALES):
        scale = math.exp(k / _SCALES_PER_E - _NARROWEST)
        reach = min(127, 1 + math.ceil(12 * scale))
        for m in range(MEANS):
            edges = np.arange(-reach, reach + 2) - 0.5 - m / 8
            cumulative = 1 / (1 + np.exp(-np.clip(edges / scale, -700, 700)))
            inside = np.maximum(np.diff(cumulative), 1e-9)
            outside = max(1 - (cumulative[-1] - cumulative[0]), 1e-7)
            tables.append(Table(-reach, integer_frequencies(np.append(outside, inside))))
    return tables


def choose_tables(mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the prior says of each coefficient, as int32: the table's index, and how a coefficient's integer q becomes
    the symbol s that is coded with it: s = sign * (q - nearest)."""
    eighths = (mean * 8).round().int()
    nearest = (eighths + 4) >> 3
    offset = eighths - (nearest << 3)  # -4..3
    logarithm = (log_scale * 256).round().int()  # exact, and so is all that follows
    scale = ((logarithm * (3 * _SCALES_PER_E) + round(_NARROWEST * _SCALES_PER_E * 256) + 128) >> 8).clamp(
        0, SCALES - 1
    )
    sign = 1 - 2 * (offset < 0).int()
    return scale * MEANS + offset.abs(), nearest, sign


# Where in its interval a coefficient is reconstructed depends on its table and symbol; symbols beyond +-2 share points.
_REACH = 2
_POINTS = 2 * _REACH + 1


def point_index(table: Tensor, symbols: Tensor) -> Tensor:
    return table * _POINTS + symbols.clamp(-_REACH, _REACH).int() + _REACH


def reconstruct(table: Tensor, nearest: Tensor, sign: Tensor, symbols: Tensor, points: Tensor) -> Tensor:
    """Symbols -> coefficients, int32 in 1 / 2**FRACTION steps; points (SCALES * MEANS * _POINTS,) in the same unit."""
    offset = points.round().int()[point_index(table, symbols)]
    return ((nearest + sign * symbols) << lifting.FRACTION) + sign * offset


def quality_step(quality: float) -> int:
    """quality 0..100 -> quantisation step in 1 / STEP_UNIT: 388 pixel values at 0, 20 at 75, 2 at 100."""
    t = quality / 100
    return round(STEP_UNIT * 2 ** (8.6 - 5.0 * t - 2.6 * t**6))


_COLOUR_BITS = 13
_RGB = (COLOUR * 2**_COLOUR_BITS).round().int()


class WaveletCodec:
    """One stream, `coefficients`: the step (2 bytes), the low band's scales (a byte a plane), where the picture has
    more than one tile their lengths (varints), then the range coder's bytes: the low band and all levels of a picture
    of one tile; else the low band and the levels that aren't tiled, then each tile of each level, coarse to fine."""

    card = ModelCard(
        name="wavelet",
        paper="this project's own; after iWave++ (TPAMI 2020) and arXiv 2405.12631",
        purpose="the default: photographs at every quality",
        lossy=True,
        lossless=False,
        streams=("coefficients",),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, "wavelet", weights)
        self.device = device
        self.tables = _unpack_tables(
            {k: tensors.pop(k).numpy() for k in ("tables.first", "tables.length", "tables.frequencies")}
        )
        networks = Networks(kernel_for(device))
        networks.load_state_dict(tensors)
        self.prior, self.post_filter = networks.to(device).prior, networks.post_filter
        self.points = networks.points
        self.bits = torch.from_numpy(np.concatenate([_bits(table) for table in self.tables])).to(device)

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        step = quality_step(settings.quality)
        x = planes.to(self.device).float() / (257 if shape.bit_depth == 16 else 1)
        x = (x - 128)[None] * 3**0.5 if shape.channels == 1 else to_planes(x[None])
        x = F.pad(x, (0, 0, 0, 0, 0, 3 - shape.channels))
        low, bands = lifting.analyse(x * (STEP_UNIT / step), LEVELS)
        low_q = low.round().int()[0, : shape.channels].cpu().numpy()
        residuals = _predicted(low_q)
        scales = [_scale_of(plane) for plane in residuals]
        encoders: defaultdict[int, Encoder] = defaultdict(Encoder)
        first = encoders[0]
        for plane, scale in zip(residuals, scales, strict=True):
            first.encode_shared(plane.ravel(), self.tables[scale * MEANS])

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            c = inside.take(this.of(bands))
            table, nearest, sign = choose_tables(inside.take(mean), inside.take(log_scale))
            q = self._optimise(c, table, nearest, sign) if settings.effort else c.round().int()
            symbols = sign * (q - nearest)
            encoder = encoders[tiles.part(shape.height, shape.width, this.level, this.tile)]
            encoder.encode(symbols.cpu().numpy(), table.cpu().numpy(), self.tables)
            return inside.put(reconstruct(table, nearest, sign, symbols, self.points), mean.shape)

        self._walk(low_q, shape, step, code, tiles.plan(shape.height, shape.width, LEVELS))
        parts = [encoders[i].bytes() for i in range(len(encoders))]
        lengths = b"".join(write_varint(len(part)) for part in parts[:-1])
        header = struct.pack(f"<H{shape.channels}B", step, *scales)
        return {"coefficients": b"".join([header, lengths, *parts])}

    def _optimise(self, c: Tensor, table: Tensor, nearest: Tensor, sign: Tensor) -> Tensor:
        """As `optimise`, with the bits and the reconstruction points that the tables really have; int32."""
        below = torch.floor(c).int()

        def cost(q: Tensor) -> Tensor:
            symbols = sign * (q - nearest)
            offset = sign * self.points[point_index(table, symbols)] / 2**lifting.FRACTION
            at = table * (2 * _COSTED + 1) + symbols.clamp(-_COSTED, _COSTED) + _COSTED
            return (c - q - offset).square() + LAGRANGIAN * self.bits[at]

        return below + (cost(below + 1) < cost(below)).int()

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        reader = Reader(file := io.BytesIO(streams["coefficients"]))
        step, *scales = struct.unpack(f"<H{shape.channels}B", reader.take(2 + shape.channels))
        if not step or max(scales) >= SCALES:
            raise FormatError("the coded picture's header is damaged")
        lengths = [reader.varint(2**40) for _ in range(tiles.parts(shape.height, shape.width) - 1)]
        decoders = _decoders(file.read(), lengths, view.truncated)
        rows, columns = tiles.size(shape.height, shape.width, LEVELS)
        residuals = [decoders[0].decode_shared(rows * columns, self.tables[scale * MEANS]) for scale in scales]
        low_q = _unpredicted(np.stack(residuals).reshape(shape.channels, rows, columns))

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            table, nearest, sign = choose_tables(inside.take(mean), inside.take(log_scale))
            symbols = torch.zeros_like(table)
            part = tiles.part(shape.height, shape.width, this.level, this.tile)
            try:
                if part in decoders:
                    decoded = decoders[part].decode(table.cpu().numpy(), self.tables)
                    symbols = torch.from_numpy(decoded).to(self.device)
            except FormatError:
                if not view.truncated:
                    raise
                del decoders[part]  # what is missing is as predicted
            return inside.put(reconstruct(table, nearest, sign, symbols, self.points), mean.shape)

        wanted, (height, width) = view.area(shape), tiles.size(shape.height, shape.width, view.halvings)
        around = wanted if view.halvings else wanted.around(self.post_filter.reach, _FOLD, height, width)
        plan = tiles.plan(shape.height, shape.width, LEVELS, around, view.halvings)
        picture = self._walk(low_q, shape, step, code, plan)
        covered = plan[-1].area.finer(height, width) if plan else Area(0, 0, rows, columns)
        if view.halvings:
            return self._pixels(picture[wanted.within(covered)], shape, step, view.halvings)
        out = torch.empty(shape.channels, wanted.bottom - wanted.top, wanted.right - wanted.left, dtype=torch.int32)
        for part in wanted.squares(tiles.TILE):  # bounded memory
            around = part.around(self.post_filter.reach, _FOLD, height, width)
            pixels = picture[around.within(covered)]
            correction = self.post_filter(pixels, torch.tensor([step], device=self.device))
            pixels = pixels + ((correction * 64).round().int() << lifting.FRACTION - 6)
            out[part.within(wanted)] = self._pixels(pixels[part.within(around)], shape, step)
        return out

    def _walk(self, low: np.ndarray, shape: PlaneShape, step: int, code: Code, plan: list[Level]) -> Tensor:
        """From the low band (C, rows, columns), code a plan's levels; the picture (3, h, w) that they make."""
        low = np.pad(low, ((0, 3 - len(low)), (0, 0), (0, 0)))
        start = torch.from_numpy(low.astype(np.int32)).to(self.device)[None]
        steps = torch.tensor([step], device=self.device)
        return self.prior.levels(start, shape.height, shape.width, steps, code, plan, shape.channels == 1)

    def _pixels(self, picture: Tensor, shape: PlaneShape, step: int, halvings: int = 0) -> Tensor:
        """A part of the picture (1, 3, h, w) in 1 / 2**FRACTION steps, after `halvings` levels -> (C, h, w) int32."""
        shift = lifting.FRACTION + halvings + 7 - 6
        # In 1/64 pixel values. No picture has larger ones, nor do 32 bits overflow below.
        values = ((picture[0] * step + (1 << shift - 1)) >> shift).clamp(-(2**16), 2**16)
        if shape.channels == 1:
            colours = values[:1] * round(3**-0.5 * 2**_COLOUR_BITS)
        else:
            rgb = _RGB.tolist()
            colours = torch.stack([sum(rgb[i][j] * values[i] for i in range(3)) for j in range(3)])
        fraction = _COLOUR_BITS + 6
        colours += 128 << fraction
        if shape.bit_depth == 16:
            colours = colours.long() * 257
        return ((colours + (1 << fraction - 1)) >> fraction).clamp(0, 2**shape.bit_depth - 1).int()


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


def _predicted(low: np.ndarray) -> np.ndarray:
    """Each sample (C, H, W) less its left neighbour; the first column, less the one above."""
    first = np.diff(low[:, :, :1], axis=1, prepend=0)
    return np.concatenate([first, np.diff(low, axis=2)], axis=2)


def _unpredicted(residuals: np.ndarray) -> np.ndarray:
    residuals[:, :, 0] = np.cumsum(residuals[:, :, 0], axis=1)
    return np.cumsum(residuals, axis=2).clip(-(2**23), 2**23)  # only damage goes further: see lifting.synthesise


def _scale_of(residuals: np.ndarray) -> int:
    """The table scale that suits a plane of residuals: a logistic's mean absolute value is 2 log 2 scales."""
    scale = max(np.abs(residuals).mean() / (2 * math.log(2)), 0.05)
    return min(SCALES - 1, max(0, round((math.log(scale) + _NARROWEST) * _SCALES_PER_E)))


_COSTED = 16  # symbols farther out all count as equally expensive


def _bits(table: Table) -> np.ndarray:
    """What each symbol -_COSTED.._COSTED costs, (2 * _COSTED + 1,) float32."""
    costs = table.bits()
    entries = np.arange(-_COSTED, _COSTED + 1) - table.first
    return costs[np.where((entries < 0) | (entries >= table.size), 0, entries + 1)]


def _unpack_tables(packed: dict[str, np.ndarray]) -> list[Table]:
    ends = np.cumsum(packed["tables.length"])
    parts = np.split(packed["tables.frequencies"], ends[:-1])
    return [Table(int(first), part) for first, part in zip(packed["tables.first"], parts, strict=True)]


def pack_tables(tables: list[Table]) -> dict[str, Tensor]:
    """Tables as they are shipped, beside the networks' weights."""
    return {
        "tables.first": torch.tensor([t.first for t in tables], dtype=torch.int16),
        "tables.length": torch.tensor([len(t.frequencies) for t in tables], dtype=torch.int16),
        "tables.frequencies": torch.from_numpy(np.concatenate([t.frequencies for t in tables]).astype(np.int32)),
    }
