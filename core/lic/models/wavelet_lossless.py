"""`wavelet_lossless`, what `wavelet` is for `lossless=True`: a wavelet of integers, and a learned prior for it.

After iWave++ (Ma et al., TPAMI 2020), whose lossless mode is a lifting scheme with rounding in each step.

    picture -> values in use numbered -> YCoCg-R -> 5/3 lifting of integers, six levels
                                           -> entropy coder, coarse to fine, as lic.layers.band_prior predicts

Screenshots and drawings, which repeat themselves, are coded without it where that is smaller (lic.layers.repeats).
Pictures of 16 bits have wider coefficients than the prior has learned: their lowest bits, mere noise, are coded as they
are, and what the prior sees are the others.
"""

from __future__ import annotations

import io
import math
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.container import Reader, write_varint
from lic.entropy import Decoder, Encoder, Table
from lic.errors import FormatError
from lic.layers import integer, repeats, reversible, tiles
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
from lic.layers.tiles import Area, Level

_LIMIT = 2**20  # of what synthesis makes: no picture reaches it, nor do 32 bits overflow


def _choose_tables(mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the prior says of each coefficient, as int32: the table's index, and how a coefficient's integer q becomes
    the symbol s that is coded with it: s = sign * (q - nearest)."""
    # Exact, and so is all that follows.
    eighths = (mean * 8).round().int()
    nearest = (eighths + 4) >> 3
    offset = eighths - (nearest << 3)  # -4..3
    return scale_index(log_scale) * MEANS + offset.abs(), nearest, 1 - 2 * (offset < 0).int()


class Networks(nn.Module):
    """The prior (a lic.training.loop.Trainable where conv is TrainableConv2d)."""

    shrunk = 1.0  # what an earlier compression left in a picture is not there in those that people keep losslessly

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.prior = Prior(conv, norm=1)

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
        return walk([self.prior], low << fraction, height, width, step, code, plan, grey, synthesise) >> fraction

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step: every picture counts alike."""
        height, width = pixels.shape[2:]
        bits: list[Tensor] = []
        low, bands = reversible.analyse(reversible.to_ycocg(pixels.int() - 128), LEVELS)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            q = this.of(bands)
            bits.append(logistic_bits(q - 0.5, q + 0.5, mean, log_scale).sum((1, 2, 3)))
            return q << FRACTION

        self.walk(low, height, width, code, tiles.plan(height, width, LEVELS), False, 0)
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
        counts = Calibration(SCALE_STEPS)
        for pixels in tqdm(pictures, desc="calibrating", unit="picture", disable=None):
            planes = torch.from_numpy(pixels.astype(np.int32)).permute(2, 0, 1)
            height, width = (side - side % 2**LEVELS for side in planes.shape[1:])
            low, bands = reversible.analyse(reversible.to_ycocg(planes[None, :, :height, :width] - 128), LEVELS)

            def code(this: Pass, mean: Tensor, log_scale: Tensor, bands: list[Tensor] = bands) -> Tensor:
                q = this.of(bands)
                table, nearest, sign = _choose_tables(mean, log_scale)
                counts.count(table, sign * (q - nearest))
                return q << FRACTION

            self.walk(low, height, width, code, tiles.plan(height, width, LEVELS), False, 0)
        return counts.packed()


class WaveletLosslessCodec:
    """One stream, `coefficients`: the number of raw bits of a coefficient (a byte); the length of the list of values in
    use (a varint, 0 where all are) and the list; then as lic.layers.coefficients says. Or, from 8 on, what it would be
    without the wavelet: as lic.layers.repeats codes it."""

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
        candidates = [self._coefficients(samples, shape)]
        if repeats.likely(samples):
            method, coded = repeats.encode(samples, shape)
            candidates.append(bytes([_REPEATS + method]) + coded)
        return {"coefficients": min(candidates, key=len)}

    def _coefficients(self, planes: np.ndarray, shape: PlaneShape) -> bytes:
        values, numbers = _numbered(planes, shape)
        x = torch.from_numpy(numbers).to(self.device) - len(values) // 2
        x = reversible.to_ycocg(x) if shape.channels == 3 else F.pad(x, (0, 0, 0, 0, 0, 2))
        low, bands = reversible.analyse(x[None], LEVELS)
        mean = sum(int(band.abs().sum()) for band in bands) / x.numel()
        shift = min(FRACTION, max(0, round(math.log2(max(mean, 1) / _TYPICAL))))
        half = 1 << shift >> 1
        writer = BandsWriter(shape, self.tables, low[0, : shape.channels].cpu().numpy())

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            c = inside.take(this.of(bands)) + half
            table, nearest, sign = _choose_tables(inside.take(mean), inside.take(log_scale))
            _encode(writer.encoder(this), self.tables, table, sign * ((c >> shift) - nearest), c, shift)
            return inside.put(c - half << FRACTION - shift, mean.shape)

        plan = tiles.plan(shape.height, shape.width, LEVELS)
        self.networks.walk(low, shape.height, shape.width, code, plan, shape.channels == 1, shift)
        listed = b"" if len(values) == 2**shape.bit_depth else _list(values)
        return bytes([shift]) + write_varint(len(listed)) + listed + writer.bytes()

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        reader = Reader(file := io.BytesIO(streams["coefficients"]))
        shift = reader.take(1)[0]
        if 0 <= shift - _REPEATS < repeats.METHODS:
            decoded = repeats.decode(shift - _REPEATS, file.read(), shape)
            return view.of(torch.from_numpy(decoded), shape)
        if shift > FRACTION:
            raise FormatError("the coded picture's header is damaged")
        listed = reader.take(reader.varint(_LONGEST_LIST))
        values = _unlist(listed, shape) if listed else np.arange(2**shape.bit_depth, dtype=np.int32)
        half = 1 << shift >> 1
        bands = BandsReader(file.read(), shape, self.tables, view.truncated)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            inside = Inside(shape, this)
            table, nearest, sign = _choose_tables(inside.take(mean), inside.take(log_scale))
            symbols, raw = bands.read(this, table, partial(_decode, tables=self.tables, bits=shift))
            c = (nearest + sign * symbols << shift) + raw - half
            return inside.put(c << FRACTION - shift, mean.shape)

        low = F.pad(torch.from_numpy(bands.low.astype(np.int32)), (0, 0, 0, 0, 0, 3 - shape.channels))
        wanted = view.area(shape)
        plan = tiles.plan(shape.height, shape.width, LEVELS, wanted, view.halvings)
        picture = self.networks.walk(
            low[None].to(self.device), shape.height, shape.width, code, plan, shape.channels == 1, shift
        )
        covered = Area(0, 0, *low.shape[1:])
        if plan:
            covered = plan[-1].area.finer(*tiles.size(shape.height, shape.width, view.halvings))
        x = picture[0][wanted.within(covered)]
        x = reversible.from_ycocg(x) if shape.channels == 3 else x[:1]
        numbers = (x + len(values) // 2).clamp(0, len(values) - 1)
        return torch.from_numpy(values).to(self.device)[numbers]


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
_TYPICAL = 8  # a mean absolute value of coefficients that the prior knows well
_LONGEST_LIST = 2**18  # bytes


def _numbered(planes: np.ndarray, shape: PlaneShape) -> tuple[np.ndarray, np.ndarray]:
    """Values, in order, and each sample's number among them, int32: all there can be, or, if it pays, those in use.

    Pictures of 16 bits often have few values: those of 8 or 12 bits, stretched.
    """
    everything = np.arange(2**shape.bit_depth, dtype=np.int32)
    used = np.flatnonzero(np.bincount(planes.ravel(), minlength=len(everything))).astype(np.int32)
    span = int(used[-1] - used[0]) + 1
    if len(used) * 2 > span or planes.size * math.log2(span / len(used)) < 8 * len(_list(used)):
        return everything, planes
    numbers = np.zeros(len(everything), np.int32)
    numbers[used] = np.arange(len(used))
    return used, numbers[planes]


def _list(values: np.ndarray) -> bytes:
    """Increasing integers -> the zlib stream of their differences, 16 bits each, little-endian."""
    return zlib.compress(np.diff(values, prepend=0).astype("<u2").tobytes(), 9)


def _unlist(data: bytes, shape: PlaneShape) -> np.ndarray:
    try:
        raw = zlib.decompressobj().decompress(data, 2 << shape.bit_depth)
    except zlib.error as error:
        raise FormatError("the list of values is damaged") from error
    steps = np.frombuffer(raw[: len(raw) & ~1], "<u2").astype(np.int64)
    values = steps.cumsum()
    if not len(values) or steps[1:].min(initial=1) < 1 or values[-1] >= 2**shape.bit_depth:
        raise FormatError("the list of values is damaged")
    return values.astype(np.int32)
