"""`wavelet`, the default model: a 9/7 wavelet, a learned prior that runs in integers, a learned post-filter.

After iWave++ (Ma et al., "End-to-End Optimized Versatile Image Compression With Wavelet-Like Transform", TPAMI 2020).

    picture -> orthonormal colour transform -> 9/7 lifting, six levels -> one quantisation step for all bands, a trellis
                                                  -> entropy coder, coarse to fine, as lic.layers.band_prior predicts

    integers -> reconstruction points -> integer lifting -> post-filter -> colour transform -> picture

All that encoder and decoder must agree on is a function of integers (lic.layers.integer, lic.layers.lifting).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.errors import FormatError, TruncatedError
from lic.layers import integer, lifting, tiles, trellis
from lic.layers.band_prior import (
    FEATURE,
    LEVELS,
    STEP_UNIT,
    Code,
    Pass,
    Prior,
    Residual,
    step_feature,
    to_multiple,
    walk,
)
from lic.layers.coefficients import BandsReader, BandsWriter, Inside, logistic_bits, scaled
from lic.layers.colour import COLOUR, UNTURNED, best_angles, times, to_planes, turn
from lic.layers.integer import Convolution, TrainableConv2d, kernel_for, rectified, signed
from lic.layers.tiles import Area, Level
from lic.layers.trellis import Expected, quantise

_FILTER_STREAM, _FILTER_HIDDEN = signed(6), rectified(5)
_FOLD = 2  # the side of the squares of pixels that the post-filter takes as one position


class PostFilter(nn.Module):
    """The picture folded into channels, and the step -> residual blocks -> a correction in units of the step."""

    def __init__(self, conv: type[Convolution], channels: int = 64, hidden: int = 64, blocks: int = 3):
        super().__init__()
        self.form = conv.form
        self.reach = _FOLD * (2 * blocks + 2)  # how far from a pixel what decides on it lies
        pixels = 3 * _FOLD**2
        self.input = conv(2 * pixels + 1, channels, 3, FEATURE, _FILTER_STREAM)
        residuals = [Residual(conv, channels, hidden, _FILTER_STREAM, _FILTER_HIDDEN) for _ in range(blocks)]
        self.blocks = nn.Sequential(*residuals)
        self.out = conv(channels, pixels, 3, _FILTER_STREAM, None)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, picture: Tensor, step: Tensor) -> Tensor:
        """picture (N, 3, H, W) int32 in 1 / 2**FRACTION steps, step (N,) int64 in 1 / STEP_UNIT
        -> (N, 3, H, W) float32, the correction in steps."""
        height, width = picture.shape[2:]
        picture = to_multiple(picture, _FOLD)
        halves = (picture * step.int().view(-1, 1, 1, 1) + (1 << 12)) >> 13  # of an 8-bit pixel value
        folded = F.pixel_unshuffle(halves.clamp(-1024, 1023).short(), _FOLD)
        n, _, h, w = folded.shape
        logarithms = folded.new_tensor([step_feature(s) for s in step.tolist()]).view(-1, 1, 1, 1).expand(n, 1, h, w)
        features = torch.cat([folded >> 4, logarithms >> 2, folded & 15], 1)
        x = self.blocks(self.input(self.form(features, FEATURE)))
        return F.pixel_shuffle(self.out(x), _FOLD)[..., :height, :width]


_PART = 160  # pixels, the sides of what training codes in full
_PRIORS = 3  # of the finest level, the next one, and all others


class Networks(nn.Module):
    """Prior, reconstruction points and post-filter, and how they are trained together (lic.training.loop.Trainable)."""

    shrunk = 0.5
    points: Tensor

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.priors = nn.ModuleList([Prior(conv, blocks=4) for _ in range(_PRIORS)])
        self.post_filter = PostFilter(conv)
        self.register_buffer("points", torch.zeros(trellis.POINTS))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step. Besides `loss`: the rate's part of it, bits per pixel, and the decibels the filter gains.

        Coarse levels have few coefficients, and cost little: they are coded in whole crops, the two finest levels and
        the post-filter in a part of them.
        """
        n, _, height, width = pixels.shape
        top, left = (
            4 * int(torch.randint(max(side - _PART, 0) // 4 + 1, (1,), generator=generator)) for side in (height, width)
        )
        part = Area(top, left, min(top + _PART, height), min(left + _PART, width))
        planes = _turned(to_planes(pixels))
        uniform = torch.rand(n, generator=generator)
        wide = torch.rand(1, generator=generator) < 0.15
        low, high = (1.0, 8.7) if wide else (math.log2(6), math.log2(200))
        step = torch.exp2(low + (high - low) * uniform).mul(STEP_UNIT).round().long().to(pixels.device)
        plan = _partly(tiles.plan(height, width, LEVELS), part, height, width)
        covered = {level.number: level.area.positions() * 4**level.number for level in plan}  # in pixels
        bits: list[Tensor] = []
        table_costs = trellis.logistic_costs().to(pixels.device)
        errors, counts = torch.zeros_like(self.points), torch.zeros_like(self.points)

        def code(this: Pass, c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            expected = Expected.of(mean.detach(), log_scale.detach())
            symbols, quantisers = quantise(c, expected, table_costs, self.points, LAGRANGIAN)
            costs = logistic_bits(*expected.cells(symbols, quantisers), mean, log_scale)
            bits.append(costs.sum((1, 2, 3)) / covered[this.level])
            at = trellis.point_index(expected.table + trellis.TABLES * quantisers, symbols).flatten()
            off = expected.positions(c) - trellis.position(symbols, quantisers)
            errors.index_add_(0, at, (off * expected.unit).flatten())
            counts.index_add_(0, at, torch.ones_like(at, dtype=torch.float32))
            return expected.values(symbols, quantisers, self.points)

        real_step = (step.float() / STEP_UNIT).view(-1, 1, 1, 1)
        picture = self._walk(planes / real_step, step, code, plan)
        if self.training:  # each point follows the mean of its last few thousand coefficients
            self.points += (errors - counts * self.points) / (counts + 2000)
        inside = part.within(plan[-1].area.finer(height, width))
        correction = self.post_filter(picture, step)[inside]
        error = planes[..., top : part.bottom, left : part.right] / real_step - picture[inside] / 2**lifting.FRACTION
        before, after = error.square().mean((1, 2, 3)), (error - correction).square().mean((1, 2, 3))
        bits_per_pixel = torch.stack(bits).sum(0)
        rate = (bits_per_pixel / (0.08 + bits_per_pixel.detach())).mean()  # every rate counts alike
        return {
            "loss": rate + torch.log(after / before + 1e-3).mean(),
            "rate_loss": rate,
            "bits_per_pixel": bits_per_pixel.mean(),
            "gain_db": -10 * torch.log10(after / before).mean(),
            "psnr": -10 * torch.log10(after * real_step.flatten().square() / 255**2).mean(),
        }

    def _walk(
        self, x: Tensor, step: Tensor, code: Callable[[Pass, Tensor, Tensor, Tensor], Tensor], plan: list[Level]
    ) -> Tensor:
        """Analyse planes in steps and code the coefficients of a plan's levels; the picture decoded."""
        low, bands = lifting.analyse(x, LEVELS)

        def code_pass(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            return code(this, this.of(bands), mean, log_scale)

        height, width = x.shape[2:]
        return walk(self.priors, low.round().int() << lifting.FRACTION, height, width, step, code_pass, plan)

    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks' integers, and tables that start as logistics and follow what the pictures' coefficients do."""
        out = integer.shipped(self)
        out["points"] = self.points.round().clamp(-127, 127).to(torch.int8)
        networks = Networks(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out)
        return out | networks.calibrated(pictures)

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        integer.start_from(self, shipped)
        self.points.copy_(shipped["points"])

    @torch.inference_mode()
    def calibrated(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """Tables from the pictures' coefficients, at six steps."""
        counts = trellis.Counts()

        def code(_: Pass, c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            expected = Expected.of(mean, log_scale)
            symbols, quantisers = quantise(c, expected, trellis.logistic_costs(), self.points, LAGRANGIAN)
            counts.count(*(x.flatten() for x in (expected.table, symbols, quantisers)))
            return expected.values(symbols, quantisers, self.points)

        for i, pixels in enumerate(tqdm(pictures, desc="calibrating", unit="picture", disable=None)):
            step = 4 * 2 ** (i % 6)
            height, width = (side - side % 2**LEVELS for side in pixels.shape[:2])
            rgb = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None]
            planes = _turned(to_planes(rgb.float()))
            plan = tiles.plan(height, width, LEVELS)
            self._walk(planes / step, torch.tensor([step * STEP_UNIT]), code, plan)
        return counts.packed()


def _turned(planes: Tensor) -> Tensor:
    """The usual planes of pictures (N, 3, H, W), each turned as its own file would have them."""
    return torch.cat([times(turn(best_angles(x, LEVELS)), x) for x in planes[:, None]])


def _partly(plan: list[Level], part: Area, height: int, width: int) -> list[Level]:
    """The plan of a picture, its two finest levels only as far as a part of it needs them."""
    finest = []
    for level in (1, 2):
        part = part.coarser().around(tiles.REACH, 2, *tiles.size(height, width, level))
        finest.append(Level(level, part, [(0, part)]))
    return [*plan[:-2], *reversed(finest)]


REFINING_EFFORTS = (5, 8)  # from each of them on, once more: code the picture less what the post-filter will add
_AIMED = 0.5  # of that: a path through the trellis has errors of its own, which the next one will not have
LAGRANGIAN = 0.08  # squared steps a bit is worth


def quality_step(quality: float) -> int:
    """quality 0..100 -> quantisation step in 1 / STEP_UNIT: 388 pixel values at 0, 20 at 75, 2 at 100."""
    t = quality / 100
    return round(STEP_UNIT * 2 ** (8.6 - 5.0 * t - 2.6 * t**6))


# By how many quarters of an octave each level's step is smaller than the picture's, the finest level first. Equal steps
# make the least squared error; but eyes, and what models them, see coarse details better.
WEIGHTING: dict[str, tuple[int, ...]] = {"psnr": (0, 0, 0, 0, 0, 0), "visual": (-3, -1, 0, 2, 3, 3)}
_LARGEST_WEIGHT = 16
_WEIGHTED = struct.Struct(f"<HH{LEVELS}b")  # 0, where the step would be otherwise; the step; the weighting
_TURNED = struct.Struct(f"<HHH{LEVELS}b3b")  # 0, 0, the step, the weighting, the angles


def _header(step: int, weighting: Sequence[int], angles: Sequence[int]) -> bytes:
    if any(angles):
        return _TURNED.pack(0, 0, step, *weighting, *angles)
    return _WEIGHTED.pack(0, step, *weighting) if any(weighting) else struct.pack("<H", step)


def _read_header(stream: bytes) -> tuple[int, tuple[int, ...], tuple[int, ...], bytes]:
    """Step, weighting and angles, and what follows them. Raises FormatError."""
    if stream[:2] != b"\0\0":
        header, rest = (int.from_bytes(stream[:2], "little"), *WEIGHTING["psnr"], *UNTURNED), stream[2:]
    else:
        form = _TURNED if stream[2:4] == b"\0\0" else _WEIGHTED
        if len(stream) < form.size:
            raise TruncatedError("the coded picture's header is cut off")
        numbers, rest = form.unpack_from(stream), stream[form.size :]
        header = numbers[2:] if form is _TURNED else (*numbers[1:], *UNTURNED)
    step, weighting, angles = header[0], header[1:-3], header[-3:]
    if not step or not all(abs(finer) <= _LARGEST_WEIGHT for finer in weighting):
        raise FormatError("the coded picture's header is damaged")
    return step, weighting, angles, rest


_COLOUR_BITS = 13


class WaveletCodec:
    """One stream, `coefficients`: the step (2 bytes); or 0 (2 bytes), the step, the weighting (a signed byte a level,
    finest first); or 0 (4 bytes), the step, the weighting, the angles of the colour planes (3 signed bytes). Then as
    lic.layers.coefficients says."""

    card = ModelCard(
        name="wavelet",
        paper="this project's own; after iWave++ (TPAMI 2020) and arXiv 2405.12631",
        purpose="the default: photographs at every quality",
        lossy=True,
        lossless=True,
        streams=("coefficients",),
        lossless_by="wavelet_lossless",
        tunes=tuple(WEIGHTING),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, "wavelet", weights)
        self.device = device
        self.tables = trellis.Tables.unpack(tensors)
        networks = Networks(kernel_for(device))
        networks.load_state_dict(tensors)
        self.priors, self.post_filter = networks.to(device).priors, networks.post_filter
        self.points, self.costs = networks.points, self.tables.bits().to(device)

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        step = quality_step(settings.quality)
        x = planes.to(self.device).float() / (257 if shape.bit_depth == 16 else 1)
        x = (x - 128)[None] * 3**0.5 if shape.channels == 1 else to_planes(x[None])
        x = F.pad(x, (0, 0, 0, 0, 0, 3 - shape.channels))
        weighting = WEIGHTING[settings.tune]
        angles = best_angles(x, LEVELS) if shape.channels == 3 and settings.effort > 0 else UNTURNED
        x = times(turn(angles), x) * (STEP_UNIT / step)
        picture, coded = self._coded(x, shape, step, weighting)
        for _ in range(sum(settings.effort >= effort for effort in REFINING_EFFORTS)):
            whole = Area(0, 0, shape.height, shape.width)
            aim = x.clone()
            for part, correction in self._corrections(picture, whole, whole, step):
                aim[part.within(whole)] -= _AIMED * correction
            picture, coded = self._coded(aim, shape, step, weighting)
        return {"coefficients": _header(step, weighting, angles) + coded}

    def _coded(self, x: Tensor, shape: PlaneShape, step: int, weighting: tuple[int, ...]) -> tuple[Tensor, bytes]:
        """Planes (1, 3, H, W) in steps -> the picture before the post-filter, and the stream after the header."""
        low, bands = lifting.analyse(x, LEVELS)
        low_q = low.round().int()[0, : shape.channels].cpu().numpy()
        writer = BandsWriter(shape, self.tables.shared, low_q)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            finer = weighting[this.level - 1]
            c = inside.take(this.of(bands)) * 2 ** (finer / 4)
            expected = Expected.of(inside.take(mean), inside.take(log_scale), finer)
            symbols, quantisers = quantise(c, expected, self.costs, self.points, LAGRANGIAN)
            self.tables.encode(writer.encoder(this), expected.table, symbols, quantisers)
            return inside.put(scaled(expected.values(symbols, quantisers, self.points), -finer), mean.shape)

        picture = self._walk(low_q, shape, step, code, tiles.plan(shape.height, shape.width, LEVELS))
        return picture, writer.bytes()

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        step, weighting, angles, rest = _read_header(streams["coefficients"])
        reader = BandsReader(rest, shape, self.tables.shared, view.truncated)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            finer = weighting[this.level - 1]
            expected = Expected.of(inside.take(mean), inside.take(log_scale), finer)
            symbols, quantisers = reader.read(this, expected.table, self.tables.decode)
            return inside.put(scaled(expected.values(symbols, quantisers, self.points), -finer), mean.shape)

        wanted, (height, width) = view.area(shape), tiles.size(shape.height, shape.width, view.halvings)
        around = wanted if view.halvings else wanted.around(self.post_filter.reach, _FOLD, height, width)
        plan = tiles.plan(shape.height, shape.width, LEVELS, around, view.halvings)
        picture = self._walk(reader.low, shape, step, code, plan)
        covered = plan[-1].area.finer(height, width) if plan else Area(0, 0, *reader.low.shape[1:])
        if view.halvings:
            return _pixels(picture[wanted.within(covered)], shape, step, angles, view.halvings)
        out = torch.empty(shape.channels, wanted.bottom - wanted.top, wanted.right - wanted.left, dtype=torch.int32)
        for part, correction in self._corrections(picture, wanted, covered, step):
            exact = (correction * 64).round().int() << lifting.FRACTION - 6
            out[part.within(wanted)] = _pixels(picture[part.within(covered)] + exact, shape, step, angles)
        return out

    def _corrections(self, picture: Tensor, wanted: Area, covered: Area, step: int) -> Iterator[tuple[Area, Tensor]]:
        """What the post-filter adds to an area of the picture, which covers more: in pieces, to bound the memory."""
        for part in wanted.squares(tiles.TILE):
            around = part.around(self.post_filter.reach, _FOLD, covered.bottom, covered.right)
            correction = self.post_filter(picture[around.within(covered)], torch.tensor([step], device=self.device))
            yield part, correction[part.within(around)]

    def _walk(self, low: np.ndarray, shape: PlaneShape, step: int, code: Code, plan: list[Level]) -> Tensor:
        """From the low band (C, rows, columns), code a plan's levels; the picture (3, h, w) that they make."""
        low = np.pad(low, ((0, 3 - len(low)), (0, 0), (0, 0)))
        start = torch.from_numpy(low.astype(np.int32)).to(self.device)[None] << lifting.FRACTION
        steps = torch.tensor([step], device=self.device)
        return walk(self.priors, start, shape.height, shape.width, steps, code, plan, shape.channels == 1)


def _pixels(picture: Tensor, shape: PlaneShape, step: int, angles: Sequence[int], halvings: int = 0) -> Tensor:
    """A part of the picture (1, 3, h, w) in 1 / 2**FRACTION steps, after `halvings` levels -> (C, h, w) int32."""
    shift = lifting.FRACTION + halvings + 7 - 6
    # In 1/64 pixel values. No picture has larger ones, nor do 32 bits overflow below.
    values = ((picture[0] * step + (1 << shift - 1)) >> shift).clamp(-(2**16), 2**16)
    if shape.channels == 1:
        colours = values[:1] * round(3**-0.5 * 2**_COLOUR_BITS)
    else:
        rgb = ((turn(angles) @ COLOUR) * 2**_COLOUR_BITS).round().int().tolist()
        colours = torch.stack([sum(rgb[i][j] * values[i] for i in range(3)) for j in range(3)])
    fraction = _COLOUR_BITS + 6
    colours += 128 << fraction
    if shape.bit_depth == 16:
        colours = colours.long() * 257
    return ((colours + (1 << fraction - 1)) >> fraction).clamp(0, 2**shape.bit_depth - 1).int()
