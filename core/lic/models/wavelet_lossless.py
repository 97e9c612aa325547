"""`wavelet_lossless`, what `wavelet` is for `lossless=True`: a wavelet of integers, and a learned prior for it.

After iWave++ (Ma et al., TPAMI 2020), whose lossless mode is a lifting scheme with rounding in each step.

    picture -> values in use numbered -> RCT -> (4, 2) lifting of integers, six levels
                                           -> entropy coder, coarse to fine, as lic.layers.band_prior predicts

Screenshots and drawings, which repeat themselves, are coded without it where that is smaller (lic.layers.repeats).
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
from lic.container import Reader
from lic.entropy import Decoder, Encoder, Table
from lic.errors import FormatError
from lic.layers import cameras, integer, regression, repeats, reversible, tiles
from lic.layers.band_prior import LEVELS, STEP_UNIT, Code, Pass, Prior, walk
from lic.layers.coefficients import (
    MEANS,
    SCALE_STEPS,
    BandsReader,
    BandsWriter,
    Calibration,
    Inside,
    logistic_bits,
    scale_index,
    unpack_tables,
)
from lic.layers.integer import Convolution, TrainableConv2d, kernel_for
from lic.layers.lifting import FRACTION
from lic.layers.mapping import Mapping
from lic.layers.regression import NOTHING, Fit, Neighbours
from lic.layers.tiles import Area, Level

REGRESSION_EFFORT = 2  # from there on, files have regressions
_PLANES = slice(0, 1), slice(1, 2), slice(2, 3)  # Y, U, V: each is coded where those before it are known
_PRIORS = (4, 3), (8, 5)  # residual blocks, and cells along each axis of what is coded that a pass sees
_LIMIT = 2**20  # of what synthesis makes: no picture reaches it, nor do 32 bits overflow


def _predicted(mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """What the prior says of each coefficient, as int32, exactly: its mean in eighths, its table scale."""
    return (mean * 8).round().int(), scale_index(log_scale)


def _choose_tables(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From that, int32: the table's index, and how a coefficient's integer q becomes the symbol s that is coded with
    it: s = sign * (q - nearest)."""
    nearest = (mean + 4) >> 3
    offset = mean - (nearest << 3)  # -4..3
    return scale * MEANS + offset.abs(), nearest, 1 - 2 * (offset < 0).int()


class Networks(nn.Module):
    """The priors of the finest level and of all others (a lic.training.loop.Trainable where conv is
    TrainableConv2d)."""

    shrunk = 0.75  # what an earlier compression left in a picture is there in some of those that people keep losslessly

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.priors = nn.ModuleList(
            [Prior(conv, norm=1, blocks=blocks, kernel=kernel, planes=_PLANES) for blocks, kernel in _PRIORS]
        )

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
        """A training step: every picture counts alike. A prior that doesn't learn isn't asked."""
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
            if any(parameter.requires_grad for parameter in prior.parameters()):
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
        return out | networks.calibrated(pictures)

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
                table, nearest, sign = _choose_tables(*_predicted(mean, log_scale))
                counts.count(table, sign * (q - nearest))
                return q << FRACTION

            self.walk(low, height, width, code, tiles.plan(height, width, LEVELS), False, 0)
        return counts.packed()


class WaveletLosslessCodec:
    """One stream, `coefficients`: the number of raw bits of a coefficient and the kind of the mapping (a byte); the
    mapping's list, its length (a varint) first; then as lic.layers.coefficients says, each pass that has regressions
    beginning with them. Or, from 8 on, what it would be without the wavelet: as lic.layers.repeats codes it."""

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
        self.tables = unpack_tables(tensors)
        self.networks = Networks(kernel_for(device))
        self.networks.load_state_dict(tensors)
        self.networks.to(device)

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        samples = planes.cpu().numpy()
        candidates = [self._coefficients(samples, shape, settings.effort >= REGRESSION_EFFORT)]
        if repeats.likely(samples):
            method, coded = repeats.encode(samples, shape)
            candidates.append(bytes([_REPEATS + method]) + coded)
        return {"coefficients": min(candidates, key=len)}

    def _coefficients(self, planes: np.ndarray, shape: PlaneShape, regressions_pay: bool) -> bytes:
        mapping, x = Mapping.of(planes, shape)
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
            expected = _predicted(mean, log_scale)
            if regressed := neighbours.enter(this):
                regressions = [NOTHING] * this.channels
                if regressions_pay:
                    regressions = fit.regressions(neighbours, this, c >> shift, *expected)
                regression.write(encoder, regressions, len(neighbours))
                expected = neighbours.applied(*expected, regressions)
            table, nearest, sign = _choose_tables(*(inside.take(x) for x in expected))
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
        kind, shift = divmod(method, _MAPPINGS)
        if shift > FRACTION:
            raise FormatError("the coded picture's header is damaged")
        mapping = Mapping.read(kind, reader, shape)
        half = 1 << shift >> 1
        bands = BandsReader(file.read(), shape, self.tables, view.truncated)
        neighbours = Neighbours()

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            expected = _predicted(mean, log_scale)
            regressed = neighbours.enter(this)
            nearest = inside.take(expected[0] + 4 >> 3)

            def decode(decoder: Decoder, nearest: Tensor) -> tuple[Tensor, Tensor]:
                exact = expected
                if regressed:
                    exact = neighbours.applied(*expected, regression.read(decoder, this.channels, len(neighbours)))
                table, centre, sign = _choose_tables(*(inside.take(x) for x in exact))
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
_MAPPINGS = 16  # times the mapping's kind, and the number of raw bits, it is otherwise
_TYPICAL = 8  # a mean absolute value of coefficients that the prior knows well
