"""`wavelet`, the default model: a 9/7 wavelet, a learned prior that runs in integers, a learned post-filter.

After iWave++ (Ma et al., "End-to-End Optimized Versatile Image Compression With Wavelet-Like Transform", TPAMI 2020).

    picture -> orthonormal colour transform -> 9/7 lifting, six levels -> one quantisation step for all bands, a trellis
                                                  -> entropy coder, coarse to fine, as lic.layers.band_prior predicts

    integers -> reconstruction points -> integer lifting -> post-filter -> colour transform -> picture

All that encoder and decoder must agree on is a function of integers (lic.layers.integer, lic.layers.lifting).
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.container import Reader
from lic.errors import FormatError
from lic.layers import integer, lifting, sensitivity, tiles, trellis, visibility
from lic.layers.amounts import Amounts, BestAmounts, unfolded
from lic.layers.band_prior import LEVELS, STEP_UNIT, Code, Pass, Prior, walk
from lic.layers.coefficients import BandsReader, BandsWriter, Inside, logistic_bits, scaled
from lic.layers.colour import COLOUR, UNTURNED, best_angles, times, to_planes, turn
from lic.layers.integer import Convolution, TrainableConv2d, kernel_for
from lic.layers.post_filter import ALIGNED, Decoded, PostFilter, Replay, remaining
from lic.layers.tiles import Area, Level
from lic.layers.trellis import Expected, Prices, quantise, rounded

_PART = 160  # pixels, the sides of what training codes of the finest level
_TRAINING_LAGRANGIAN = 0.08  # squared steps that a bit is worth in training, and where tables are found
_PRIORS = (4, 3), (8, 5), (12, 5)  # blocks and kernel: of the finest level, the next one, and all others


class Networks(nn.Module):
    """Prior, reconstruction points and post-filters, and how they are trained, together or with `--part` some of them
    (lic.training.loop.Trainable). The filter for tune="visual" stays as it is: tools/train_on_gpu trains it."""

    shrunk = 0.5
    points: Tensor

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.priors = nn.ModuleList([Prior(conv, blocks=blocks, kernel=kernel) for blocks, kernel in _PRIORS])
        self.post_filter = PostFilter(conv)
        self.visual_filter = PostFilter(conv, corrections=1).requires_grad_(False)
        for parameter in self.visual_filter.out.parameters():
            parameter.zero_()  # it adds nothing yet
        self.register_buffer("points", torch.zeros(trellis.POINTS))
        self._replay = Replay()

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step. Besides `loss`: bits per pixel, and the decibels that the filter gains, with its first
        correction and with the best amounts of all."""
        learning = [integer.learns(prior) for prior in self.priors]
        prior_learns, filter_learns = any(learning), integer.learns(self.post_filter)
        replay = self._replay if self.training and filter_learns else None
        if replay and not prior_learns and replay.suffices(generator):
            return self._filter_losses(replay.draw(generator))
        if self.training and not filter_learns and float(torch.rand(1, generator=generator)) < 0.5:
            # Coarse levels of small pictures have other borders. (What a filter is to learn from has one size.)
            sides = range(32, max(pixels.shape[2:]) + 1, 32)
            side = sides[int(torch.randint(len(sides), (1,), generator=generator))]
            pixels = pixels[..., :side, :side]
        finest = 1 + learning.index(True) if prior_learns and not filter_learns else 1
        side = _PART if prior_learns else max(pixels.shape[2:])
        bits_per_pixel, decoded = self._code(pixels, generator, finest, side)
        losses = {"loss": torch.zeros(())}
        if filter_learns and decoded:
            if replay:
                replay.add(decoded)
                decoded = replay.draw(generator)
            losses = self._filter_losses(decoded)
        if prior_learns:
            rate = (bits_per_pixel / (0.08 + bits_per_pixel.detach())).mean()  # every rate counts alike
            losses |= {"loss": losses["loss"] + rate, "bits_per_pixel": bits_per_pixel.mean()}
        return losses

    def _filter_losses(self, decoded: Decoded) -> dict[str, Tensor]:
        decoded = Decoded(*(x.to(self.points.device) for x in decoded))
        before, plain, best = remaining(self.post_filter, decoded)
        return {
            "loss": torch.stack([torch.log(after / before + 1e-3) for after in (plain, best)]).mean(),
            "plain_gain_db": -10 * torch.log10(plain / before).mean(),
            "gain_db": -10 * torch.log10(best / before).mean(),
            "psnr": -10 * torch.log10(best * (decoded.step / STEP_UNIT / 255).square()).mean(),
        }

    def _code(
        self, pixels: Tensor, generator: torch.Generator, finest: int, side: int
    ) -> tuple[Tensor, Decoded | None]:
        """Pictures (N, 3, H, W) at random steps -> their bits per pixel (N,), and what is decoded, of a square of at
        most that side; or nothing, where finest, the last level to be coded, isn't 1.

        The other levels have few coefficients, and cost little: they are coded whole.
        """
        n, _, height, width = pixels.shape
        top, left = (
            4 * int(torch.randint(max(whole - side, 0) // 4 + 1, (1,), generator=generator))
            for whole in (height, width)
        )
        part = Area(top, left, min(top + side, height), min(left + side, width))
        planes = _turned(to_planes(pixels))
        uniform = torch.rand(n, generator=generator)
        wide = torch.rand(1, generator=generator) < 0.15
        low, high = (1.0, 8.7) if wide else (math.log2(6), math.log2(280))
        step = torch.exp2(low + (high - low) * uniform).mul(STEP_UNIT).round().long().to(pixels.device)
        plan = tiles.plan(height, width, LEVELS)[: LEVELS + 1 - finest]
        if finest == 1:
            plan = _partly(plan, part, height, width)
        covered = {level.number: level.area.positions() * 4**level.number for level in plan}  # in pixels
        bits: list[Tensor] = []
        prices = Prices(trellis.logistic_costs().to(pixels.device), self.points, _TRAINING_LAGRANGIAN)
        centroids = trellis.Centroids(pixels.device)

        def code(this: Pass, c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            expected = Expected.of(mean.detach(), log_scale.detach())
            symbols, quantisers = quantise(c, expected, prices)
            costs = logistic_bits(*expected.cells(symbols, quantisers), mean, log_scale)
            bits.append(costs.sum((1, 2, 3)) / covered[this.level])
            centroids.add(c, expected, symbols, quantisers)
            return expected.values(symbols, quantisers, self.points)

        real_step = (step.float() / STEP_UNIT).view(-1, 1, 1, 1)
        aim = planes / real_step
        if finest == 1 and not integer.learns(self.priors) and float(torch.rand(1, generator=generator)) < 0.85:
            aim = aim - _SHARES[0] * self._added(aim, step, prices, plan)  # as the encoder does from MIXING_EFFORT on
        picture = self._walk(aim, step, code, plan)
        bits_per_pixel = torch.stack(bits).sum(0)
        if finest > 1:
            return bits_per_pixel, None
        picture = picture[part.within(plan[-1].area.finer(height, width))]
        if self.training and integer.learns(self.priors):
            self.points.copy_(centroids.moved(self.points))
        original = planes[..., part.top : part.bottom, part.left : part.right] / real_step
        return bits_per_pixel, Decoded(picture, original - picture / 2**lifting.FRACTION, step)

    @torch.no_grad()
    def _added(self, x: Tensor, step: Tensor, prices: Prices, plan: list[Level]) -> Tensor:
        """What the post-filter's first correction adds to a draft of planes (N, 3, H, W) in steps."""

        def code(_: Pass, c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            expected = Expected.of(mean, log_scale)
            return expected.values(*rounded(c, expected, prices), self.points)

        height, width = x.shape[2:]
        return unfolded(self.post_filter(self._walk(x, step, code, plan), step)[:, 0])[..., :height, :width]

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
        """The networks' integers, and tables and points that follow what the pictures' coefficients do: chosen at the
        prices of logistics, as in training, and then at those of the tables that come of it, as an encoder does."""
        out = integer.shipped(self)
        networks = Networks(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out | {"points": self.points.round()})
        out |= networks.calibrated(pictures, trellis.logistic_costs())
        return out | networks.calibrated(pictures, trellis.Tables.unpack(dict(out)).bits())

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        integer.start_from(self, shipped)
        self.points.copy_(shipped["points"])

    @torch.inference_mode()
    def calibrated(self, pictures: list[np.ndarray], bits: Tensor) -> dict[str, Tensor]:
        """Tables and points from the pictures' coefficients, at six steps; the points also stay here."""
        counts, centroids = trellis.Counts(), trellis.Centroids(self.points.device)
        prices = Prices(bits, self.points, _TRAINING_LAGRANGIAN)

        def code(_: Pass, c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            expected = Expected.of(mean, log_scale)
            symbols, quantisers = quantise(c, expected, prices)
            counts.count(*(x.flatten() for x in (expected.table, symbols, quantisers)))
            centroids.add(c, expected, symbols, quantisers)
            return expected.values(symbols, quantisers, self.points)

        for i, pixels in enumerate(tqdm(pictures, desc="calibrating", unit="picture", disable=None)):
            step = 4 * 2 ** (i % 6)
            height, width = (side - side % 2**LEVELS for side in pixels.shape[:2])
            rgb = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None]
            planes = _turned(to_planes(rgb.float()))
            plan = tiles.plan(height, width, LEVELS)
            self._walk(planes / step, torch.tensor([step * STEP_UNIT]), code, plan)
        self.points.copy_(centroids.moved(self.points).round().clamp(-127, 127))
        return counts.packed() | {"points": self.points.to(torch.int8)}


def _turned(planes: Tensor) -> Tensor:
    """The usual planes of pictures (N, 3, H, W), each turned as its own file would have them."""
    return torch.cat([times(turn(best_angles(x, LEVELS)), x) for x in planes[:, None]])


def _partly(plan: list[Level], part: Area, height: int, width: int) -> list[Level]:
    """The plan of a picture, its finest level only as far as a part of it needs that."""
    here = part.coarser().around(tiles.REACH, 2, *tiles.size(height, width, 1))
    return [*plan[:-1], Level(1, here, [(0, here)])]


MIXING_EFFORT = 5  # from there on, a share of the post-filter's first correction isn't coded; and amounts are chosen
SEARCHING_EFFORT = 8  # from there on, the best of several shares
_SHARES = 0.35, 0.2, 0.5  # the first one is the usual. Not all of it: what is coded in the end has errors of its own
LAGRANGIAN = {"psnr": 0.065, "visual": 0.08}  # squared steps that a bit is worth to an encoder


def quality_step(quality: float) -> int:
    """quality 0..100 -> quantisation step in 1 / STEP_UNIT: 388 pixel values at 0, 20 at 75, 2 at 100."""
    t = quality / 100
    return round(STEP_UNIT * 2 ** (8.6 - 5.0 * t - 2.6 * t**6))


# By how many quarters of an octave each level's step is smaller than the picture's, the finest level first. Equal steps
# make the least squared error; but eyes, and what models them, see coarse details better.
WEIGHTING: dict[str, tuple[int, ...]] = {"psnr": (0, 0, 0, 0, 0, 0), "visual": (-3, -1, 1, 2, 3, 3)}
_LARGEST_WEIGHT = 16
# What red, green and blue are multiplied by, in 1/128. Equal errors of all make the least squared error; but eyes, and
# what models them, hardly see those of blue.
CONTRASTS: dict[str, tuple[int, ...]] = {"psnr": (128, 128, 128), "visual": (90, 128, 80)}
_LEAST_CONTRAST = 64
_WEIGHTED, _TURNED, _CONTRASTED, _MASKED = 1, 2, 4, 8  # the header's flags


class _Header(NamedTuple):
    """What the stream of coefficients begins with."""

    step: int
    weighting: tuple[int, ...] = WEIGHTING["psnr"]
    angles: tuple[int, ...] = UNTURNED  # of the colour planes
    contrasts: tuple[int, ...] = CONTRASTS["psnr"]
    masked: bool = False  # steps also differ from place to place, see lic.layers.visibility; a flag without bytes

    def to_bytes(self) -> bytes:
        own = [field if field != usual else () for field, usual in zip(self[1:4], _Header(0)[1:4], strict=True)]
        flags = sum(flag for flag, field in zip((_WEIGHTED, _TURNED, _CONTRASTED), own, strict=True) if field)
        start = struct.pack("<HB", self.step, flags + _MASKED * self.masked)
        return start + bytes(number & 255 for field in own for number in field)

    @staticmethod
    def read(stream: bytes) -> tuple[_Header, bytes]:
        """And what follows it. Raises FormatError."""
        reader = Reader(file := io.BytesIO(stream))
        step, flags = struct.unpack("<HB", reader.take(3))
        header = _Header(step, masked=bool(flags & _MASKED))
        if flags & _WEIGHTED:
            header = header._replace(weighting=struct.unpack(f"{LEVELS}b", reader.take(LEVELS)))
        if flags & _TURNED:
            header = header._replace(angles=struct.unpack("3b", reader.take(3)))
        if flags & _CONTRASTED:
            header = header._replace(contrasts=tuple(reader.take(3)))
        known = flags <= _WEIGHTED + _TURNED + _CONTRASTED + _MASKED
        allowed = max(map(abs, header.weighting)) <= _LARGEST_WEIGHT and min(header.contrasts) >= _LEAST_CONTRAST
        if not (step and known and allowed):
            raise FormatError("the coded picture's header is damaged")
        return header, file.read()


class _Finer:
    """By how many quarters of an octave steps are smaller than the picture's."""

    def __init__(self, header: _Header):
        self._header = header
        self._low: Tensor | None = None  # of the last tile, whose passes come one after the other

    def of(self, this: Pass, inside: Inside) -> int | Tensor:
        """One number for the whole pass, or int32 (count,) in the order of `Inside.take`."""
        weight = self._header.weighting[this.level - 1]
        if not self._header.masked:
            return weight
        if self._low is not this.low:
            self._low, self._quarters = this.low, visibility.finer(this.low, self._header.step, this.level) + weight
        return inside.take(this.of_bands(self._quarters))


_COLOUR_BITS = 13


class WaveletCodec:
    """Streams: `amounts`, as lic.layers.amounts says; and `coefficients`: the step (2 bytes), flags (a byte), and where
    they say so the weighting (a signed byte a level, finest first), the angles of the colour planes (3 signed bytes)
    and the contrasts (3 bytes); a flag alone says that steps differ from place to place. Then as
    lic.layers.coefficients says."""

    card = ModelCard(
        name="wavelet",
        paper="this project's own; after iWave++ (TPAMI 2020) and arXiv 2405.12631",
        purpose="the default: photographs at every quality",
        lossy=True,
        lossless=True,
        streams=("amounts", "coefficients"),
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
        self.visual_filter = networks.visual_filter
        self.points = networks.points
        self.bits = self.tables.bits().to(device)

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        masked = settings.tune == "visual"
        step = quality_step(settings.quality) // (2 if masked else 1)  # larger where detail hides it: as many bits
        x = planes.to(self.device).float() / (257 if shape.bit_depth == 16 else 1)
        x, grey = x[None] - 128, shape.channels == 1
        contrasts = CONTRASTS["psnr" if grey else settings.tune]
        x = F.pad(x * 3**0.5, (0, 0, 0, 0, 0, 2)) if grey else times(COLOUR @ _contrasted(contrasts), x)
        angles = best_angles(x, LEVELS) if settings.effort > 0 and not grey else UNTURNED
        x = times(turn(angles), x) * (STEP_UNIT / step)
        header = _Header(step, WEIGHTING[settings.tune], tuple(angles), contrasts, masked)
        code = partial(self._coded, shape=shape, header=header)
        usual = Amounts.usual(shape.channels)
        if settings.effort < MIXING_EFFORT:
            amounts, (_, coded) = usual, code(x)
        else:
            draft, _ = code(x, draft=True)
            added = self._added(draft, shape, header)
            weights = self._error_weights(x, draft, added, header) if masked else None

            def attempt(share: float) -> tuple[float, Amounts, bytes]:
                picture, coded = code(x - share * added, weights=weights)
                amounts, cost = (usual, 0.0) if masked else self._amounts(x, picture, shape, header)
                return cost + LAGRANGIAN[settings.tune] * 8 * len(coded), amounts, coded

            search = settings.effort >= SEARCHING_EFFORT and not masked
            _, amounts, coded = min(map(attempt, _SHARES if search else _SHARES[:1]), key=itemgetter(0))
        return {"amounts": amounts.to_bytes(self.tables.shared), "coefficients": header.to_bytes() + coded}

    def _added(self, picture: Tensor, shape: PlaneShape, header: _Header) -> Tensor:
        """The post-filter's first correction of a picture (1, 3, H, W): in steps, float32 of that shape."""
        whole = Area(0, 0, shape.height, shape.width)
        out = torch.empty(picture.shape, device=self.device)
        for part, around, corrections in self._corrections(picture, whole, whole, header):
            out[part.within(whole)] = unfolded(corrections[:, 0])[part.within(around)]
        return out

    def _error_weights(self, x: Tensor, draft: Tensor, added: Tensor, header: _Header) -> list[Tensor]:
        """See `sensitivity.weights`: of planes x (1, 3, H, W), in steps, of what they are coded as in a draft, and of
        what the post-filter adds to that."""
        picture = draft / 2**lifting.FRACTION
        decoded = picture + added
        planes = turn(header.angles) @ COLOUR @ _contrasted(header.contrasts)
        colours = planes.inverse() * (header.step / STEP_UNIT)
        seen = sensitivity.gradient(*(times(colours, each) + 128 for each in (x, decoded)))
        return sensitivity.weights(times(colours.T, seen), decoded - x, picture, header.step, header.weighting)

    def _amounts(self, x: Tensor, picture: Tensor, shape: PlaneShape, header: _Header) -> tuple[Amounts, float]:
        """What suits the picture (1, 3, H, W) that planes x, in steps, are coded as; and the cost of that, see
        `BestAmounts.best`."""
        whole = Area(0, 0, shape.height, shape.width)
        best = BestAmounts(shape.channels, shape.height, shape.width)
        for part, around, corrections in self._corrections(picture, whole, whole, header):
            here = part.within(whole)
            best.add(unfolded(corrections)[part.within(around)], x[here] - picture[here] / 2**lifting.FRACTION, part)
        return best.best(self.tables.shared, LAGRANGIAN["psnr"])

    def _coded(
        self,
        x: Tensor,
        shape: PlaneShape,
        header: _Header,
        draft: bool = False,
        weights: list[Tensor] | None = None,
    ) -> tuple[Tensor, bytes]:
        """Planes (1, 3, H, W) in steps -> the picture before the post-filter, and the stream after the header; weights:
        what errors count, (1, 9, h, w) of each level.

        A draft is rounded instead of following the trellis, and its stream is empty: much the same picture in half of
        the time.
        """
        low, bands = lifting.analyse(x, LEVELS)
        low_q = low.round().int()[0, : shape.channels].cpu().numpy()
        writer = None if draft else BandsWriter(shape, self.tables.shared, low_q)
        fineness = _Finer(header)
        prices = Prices(self.bits, self.points, LAGRANGIAN["visual" if header.masked else "psnr"])

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            finer = fineness.of(this, inside)
            c = inside.take(this.of(bands)) * 2 ** (finer / 4)
            expected = Expected.of(inside.take(mean), inside.take(log_scale), finer)
            weighted = prices._replace(weights=inside.take(this.of(weights))) if weights else prices
            symbols, quantisers = (quantise if writer else rounded)(c, expected, weighted)
            if writer:
                self.tables.encode(writer.encoder(this), expected.table, symbols, quantisers)
            return inside.put(scaled(expected.values(symbols, quantisers, self.points), -finer), mean.shape)

        picture = self._walk(low_q, shape, header.step, code, tiles.plan(shape.height, shape.width, LEVELS))
        return picture, writer.bytes() if writer else b""

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        header, rest = _Header.read(streams["coefficients"])
        amounts = Amounts.from_bytes(streams["amounts"], self.tables.shared, shape.channels, shape.height, shape.width)
        reader = BandsReader(rest, shape, self.tables.shared, view.truncated)
        fineness = _Finer(header)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            finer = fineness.of(this, inside)
            expected = Expected.of(inside.take(mean), inside.take(log_scale), finer)
            symbols, quantisers = reader.read(this, expected.table, self.tables.decode)
            return inside.put(scaled(expected.values(symbols, quantisers, self.points), -finer), mean.shape)

        wanted, (height, width) = view.area(shape), tiles.size(shape.height, shape.width, view.halvings)
        around = wanted if view.halvings else wanted.around(self._filter(header).reach, ALIGNED, height, width)
        plan = tiles.plan(shape.height, shape.width, LEVELS, around, view.halvings)
        picture = self._walk(reader.low, shape, header.step, code, plan)
        covered = plan[-1].area.finer(height, width) if plan else Area(0, 0, *reader.low.shape[1:])
        if view.halvings:
            return _pixels(picture[wanted.within(covered)], shape, header, view.halvings)
        out = torch.empty(shape.channels, wanted.bottom - wanted.top, wanted.right - wanted.left, dtype=torch.int32)
        for part, around, corrections in self._corrections(picture, wanted, covered, header):
            exact = amounts.mixed(corrections, around)[part.within(around)] << lifting.FRACTION - 6
            out[part.within(wanted)] = _pixels(picture[part.within(covered)] + exact, shape, header)
        return out

    def _filter(self, header: _Header) -> PostFilter:
        return self.visual_filter if header.masked else self.post_filter

    def _corrections(
        self, picture: Tensor, wanted: Area, covered: Area, header: _Header
    ) -> Iterator[tuple[Area, Area, Tensor]]:
        """What the post-filter has for an area of the picture, which covers more: in pieces, to bound the memory. Each
        with an area around it, and the corrections of that."""
        steps = torch.tensor([header.step], device=self.device)
        post_filter = self._filter(header)
        for part in wanted.squares(tiles.TILE):
            around = part.around(post_filter.reach, ALIGNED, covered.bottom, covered.right)
            yield part, around, post_filter(picture[around.within(covered)], steps)

    def _walk(self, low: np.ndarray, shape: PlaneShape, step: int, code: Code, plan: list[Level]) -> Tensor:
        """From the low band (C, rows, columns), code a plan's levels; the picture (3, h, w) that they make."""
        low = np.pad(low, ((0, 3 - len(low)), (0, 0), (0, 0)))
        start = torch.from_numpy(low.astype(np.int32)).to(self.device)[None] << lifting.FRACTION
        steps = torch.tensor([step], device=self.device)
        return walk(self.priors, start, shape.height, shape.width, steps, code, plan, shape.channels == 1)


def _contrasted(contrasts: Sequence[int]) -> Tensor:
    return torch.diag(torch.tensor(contrasts, dtype=torch.float64) / 128)


def _pixels(picture: Tensor, shape: PlaneShape, header: _Header, halvings: int = 0) -> Tensor:
    """A part of the picture (1, 3, h, w) in 1 / 2**FRACTION steps, after `halvings` levels -> (C, h, w) int32."""
    shift = lifting.FRACTION + halvings + 7 - 6
    # In 1/64 pixel values. No picture has larger ones, nor do 32 bits overflow below.
    values = ((picture[0] * header.step + (1 << shift - 1)) >> shift).clamp(-(2**16), 2**16)
    if shape.channels == 1:
        colours = values[:1] * round(3**-0.5 * 2**_COLOUR_BITS)
    else:
        matrix = turn(header.angles) @ COLOUR @ _contrasted(header.contrasts).inverse()
        rgb = (matrix * 2**_COLOUR_BITS).round().int().tolist()
        colours = torch.stack([sum(rgb[i][j] * values[i] for i in range(3)) for j in range(3)])
    fraction = _COLOUR_BITS + 6
    colours += 128 << fraction
    if shape.bit_depth == 16:
        colours = colours.long() * 257
    return ((colours + (1 << fraction - 1)) >> fraction).clamp(0, 2**shape.bit_depth - 1).int()
