"""`wavelet`, the default model: a 9/7 wavelet, a learned prior that runs in integers, a learned post-filter.

After iWave++ (Ma et al., "End-to-End Optimized Versatile Image Compression With Wavelet-Like Transform", TPAMI 2020)
and, for the parallel context, Meyer et al., "Efficient Learned Wavelet Image and Video Coding" (arXiv 2405.12631).

    picture -> orthonormal colour transform -> 9/7 lifting, six levels -> one quantisation step for all bands
                                                                              |
    low band (decoded), coarser bands, step -> trunk --+                      v
                                                       +-> mean and scale -> entropy coder, coarse to fine
    what this level has coded so far -> context -------+   8 passes a level: 4 phases x (luma, chroma)

    decoded coefficients -> integer lifting -> post-filter -> colour transform -> picture

All that encoder and decoder must agree on is a function of integers (lic.layers.integer, lic.layers.lifting); lengths
are in units of the quantisation step, in which the picture decoded so far needs no step at all.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams
from lic.entropy import PRECISION, Decoder, Encoder, Table, integer_frequencies
from lic.errors import FormatError
from lic.layers import lifting
from lic.layers.integer import Convolution, Scale, TrainableConv2d, add, kernel_for, rectified, rectify, signed

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
_COARSE, _FINE, _FILTER_STREAM, _FILTER_HIDDEN = signed(3), rectified(9), signed(6), rectified(5)


def compress(x: Tensor) -> Tensor:
    """sign(x) round(10 log(1 + |x|)), at most 63: int64 in 1 / 2**FRACTION steps -> int64, by comparisons alone."""
    thresholds = torch.tensor(_THRESHOLDS, device=x.device)
    return torch.sign(x) * torch.bucketize(x.abs().contiguous(), thresholds, right=True)


def step_feature(step: int) -> int:
    """A step in units of 1 / STEP_UNIT as the networks see it: its logarithm, -64..63."""
    return max(-64, min(63, round(32 * (math.log2(step / STEP_UNIT) / 3 - 1.5))))


def _size(height: int, width: int, level: int) -> tuple[int, int]:
    """The sides of the low band after that many levels: halved, rounding up."""
    return -(-height >> level), -(-width >> level)


def _of_pass(band: Tensor, phase: int, channels: list[int]) -> Tensor:
    """The coefficients (N, len(channels), h/2, w/2), sides rounded up, that one pass codes of a level's band."""
    dy, dx = PHASES[phase]
    return _to_even(band)[:, channels, dy::2, dx::2]


def _to_even(x: Tensor, mode: str = "constant") -> Tensor:
    """Pad (N, C, H, W) to even sides."""
    height, width = x.shape[2:]
    if not (height % 2 or width % 2):
        return x
    return F.pad(x.double(), (0, width % 2, 0, height % 2), mode=mode).to(x.dtype)


class _Residual(nn.Module):
    def __init__(self, conv: type[Convolution], channels: int, stream: Scale, hidden: Scale):
        super().__init__()
        self.a = conv(channels, channels, 3, stream, hidden)
        self.b = conv(channels, channels, 3, hidden, stream)

    def forward(self, x: Tensor) -> Tensor:
        return add(x, self.b(self.a(x)))


class _Pass(nn.Module):
    """The coefficients of one phase, luma or chroma: trunk and context -> mean and scale of each."""

    def __init__(self, conv: type[Convolution], channels: int, known: int, coded: int):
        super().__init__()
        self.context = conv(known, channels, 3, _FEATURE, _CONTEXT) if known else None
        self.mix = conv(channels * (2 if known else 1), channels, 1, _CONTEXT, _MIXED)
        self.hidden = conv(channels, channels, 1, _MIXED, _MEAN_SCALE)
        self.out = conv(channels, 2 * coded, 1, _MEAN_SCALE, None)

    def forward(self, trunk: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.context is not None:
            trunk = torch.cat([trunk, self.context(known)], 1)
        mean, scale = self.out(self.hidden(self.mix(trunk))).chunk(2, 1)
        return mean, scale


class Prior(nn.Module):
    """One network for every level and step."""

    def __init__(self, conv: type[Convolution], channels: int = 64, blocks: int = 3):
        super().__init__()
        self.form = conv.form
        self.input = conv(14, channels, 3, _FEATURE, _STREAM, biases=LEVELS)
        self.trunk = nn.Sequential(*[_Residual(conv, channels, _STREAM, _HIDDEN) for _ in range(blocks)])
        self.passes = nn.ModuleList()
        for phase in range(len(PHASES)):
            self.passes.append(_Pass(conv, channels, 9 * phase, len(LUMA)))
            self.passes.append(_Pass(conv, channels, 9 * phase + len(LUMA), len(CHROMA)))

    def features(self, low: Tensor, coarser: Tensor | None, step: Tensor, level: int) -> Tensor:
        """low (N, 3, h, w) int64 in 1 / 2**FRACTION steps, coarser (N, 9, h/2, w/2) int64 or None,
        step (N,) int64 in 1 / STEP_UNIT -> (N, 14, h, w) integers -64..63."""
        n, _, h, w = low.shape
        padded = F.pad(low.double(), (3, 3, 3, 3), mode="replicate").long()
        rows = torch.stack([padded[:, :, i : i + h] for i in range(7)]).sum(0)
        total = torch.stack([rows[..., i : i + w] for i in range(7)]).sum(0)
        mean = torch.div(total, 49, rounding_mode="floor")
        if coarser is None:
            bands = low.new_zeros(n, 9, h, w)
        else:
            bands = compress(coarser << lifting.FRACTION)
            bands = bands.repeat_interleave(2, 2).repeat_interleave(2, 3)
        brightness = (low[:, :1] * step.view(-1, 1, 1, 1)) >> (level + lifting.FRACTION + 7 + 2)
        logarithms = low.new_tensor([step_feature(s) for s in step.tolist()]).view(-1, 1, 1, 1).expand(n, 1, h, w)
        return torch.cat([compress(low - mean), bands, logarithms, brightness.clamp(-64, 63)], 1)

    def levels(
        self, low: Tensor, height: int, width: int, step: Tensor, code: Callable[..., Tensor], grey: bool = False
    ) -> Tensor:
        """Code every level, from the low band (N, 3, h, w) int64 in steps up, with code(level, ...) as in `level`.

        The picture (N, 3, height, width) int64 in 1 / 2**FRACTION steps.
        """
        picture, coarser = low << lifting.FRACTION, None
        for level in range(LEVELS, 0, -1):
            coarser = self.level(picture, coarser, step, level, partial(code, level), grey)
            picture = lifting.synthesise(picture, coarser, *_size(height, width, level - 1))
        return picture

    def level(
        self,
        low: Tensor,
        coarser: Tensor | None,
        step: Tensor,
        level: int,
        code: Callable[[int, list[int], Tensor, Tensor], Tensor],
        grey: bool = False,
    ) -> Tensor:
        """Code one level; low, coarser and step as in `features`.

        code(phase, channels, mean, log_scale) is called for each pass, with real numbers in steps
        (N, len(channels), h/2, w/2), sides rounded up, and gives the integers there, int64.
        grey leaves out the passes of chroma, whose coefficients are zero. Returns the level's (N, 9, h, w) int64.
        """
        height, width = low.shape[2:]
        low = _to_even(low, "replicate")
        features = self.form(self.features(low, coarser, step, level), _FEATURE)
        trunk = rectify(self.trunk(self.input(features, level - 1)))
        n, _, h, w = low.shape
        out = low.new_zeros(n, 9, h, w)
        known: list[Tensor] = []
        for p, (dy, dx) in enumerate(PHASES):
            here = trunk[:, :, dy::2, dx::2]
            phase = out[:, :, dy::2, dx::2]
            for k, channels in enumerate((LUMA, CHROMA)):
                context = torch.cat(known, 1) if known else None
                if not (grey and channels is CHROMA):
                    phase[:, channels] = code(p, channels, *self.passes[2 * p + k](here, context))
                q = phase[:, channels]
                known.append(self.form(compress(q << lifting.FRACTION), _FEATURE))
        return out[..., :height, :width]


class PostFilter(nn.Module):
    """The picture folded 2x2 into channels, and the step -> residual blocks -> a correction in units of the step."""

    def __init__(self, conv: type[Convolution], channels: int = 64, blocks: int = 3):
        super().__init__()
        self.form, self.requantise = conv.form, conv.requantise
        self.coarse = conv(13, channels, 3, _COARSE, None)
        self.fine = conv(12, channels, 3, _FINE, None)
        self.blocks = nn.Sequential(*[_Residual(conv, channels, _FILTER_STREAM, _FILTER_HIDDEN) for _ in range(blocks)])
        self.out = conv(channels, 12, 3, _FILTER_STREAM, None)

    def forward(self, picture: Tensor, step: Tensor) -> Tensor:
        """picture (N, 3, H, W) int64 in 1 / 2**FRACTION steps, step (N,) int64 in 1 / STEP_UNIT
        -> (N, 3, H, W) float32, the correction in steps."""
        height, width = picture.shape[2:]
        picture = _to_even(picture, "replicate")
        eighths = (picture * step.view(-1, 1, 1, 1) + (1 << 10)) >> 11  # of an 8-bit pixel value
        folded = F.pixel_unshuffle((eighths + 4096).clamp(0, 8191).int(), 2)
        n, _, h, w = folded.shape
        logarithms = folded.new_tensor([step_feature(s) for s in step.tolist()]).view(-1, 1, 1, 1).expand(n, 1, h, w)
        coarse = self.coarse(self.form(torch.cat([(folded >> 6) - 64, logarithms >> 2], 1), _COARSE))
        coarse += self.fine(self.form(folded & 63, _FINE))
        x = self.requantise(coarse, _FILTER_STREAM)
        return F.pixel_shuffle(self.out(self.blocks(x)), 2)[..., :height, :width]


def logistic_bits(q: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Bits of integer q under a logistic, in log space throughout: an outlier keeps its gradient."""
    rate = torch.exp(-(3 * log_scale.float()).clamp(-6, 7))
    distance = (q - mean.float()).abs()
    nats = F.logsigmoid((0.5 - distance) * rate) + F.logsigmoid((0.5 + distance) * rate)
    return (nats + torch.log(-torch.expm1(-rate))) * (-1 / math.log(2))


class Networks(nn.Module):
    """Prior and post-filter, and how they are trained together (lic.training.loop.Trainable)."""

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.prior = Prior(conv)
        self.post_filter = PostFilter(conv)

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step. Besides `loss`: the rate's part of it, bits per pixel, and the decibels the filter gains."""
        n, _, height, width = pixels.shape
        planes = to_planes(pixels)
        uniform = torch.rand(n, generator=generator)
        wide = torch.rand(1, generator=generator) < 0.15
        low, high = (1.0, 8.7) if wide else (math.log2(5), math.log2(130))
        step = torch.exp2(low + (high - low) * uniform).mul(STEP_UNIT).round().long().to(pixels.device)
        bits: list[Tensor] = []

        def code(c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            q = optimise(c, mean, log_scale)
            bits.append(logistic_bits(q, mean, log_scale).sum((1, 2, 3)))
            return q.long()

        real_step = (step.float() / STEP_UNIT).view(-1, 1, 1, 1)
        picture = self._walk(planes / real_step, step, code)
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
        }

    def _walk(self, x: Tensor, step: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Analyse planes in steps and code every coefficient but the low band's; the picture decoded."""
        low, bands = lifting.analyse(x, LEVELS)

        def code_pass(level: int, phase: int, channels: list[int], *distribution: Tensor) -> Tensor:
            return code(_of_pass(bands[level - 1], phase, channels), *distribution)

        height, width = x.shape[2:]
        return self.prior.levels(low.round().long(), height, width, step, code_pass)

    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks' integers, and tables that start as logistics and follow what the pictures' coefficients do."""
        out: dict[str, Tensor] = {}
        for name, layer in self.named_modules():
            if isinstance(layer, TrainableConv2d):
                out |= {f"{name}.{field}": tensor for field, tensor in layer.shipped().items()}
        networks = Networks(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out)
        return out | pack_tables(networks.calibrated(pictures))

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, TrainableConv2d):
                layer.start_from({field: shipped[f"{name}.{field}"] for field in ("weight", "bias", "exponent")})

    @torch.inference_mode()
    def calibrated(self, pictures: list[np.ndarray]) -> list[Table]:
        """Tables from counts over the pictures at six steps, a logistic counting as much as _BELIEF symbols."""
        tables = logistic_tables()
        counts = np.zeros((len(tables), max(len(t.frequencies) for t in tables)))
        firsts = np.array([t.first for t in tables])
        escapes = np.array([t.escape for t in tables])

        def code(c: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
            q = optimise(c, mean, log_scale).long()
            table, nearest, sign = choose_tables(mean, log_scale)
            entries = sign * (q.flatten().numpy() - nearest) - firsts[table]
            entries = np.where((entries < 0) | (entries >= escapes[table]), escapes[table], entries)
            np.add.at(counts, (table, entries), 1)
            return q

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
            tables.append(Table(-reach, integer_frequencies(np.append(inside, outside))))
    return tables


def choose_tables(mean: Tensor, log_scale: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the prior says of each coefficient, as integers, flattened: the table's index, and how a coefficient q
    becomes the symbol s that is coded with it: s = sign * (q - nearest)."""
    eighths = (mean * 8).round().int()
    nearest = (eighths + 4) >> 3
    offset = eighths - (nearest << 3)  # -4..3
    logarithm = (log_scale * 256).round().int()  # exact, and so is all that follows
    scale = ((logarithm * (3 * _SCALES_PER_E) + round(_NARROWEST * _SCALES_PER_E * 256) + 128) >> 8).clamp(
        0, SCALES - 1
    )
    sign = 1 - 2 * (offset < 0).int()
    table = scale * MEANS + offset.abs()
    return tuple(x.flatten().cpu().numpy() for x in (table.short(), nearest, sign))  # type: ignore[return-value]


def quality_step(quality: float) -> int:
    """quality 0..100 -> quantisation step in 1 / STEP_UNIT: 388 pixel values at 0, 20 at 75, 2 at 100."""
    t = quality / 100
    return round(STEP_UNIT * 2 ** (8.6 - 5.0 * t - 2.6 * t**6))


_COLOUR_BITS = 13
_RGB = (COLOUR * 2**_COLOUR_BITS).round().int()


class WaveletCodec:
    """Streams: `coefficients`, which begins with the step (2 bytes) and the low band's scales (a byte a plane)."""

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

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        step = quality_step(settings.quality)
        x = planes.to(self.device).float() / (257 if shape.bit_depth == 16 else 1)
        x = (x - 128)[None] * 3**0.5 if shape.channels == 1 else to_planes(x[None])
        x = F.pad(x, (0, 0, 0, 0, 0, 3 - shape.channels))
        low, bands = lifting.analyse(x * (STEP_UNIT / step), LEVELS)
        low_q = low.round().long()[0, : shape.channels].cpu().numpy()
        residuals = _predicted(low_q)
        scales = [_scale_of(plane) for plane in residuals]
        encoder = Encoder()
        for plane, scale in zip(residuals, scales, strict=True):
            encoder.encode_shared(plane.ravel(), self.tables[scale * MEANS])

        def code(level: int, phase: int, channels: list[int], mean: Tensor, log_scale: Tensor) -> Tensor:
            c = _of_pass(bands[level - 1], phase, channels)
            q = (optimise(c, mean, log_scale) if settings.effort else c.round()).long()
            inside = Inside(shape, level, *PHASES[phase])
            table, nearest, sign = choose_tables(inside.take(mean), inside.take(log_scale))
            encoder.encode(sign * (inside.take(q).cpu().numpy() - nearest), table, self.tables)
            return q

        self._walk(low_q, shape, step, code)
        return {"coefficients": struct.pack(f"<H{shape.channels}B", step, *scales) + encoder.bytes()}

    def decompress(self, streams: Streams, shape: PlaneShape, truncated: bool = False) -> Tensor:
        data = streams["coefficients"]
        start = 2 + shape.channels
        if len(data) < start:
            raise FormatError("the coded picture is cut off within its header")
        step, *scales = struct.unpack(f"<H{shape.channels}B", data[:start])
        if not step or max(scales) >= SCALES:
            raise FormatError("the coded picture's header is damaged")
        decoder = Decoder(data[start:])
        ended = False  # the coded data of a truncated file: what is missing is zero
        rows, columns = _size(shape.height, shape.width, LEVELS)
        residuals = [decoder.decode_shared(rows * columns, self.tables[scale * MEANS]) for scale in scales]
        low_q = _unpredicted(np.stack(residuals).reshape(shape.channels, rows, columns))

        def code(level: int, phase: int, channels: list[int], mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, level, *PHASES[phase])
            table, nearest, sign = choose_tables(inside.take(mean), inside.take(log_scale))
            nonlocal ended
            values = np.zeros(len(table), np.int64)
            try:
                if not ended:
                    values = nearest + sign * decoder.decode(table, self.tables)
            except FormatError:
                if not truncated:
                    raise
                ended = True
            return inside.put(torch.from_numpy(values).to(self.device), mean.shape)

        picture = self._walk(low_q, shape, step, code)
        correction = self.post_filter(picture, torch.tensor([step], device=self.device))
        return self._pixels(picture, correction, shape, step)

    def _walk(self, low: np.ndarray, shape: PlaneShape, step: int, code: Callable[..., Tensor]) -> Tensor:
        """From the low band (C, rows, columns), code every level; the picture (1, 3, H, W) in 1 / 2**FRACTION steps."""
        low = np.pad(low, ((0, 3 - len(low)), (0, 0), (0, 0)))
        start = torch.from_numpy(low.astype(np.int64)).to(self.device)[None]
        steps = torch.tensor([step], device=self.device)
        return self.prior.levels(start, shape.height, shape.width, steps, code, shape.channels == 1)

    def _pixels(self, picture: Tensor, correction: Tensor, shape: PlaneShape, step: int) -> Tensor:
        """Picture and correction in steps -> planes (C, H, W) int32."""
        steps = picture[0] + ((correction[0] * 64).round().long() << lifting.FRACTION - 6)
        values = (steps * step + 128) >> 8  # in 1/64 pixel values
        if shape.channels == 1:
            colours = values[:1] * round(3**-0.5 * 2**_COLOUR_BITS)
        else:
            rgb = _RGB.to(self.device).long()
            colours = torch.stack([sum(rgb[i, j] * values[i] for i in range(3)) for j in range(3)])
        fraction = _COLOUR_BITS + 6
        colours = (colours + (128 << fraction)) * (257 if shape.bit_depth == 16 else 1)
        return ((colours + (1 << fraction - 1)) >> fraction).clamp(0, 2**shape.bit_depth - 1).int()


class Inside:
    """The coefficients of one pass that exist: where a side is odd, high bands are a row or a column shorter than the
    arrays that hold them."""

    def __init__(self, shape: PlaneShape, level: int, dy: int, dx: int):
        height, width = _size(shape.height, shape.width, level - 1)
        low, high = ((height + 1) // 2, (width + 1) // 2), (height // 2, width // 2)
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
    return np.cumsum(residuals, axis=2)


def _scale_of(residuals: np.ndarray) -> int:
    """The table scale that suits a plane of residuals: a logistic's mean absolute value is 2 log 2 scales."""
    scale = max(np.abs(residuals).mean() / (2 * math.log(2)), 0.05)
    return min(SCALES - 1, max(0, round((math.log(scale) + _NARROWEST) * _SCALES_PER_E)))


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
