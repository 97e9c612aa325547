"""`wavelet_lossless`, what `wavelet` is for `lossless=True`: a wavelet of integers, and a learned prior for it.

After iWave++ (Ma et al., TPAMI 2020), whose lossless mode is a lifting scheme with rounding in each step.

    picture -> values in use numbered -> RCT -> (4, 2) lifting of integers, six levels
                                           -> entropy coder, coarse to fine, as lic.layers.band_prior predicts

Screenshots and drawings, which repeat themselves, are coded without it where that is smaller (lic.layers.repeats). So
are pictures that were JPEG files: as those files' coefficients, which have priors of their own
(lic.layers.jpeg_coder).
Pictures of 16 bits have wider coefficients than the prior has learned: their lowest bits, mere noise, are coded as they
are, and what the prior sees are the others.
"""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.container import Reader, write_varint
from lic.entropy import Decoder, Encoder, SparseTable, Table
from lic.errors import FormatError
from lic.layers import (
    cameras,
    dct_prior,
    integer,
    jpeg_coder,
    jpeg_trace,
    regression,
    repeats,
    reversible,
    tiles,
    ycbcr,
)
from lic.layers.band_prior import LEVELS, STEP_UNIT, Code, Pass, Prior, walk
from lic.layers.coefficients import (
    SCALE_STEPS,
    BandsReader,
    BandsWriter,
    Calibration,
    Inside,
    choose_tables,
    logistic_bits,
    prediction,
    unpack_tables,
)
from lic.layers.dct_prior import DctPrior
from lic.layers.integer import Convolution, TrainableConv2d, kernel_for
from lic.layers.jpeg import Component, Jpeg
from lic.layers.lifting import FRACTION
from lic.layers.mapping import LONGEST, Mapping
from lic.layers.regression import NOTHING, Fit, Neighbours
from lic.layers.tiles import Area, Level
from lic.layers.ycbcr import JPEG, Conversion, Exceptions, Origin

REGRESSION_EFFORT = 2  # from there on, files have regressions
_PLANES = slice(0, 1), slice(1, 2), slice(2, 3)  # Y, U, V: each is coded where those before it are known
_PRIORS = (4, 3), (8, 5)  # residual blocks, and cells along each axis of what is coded that a pass sees
_DEPTHS = 2, 1  # of what predicts JPEG's luma, and chroma
_LIMIT = 2**20  # of what synthesis makes: no picture reaches it, nor do 32 bits overflow


class Networks(nn.Module):
    """The priors of the finest level and of all others (a lic.training.loop.Trainable where conv is
    TrainableConv2d)."""

    shrunk = 0.75  # what an earlier compression left in a picture is there in some of those that people keep losslessly

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.priors = nn.ModuleList(
            [Prior(conv, norm=1, blocks=blocks, kernel=kernel, planes=_PLANES) for blocks, kernel in _PRIORS]
        )
        self.jpeg = nn.ModuleList([DctPrior(conv, depth) for depth in _DEPTHS])

    def walk(
        self, low: Tensor, height: int, width: int, code: Code, plan: list[Level], grey: bool, shift: int
    ) -> Tensor:
        """From the low band (N, 3, h, w), integers, code a plan's levels; what they make, (N, 3, h, w) int32.

        code: as in `Prior.tile`, in units of 2**shift.
        """
        fraction = FRACTION - shift

        def synthesise(low: Tensor, bands: Tensor, height: int, width: int) -> Tensor:
            low, bands = (x.clamp(-_LIMIT << fraction, _LIMIT << fraction) >> fraction for x in (low, bands))
            return reversible.synthesise(low, bands, height, width).clamp(-_LIMIT, _LIMIT) << fraction

        step = torch.full((len(low),), STEP_UNIT, device=low.device)
        return walk(self.priors, low << fraction, height, width, step, code, plan, grey, synthesise) >> fraction

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step, in which every picture counts alike. A prior that doesn't learn isn't asked."""
        losses = [self._wavelet(pixels, generator)] if integer.learns(self.priors) else []
        if integer.learns(self.jpeg):
            losses.append(dct_prior.learn(self.jpeg, pixels, generator))
        merged = {name: value for each in losses for name, value in each.items()}
        return merged | {"loss": torch.stack([each["loss"] for each in losses]).sum()}

    def _wavelet(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        n, _, height, width = pixels.shape
        bits: list[Tensor] = []
        low, bands = reversible.analyse(cameras.marked(pixels, generator), LEVELS)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            q = this.of(bands)
            bits.append(logistic_bits(q - 0.5, q + 0.5, mean, log_scale).sum((1, 2, 3)))
            return q << FRACTION

        step = torch.full((n,), STEP_UNIT, device=pixels.device)
        coarser: Tensor | None = None
        for level in range(LEVELS, 0, -1):
            prior = cast(Prior, self.priors[min(level, len(self.priors)) - 1])
            here = Area(0, 0, *low.shape[2:])
            if integer.learns(prior):
                place = partial(Pass, level, 0, here, low)
                prior.tile(low << FRACTION, coarser, step << prior.norm * level, place, code)
            low = reversible.synthesise(low, bands[level - 1], *tiles.size(height, width, level - 1))
            coarser = bands[level - 1] << FRACTION
        bits_per_pixel = torch.stack(bits).sum(0) / (height * width)
        return {"loss": torch.log(bits_per_pixel).mean(), "bits_per_pixel": bits_per_pixel.mean()}

    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The prior's integers, and tables that start as logistics and follow what the pictures' coefficients do."""
        out = integer.shipped(self)
        networks = Networks(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out)
        tables = dct_prior.calibrated(networks.jpeg, pictures)
        return out | networks.calibrated(pictures) | {f"jpeg.{name}": tensor for name, tensor in tables.items()}

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        integer.start_from(self, shipped)

    @torch.inference_mode()
    def calibrated(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """Tables from the pictures' coefficients."""
        counts, generator = Calibration(SCALE_STEPS), torch.Generator().manual_seed(0)
        for pixels in tqdm(pictures, desc="calibrating", unit="picture", disable=None):
            height, width = (side - side % 2**LEVELS for side in pixels.shape[:2])
            picture = torch.from_numpy(pixels[:height, :width].astype(np.float32)).permute(2, 0, 1)
            low, bands = reversible.analyse(cameras.marked(picture[None], generator), LEVELS)

            def code(this: Pass, mean: Tensor, log_scale: Tensor, bands: list[Tensor] = bands) -> Tensor:
                q = this.of(bands)
                table, nearest, sign = choose_tables(*prediction(mean, log_scale))
                counts.count(table, sign * (q - nearest))
                return q << FRACTION

            self.walk(low, height, width, code, tiles.plan(height, width, LEVELS), False, 0)
        return counts.packed()


class WaveletLosslessCodec:
    """One stream, `coefficients`: the number of raw bits of a coefficient and the kind of the mapping (a byte); the
    mapping's list, its length (a varint) first; then as lic.layers.coefficients says, each pass that has regressions
    beginning with them. Or, from 8 on, what it would be without the wavelet: as lic.layers.repeats codes it. Or, from
    64 on, exceptional pixels, their length (a varint) first, and what lic.layers.jpeg_coder has coded."""

    card = ModelCard(
        name="wavelet_lossless",
        paper="this project's own; after iWave++ (TPAMI 2020) and arXiv 2405.12631",
        purpose="photographs, bit for bit: what model='wavelet' does when lossless=True",
        lossy=False,
        lossless=True,
        streams=("coefficients",),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        self.device = device
        self.tables, self.jpeg_tables = unpack_tables(tensors), unpack_tables(tensors, "jpeg.tables", SparseTable)
        self.networks = Networks(kernel_for(device))
        self.networks.load_state_dict(tensors)
        self.networks.to(device)

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        samples = planes.cpu()
        regressions_pay = settings.effort >= REGRESSION_EFFORT
        coloured = shape.channels == 3 and not bool((samples == samples[:1]).all())
        origin = ycbcr.traced(samples) if coloured and shape.bit_depth == 8 else None
        candidates, listed = [], 0
        jpeg = None
        if origin and origin.conversion.kind == JPEG:
            jpeg = jpeg_trace.found(samples, origin)
        elif not coloured and shape.bit_depth == 8:
            jpeg = jpeg_trace.found(samples[:1])
        exceptions = jpeg and _exceptions(samples, _samples_of(jpeg, shape))
        if jpeg and exceptions is not None:
            candidates.append(self._as_jpeg(jpeg, exceptions, regressions_pay))
            listed = len(exceptions)
        if not candidates or listed > _MANY * len(candidates[0]):
            candidates.append(self._coefficients(samples, shape, origin, regressions_pay))
        if repeats.likely(samples.numpy()):
            method, repeated = repeats.encode(samples.numpy(), shape)
            candidates.append(bytes([_REPEATS + method]) + repeated)
        return {"coefficients": min(candidates, key=len)}

    def _as_jpeg(self, jpeg: Jpeg, exceptions: bytes, regressions_pay: bool) -> bytes:
        def encode_dc(dc: Tensor, shape: PlaneShape) -> bytes:
            return self._coefficients(dc, shape, None, regressions_pay)

        here = jpeg._replace(components=[Component(*(x.to(self.device) for x in each)) for each in jpeg.components])
        coded = jpeg_coder.encode(here, self.networks.jpeg, self.jpeg_tables, encode_dc)
        return bytes([_JPEG + jpeg_coder.number(jpeg)]) + write_varint(len(exceptions)) + exceptions + coded

    def _coefficients(self, samples: Tensor, shape: PlaneShape, origin: Origin | None, regressions_pay: bool) -> bytes:
        mapping, x = Mapping.of(samples.numpy(), shape, origin)
        x = x.to(self.device)
        low, bands = reversible.analyse(x[None], LEVELS)
        mean = sum(int(band.abs().sum()) for band in bands) / x.numel()
        shift = min(FRACTION, max(0, round(math.log2(max(mean, 1) / _TYPICAL))))
        half = 1 << shift >> 1
        writer = BandsWriter(shape, self.tables, low[0, : shape.channels].cpu().numpy())
        neighbours, fit = Neighbours(), Fit()

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            encoder, c = writer.encoder(this), this.of(bands) + half
            expected = prediction(mean, log_scale)
            if regressed := neighbours.enter(this):
                regressions = [NOTHING] * this.channels
                if regressions_pay:
                    regressions = fit.regressions(neighbours, this, c >> shift, *expected)
                regression.write(encoder, regressions, len(neighbours))
                expected = neighbours.applied(*expected, regressions)
            table, nearest, sign = choose_tables(*(inside.take(x) for x in expected))
            c = inside.take(c)
            _encode(encoder, self.tables, table, sign * ((c >> shift) - nearest), c, shift)
            values = inside.put(c - half << FRACTION - shift, mean.shape)
            if regressed:
                neighbours.add(values)
            return values

        plan = tiles.plan(shape.height, shape.width, LEVELS)
        self.networks.walk(low, shape.height, shape.width, code, plan, shape.channels == 1, shift)
        return bytes([shift + _MAPPINGS * mapping.kind]) + mapping.coded() + writer.bytes()

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        reader = Reader(file := io.BytesIO(streams["coefficients"]))
        method = reader.take(1)[0]
        if 0 <= method - _REPEATS < repeats.METHODS:
            return view.of(torch.from_numpy(repeats.decode(method - _REPEATS, file.read(), shape)), shape)
        if 0 <= method - _JPEG < jpeg_coder.NUMBERS:
            return view.of(self._from_jpeg(reader, method - _JPEG, shape, view.truncated), shape)
        return self._from_coefficients(reader, method, shape, view)

    def _from_jpeg(self, reader: Reader, number: int, shape: PlaneShape, truncated: bool) -> Tensor:
        pixels = shape.height * shape.width
        exceptions = Exceptions.read(reader.take(reader.varint(LONGEST)), pixels, _FEW)

        def decode_dc(coded: bytes, dc_shape: PlaneShape) -> Tensor:
            dc_reader = Reader(io.BytesIO(coded))
            return self._from_coefficients(dc_reader, dc_reader.take(1)[0], dc_shape, View(truncated=truncated))

        jpeg = jpeg_coder.decode(
            reader, shape, number, self.networks.jpeg, self.jpeg_tables, decode_dc, self.device, truncated
        )
        samples = _samples_of(jpeg, shape).cpu().flatten(1)
        off = exceptions.colours[: shape.channels]
        samples[:, exceptions.places] = samples[:, exceptions.places] + off & 255
        return samples.view(-1, shape.height, shape.width)

    def _from_coefficients(self, reader: Reader, method: int, shape: PlaneShape, view: View) -> Tensor:
        kind, shift = divmod(method, _MAPPINGS)
        if shift > FRACTION:
            raise FormatError("the coded picture's header is damaged")
        mapping = Mapping.read(kind, reader, shape)
        half = 1 << shift >> 1
        bands = BandsReader(reader.file.read(), shape, self.tables, view.truncated)
        neighbours = Neighbours()

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            expected = prediction(mean, log_scale)
            regressed = neighbours.enter(this)
            nearest = inside.take(expected[0] + 4 >> 3)

            def decode(decoder: Decoder, nearest: Tensor) -> tuple[Tensor, Tensor]:
                exact = expected
                if regressed:
                    exact = neighbours.applied(*expected, regression.read(decoder, this.channels, len(neighbours)))
                table, centre, sign = choose_tables(*(inside.take(x) for x in exact))
                symbols, raw = _decode(decoder, table, self.tables, shift)
                return centre + sign * symbols - nearest, raw

            more, raw = bands.read(this, nearest, decode)
            c = (nearest + more << shift) + raw - half
            values = inside.put(c << FRACTION - shift, mean.shape)
            if regressed:
                neighbours.add(values)
            return values

        low = F.pad(torch.from_numpy(bands.low.astype(np.int32)), (0, 0, 0, 0, 0, 3 - shape.channels))
        wanted = view.area(shape)
        plan = tiles.plan(shape.height, shape.width, LEVELS, wanted, view.halvings)
        picture = self.networks.walk(
            low[None].to(self.device), shape.height, shape.width, code, plan, shape.channels == 1, shift
        )
        covered = Area(0, 0, *low.shape[1:])
        if plan:
            covered = plan[-1].area.finer(*tiles.size(shape.height, shape.width, view.halvings))
        return mapping.samples(picture[0][wanted.within(covered)], shape, wanted, view.halvings)


def _exceptions(samples: Tensor, made: Tensor) -> bytes | None:
    """How far samples (C, H, W) are from what was made, pixel by pixel, where they aren't the same; None where these
    pixels are too many."""
    off = (samples - made).expand(3, -1, -1).flatten(1)
    wrong = off.any(0)
    if int(wrong.sum()) > len(wrong) // _FEW:
        return None
    return Exceptions(wrong.nonzero()[:, 0], off[:, wrong] & 255).coded()


def _samples_of(jpeg: Jpeg, shape: PlaneShape) -> Tensor:
    """What a decoder of JPEG files makes of it: (C, H, W) int32, 0..255."""
    planes = jpeg.planes(shape.height, shape.width)
    return Conversion(JPEG).rgb(planes) if len(planes) == 3 else (planes + 128).expand(shape.channels, -1, -1).clone()


def _encode(encoder: Encoder, tables: list[Table], table: Tensor, symbols: Tensor, numbers: Tensor, bits: int) -> None:
    """The symbols of a pass, with the table of each; after them, the lowest bits of each number; all int32 (count,)."""
    encoder.encode(symbols.cpu().numpy(), table.cpu().numpy(), tables)
    if bits:
        encoder.uniform((numbers & (1 << bits) - 1).cpu().numpy(), 2**bits)


def _decode(decoder: Decoder, table: Tensor, tables: list[Table], bits: int) -> tuple[Tensor, Tensor]:
    symbols = decoder.decode(table.cpu().numpy(), tables)
    raw = decoder.uniform(len(table), 2**bits) if bits else np.zeros_like(symbols)
    return torch.from_numpy(symbols).to(table.device), torch.from_numpy(raw).to(table.device)


_REPEATS = 8  # what the first byte is, and the method's number, where lic.layers.repeats coded the picture
_JPEG = 64  # and `jpeg_coder.number`, where the picture was a JPEG file
_FEW = 16  # of so many pixels of what was a JPEG file, one may be an exception
_MANY = 0.1  # of a JPEG file's bytes; where exceptions are more, the wavelet may be better
_MAPPINGS = 16  # times the mapping's kind, and the number of raw bits, it is otherwise
_TYPICAL = 8  # a mean absolute value of coefficients that the prior knows well
