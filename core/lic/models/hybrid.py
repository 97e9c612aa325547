"""`hybrid`: Lee, Cho, Kim, "A Hybrid Architecture of Jointly Learning Image Compression and Quality Enhancement with
Improved Entropy Minimization" (arXiv 1912.12817).

    hyperlatents -> h_s -+-> global context, scales --+            one mixture
                         |                            v            a latent
    latents decoded so far -> local context -> parameter networks ---------> entropy coder
                                                 28 passes: 7 groups of channels x 4 phases
    latents -> synthesis -> quality enhancement -> picture

What makes it that system: given the hyperlatents (global context) and the latents decoded before it (local context), a
latent is a mixture of Gaussians, whose means, scales and weights a network gives (section 3.2); a network for quality
enhancement follows synthesis and is trained together with the rest (section 3.1).

What differs: transforms, gain units and hyperlatents are those of `hyperprior`, which it extends and starts from; what
h_s says of scales is the unit of the mixtures. Where the paper decodes latent after latent, here all of a pass are
decoded at once, at every second position of every second row; `hybrid_serial` has the paper's order. The first 192
channels, whose positions are 16 pixels apart, are the coarse grid; the others, which come folded, unfold into 144
channels 8 pixels apart, the fine grid. The enhancement works on the picture folded 2x2; the paper's is GRDN. Noise
stands for quantisation in the rate alone: local context and synthesis get rounded latents in training, too. What is new
learns faster than what `hyperprior` brings.

Everything that chooses a mixture works in integers (lic.layers.integer, lic.layers.mixture) on what both sides decode.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.entropy import Decoder, Encoder, Table
from lic.errors import FormatError
from lic.layers import autoencoder, gain, integer, mixture
from lic.layers.autoencoder import latent_size, latents_of, planes_of
from lic.layers.gain import COARSEST, OCTAVE
from lic.layers.gaussian import NARROWEST
from lic.layers.integer import Convolution, QuickConv2d, TrainableConv2d, kernel_for, signed
from lic.layers.mixture import PARAMETERS, WIDEST, Mixtures
from lic.models import hyperprior
from lic.models.hyperprior import FEATURES, HIDDEN

# Channels of the coarse and of the fine grid that are coded together, low frequencies and luma first; and how wide the
# networks for them are.
GROUPS = (4, 12, 48, 128), (32, 16, 96)
_WIDTHS = (32, 48, 64, 32), (48, 32, 16)
FINE_TRUNK = 40
KNOWN = signed(4)  # latents in sixteenths of their scales
_ORDER = sorted(range(sum(GROUPS[1])), key=lambda channel: channel % 48 >= 16)  # of the fine grid: luma first
PHASES = 4
_POSITIONS = 4096  # that parameters are computed for at once
_FOLD = 2  # the side of the squares of pixels that the enhancement takes as one position
_CAUTION = 0.2  # the correction's unit, in steps: the first moves of its weights are in all directions


def to_grids(latents: Tensor) -> tuple[Tensor, Tensor]:
    """(N, LATENTS, h, w) -> the coarse grid (N, 192, h, w) and the fine one (N, 144, 2h, 2w)."""
    coarse, fine = autoencoder.to_grids(latents)
    return coarse, fine[:, _ORDER]


def from_grids(coarse: Tensor, fine: Tensor) -> Tensor:
    return autoencoder.from_grids(coarse, fine[:, np.argsort(_ORDER)])


def phases(x: Tensor) -> Tensor:
    """When the positions of x (N, C, h, w) are coded: (h, w), 0 to PHASES - 1. The second phase is diagonal to the
    first; the others are then between known rows or columns."""
    rows, columns = (torch.arange(side, device=x.device) % 2 for side in x.shape[2:])
    return rows[:, None] + 2 * (rows[:, None] ^ columns)


def position_plane(position: Tensor, x: Tensor) -> Tensor:
    """position (N,), integers -> -63..63, in the shape of a channel of x (N, C, h, w)."""
    return (position * 18 // OCTAVE - 63).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])


class Group(nn.Module):
    """Latents that are coded together: what is known of and around them -> their mixtures."""

    def __init__(self, conv: type[Convolution], trunk: int, earlier: int, coded: int, width: int):
        super().__init__()
        self.form, self.coded = conv.form, coded
        self.context = conv(2 * coded + earlier + 1, width, 3, KNOWN, FEATURES, biases=PHASES)
        self.mix = conv(trunk + width, width, 1, FEATURES, FEATURES)
        self.hidden = conv(width, width, 1, FEATURES, FEATURES)
        self.out = conv(width, PARAMETERS * coded, 1, FEATURES, None)
        if isinstance(self.out, TrainableConv2d):
            self.out.weight.data *= 0.25
            self.out.bias.data[0] = mixture.first_parameters(coded) / self.out.speed

    def features(self, trunk: Tensor, own: Tensor, earlier: Tensor, position: Tensor, phase: int) -> Tensor:
        """What `own` (N, coded, h, w) holds of the group's latents (zero where unknown) and `earlier` of those of the
        grid's earlier groups, integers -63..63 -> activations, all positions."""
        known = torch.cat([own, own.abs(), earlier.abs(), position_plane(position, own)], 1)
        return self.mix(torch.cat([trunk, self.context(self.form(known, KNOWN), phase)], 1))

    def mixtures(self, features: Tensor) -> Tensor:
        """-> the parameters of the mixtures (N, PARAMETERS * coded, h, w), real numbers."""
        return self.out(self.hidden(features))


class _Finer(nn.Module):
    """The coarse grid's latents and trunk -> the fine grid's trunk."""

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.form = conv.form
        self.context = conv(sum(GROUPS[0]) + 1, 48, 1, KNOWN, FEATURES)
        self.mix = conv(HIDDEN + 48, 4 * FINE_TRUNK, 1, FEATURES, FEATURES)

    def forward(self, trunk: Tensor, known: Tensor, position: Tensor) -> Tensor:
        known = torch.cat([known.abs(), position_plane(position, known)], 1)
        return F.pixel_shuffle(self.mix(torch.cat([trunk, self.context(self.form(known, KNOWN))], 1)), 2)


class _Residual(nn.Sequential):
    def __init__(self, channels: int, hidden: int):
        super().__init__(
            nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Enhancement(nn.Module):
    """The picture's details folded into channels, and the position -> residual blocks -> a correction.

    Details, pixels less their surroundings' mean, and the correction are in steps: what quantisation does to a picture
    then looks the same at all qualities, and is learned once.
    """

    def __init__(self, channels: int = 40, hidden: int = 32, blocks: int = 2):
        super().__init__()
        pixels = 3 * _FOLD**2
        self.input = nn.Conv2d(pixels + 1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*[_Residual(channels, hidden) for _ in range(blocks)])
        self.out = nn.Conv2d(channels, pixels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, pixels: Tensor, position: Tensor) -> Tensor:
        """pixels (N, 3, H, W) float32, sides multiples of _FOLD; position (N,) in octaves -> the same, better."""
        step = torch.exp2(COARSEST - position).view(-1, 1, 1, 1)
        details = (pixels - F.avg_pool2d(pixels, 5, 1, 2, count_include_pad=False)) / step
        folded = F.pixel_unshuffle(torch.asinh(4 * details), _FOLD)
        plane = (position / 4 - 1).view(-1, 1, 1, 1).expand(-1, 1, *folded.shape[2:])
        correction = self.out(self.blocks(self.input(torch.cat([folded, plane], 1)))).float()
        return pixels + F.pixel_shuffle(correction, _FOLD) * (step * _CAUTION)


class Place(NamedTuple):
    """Where the latents are that are coded at once: the grid, its channels, and the positions (m,), row by row."""

    grid: int
    channels: slice
    positions: Tensor

    def of(self, grids: tuple[Tensor, Tensor]) -> Tensor:
        """They (C, m), out of grids (1, C, h, w)."""
        return grids[self.grid][0, self.channels].flatten(1)[:, self.positions]


Code = Callable[[Place, Mixtures], NDArray[np.int64]]  # see `Networks.walk`
CodeGrid = Callable[[Place, Tensor], Tensor]  # from parameters (PARAMETERS * C, m) to symbols (C, m)


class Networks(hyperprior.Networks):
    """A lic.training.loop.Trainable where conv is TrainableConv2d."""

    def __init__(self, conv: type[Convolution]):
        super().__init__(conv)
        conv = QuickConv2d if conv is TrainableConv2d else conv
        self.coarse, self.fine = (
            nn.ModuleList(
                [
                    Group(conv, trunk, sum(groups[:i]), coded, width)
                    for i, (coded, width) in enumerate(zip(groups, widths, strict=True))
                ]
            )
            for trunk, groups, widths in zip((HIDDEN, FINE_TRUNK), GROUPS, _WIDTHS, strict=True)
        )
        self.finer = _Finer(conv)
        self.enhancement = Enhancement()

    def groups(self, grid: int) -> list[Group]:
        return cast(list[Group], list((self.coarse, self.fine)[grid]))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step. Besides the usual: the decibels that the enhancement gains."""
        position = gain.positions(len(pixels), generator).to(pixels.device)
        scaled, hyper_bits, trunk, log2_scales = self.analysed(pixels, position, generator)
        rounded = gain.rounded(scaled)
        symbols = gain.noisy(scaled, generator) if self.training else rounded
        bits = self.mixture_bits(symbols, rounded, trunk, log2_scales, position)
        decoded = self.autoencoder.synthesise(rounded * self.autoencoder.gains.after(position))
        enhanced = self.enhancement(decoded, position)
        losses = gain.losses(bits + hyper_bits, pixels, enhanced, position)
        plain = gain.losses(bits + hyper_bits, pixels, decoded.detach(), position)
        return losses | {"gain_db": losses["psnr"] - plain["psnr"]}

    def analysed(
        self, pixels: Tensor, position: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In training: latents in steps (N, LATENTS, h, w), the bits of their hyperlatents (N,), and global context:
        activations (N, HIDDEN, h, w), and the logarithms of the latents' scales, in steps."""
        latents = self.autoencoder.analyse(pixels)
        hyper_bits, inputs = self.side_information(latents, position, generator)
        size = latents.shape[2:]
        trunk = self.hyper_synthesis.features(inputs)
        log2_scales = self.log2_scales(self.hyper_synthesis.out(trunk), position, size)
        scaled = latents * self.autoencoder.gains.before(position)
        return scaled, hyper_bits, trunk[..., : size[0], : size[1]], log2_scales

    def mixture_bits(
        self, symbols: Tensor, rounded: Tensor, trunk: Tensor, log2_scales: Tensor, position: Tensor
    ) -> Tensor:
        """In training: the bits (N,) of symbols (N, LATENTS, h, w), with noise or without, all passes at once.

        rounded is what local context is made of.
        """
        with torch.no_grad():
            relative = rounded * torch.exp2(KNOWN.exponent - log2_scales.clamp(NARROWEST, WIDEST))
            known = to_grids(relative.round().clamp(-63, 63))
            integer_position = (position * OCTAVE).round().long()
        bits = torch.zeros_like(position)
        for grid, (scales, values) in enumerate(zip(to_grids(log2_scales), to_grids(symbols), strict=True)):
            if grid:
                trunk = self.finer(trunk, known[0], integer_position)
            bits = bits + self.grid_bits(grid, values, scales, trunk, known[grid], integer_position)
        return bits

    def grid_bits(
        self, grid: int, values: Tensor, scales: Tensor, trunk: Tensor, known: Tensor, position: Tensor
    ) -> Tensor:
        """Those of one grid's symbols, its values (N, C, h, w), whose logarithms of scales, trunk and what is known,
        all of it, are of the same size; position (N,), integers."""
        bits, phase, first = torch.zeros(len(values), device=values.device), phases(scales), 0
        for group in self.groups(grid):
            channels = slice(first, first + group.coded)
            own, earlier = known[:, channels], known[:, :first]
            features = [
                group.features(trunk, own * (phase < number), earlier, position, number) * (phase == number)
                for number in range(PHASES)
            ]
            parameters = group.mixtures(torch.stack(features).sum(0)).float()
            bits = bits + mixture.mixture_bits(values[:, channels], scales[:, channels], parameters).sum((1, 2, 3))
            first += group.coded
        return bits

    def walk(
        self, hyper: Tensor, position: int, size: tuple[int, int], cumulative: NDArray[np.int64], code: Code
    ) -> Tensor:
        """Code the latents, given decoded hyperlatents (HYPERLATENTS, h, w), pass after pass; all in integers.

        cumulative is that of a component (lic.layers.mixture). code(place, mixtures) gives the symbols there, channel
        by channel, (C * m,). Returns all of them, (LATENTS, *size) int32.
        """
        at = torch.tensor([position], device=hyper.device)
        trunk = self.hyper_synthesis.features(self.hyper_inputs(hyper, position))
        real = self.hyper_synthesis.out(trunk)
        log2_scales = to_grids(self.integer_log2_scales(real, position, size)[None])
        trunk = trunk[..., : size[0], : size[1]]
        symbols, known = (
            [torch.zeros_like(scales, memory_format=torch.contiguous_format) for scales in log2_scales]
            for _ in range(2)
        )

        def code_grid(place: Place, parameters: Tensor) -> Tensor:
            values = code(place, Mixtures.of(parameters, place.of(log2_scales), cumulative))
            return torch.from_numpy(values).to(hyper.device).view(-1, len(place.positions))

        for grid in range(2):
            if grid:
                trunk = self.finer(trunk, known[0], at)
            self.walk_grid(grid, symbols[grid], known[grid], log2_scales[grid], trunk, at, code_grid)
        return from_grids(*symbols)[0].int()

    def walk_grid(
        self, grid: int, symbols: Tensor, known: Tensor, scales: Tensor, trunk: Tensor, position: Tensor, code: CodeGrid
    ) -> None:
        """Code one grid. symbols and known (1, C, h, w), zeros, are filled in; the rest is as in `grid_bits`."""
        phase, first = phases(known).flatten(), 0
        for group in self.groups(grid):
            channels = slice(first, first + group.coded)
            own, earlier = known[:, channels], known[:, :first]
            for number in range(PHASES):
                features = group.features(trunk, own, earlier, position, number).flatten(2)
                for part in (phase == number).nonzero()[:, 0].split(_POSITIONS):
                    parameters = group.mixtures(features[..., part, None])[0, ..., 0]
                    values = code(Place(grid, channels, part), parameters)
                    symbols[0, channels].flatten(1)[:, part] = values
                own.copy_(mixture.relative(symbols[:, channels], scales[:, channels]).clamp(-63, 63))
            first += group.coded

    def rounded(self) -> dict[str, Tensor]:
        halves = {f"enhancement.{name}": tensor.half() for name, tensor in self.enhancement.state_dict().items()}
        analysis = {k: v.to(torch.float8_e4m3fn) for k, v in self.hyper_analysis.state_dict().items() if v.dim() > 1}
        return super().rounded() | halves | {f"hyper_analysis.{name}": tensor for name, tensor in analysis.items()}

    @torch.no_grad()
    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """As for `hyperprior`; what follows the pictures are the tables for latents that are surely zero."""
        out = self.rounded()
        networks = type(self)(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out)
        knots, counts = mixture.knots(), np.zeros((mixture.SURE, 2 * mixture.SURE_REACH + 2))
        for hyper, symbols, position in networks.quantised(pictures):
            grids = to_grids(symbols[None])

            def code(place: Place, mixtures: Mixtures, grids: tuple[Tensor, Tensor] = grids) -> NDArray[np.int64]:
                values = place.of(grids).long().numpy().ravel()
                mixture.count(counts, values, mixtures)
                return values

            size = symbols.shape[1], symbols.shape[2]
            networks.walk(hyper, position, size, mixture.cumulative(knots), code)
        tables = {"cumulatives": self.prior.cumulatives(), "knots": knots, "tables": mixture.calibrated(counts)}
        return out | tables

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        """Weights of `hyperprior` are welcome, too: what they lack stays as it is."""
        super().start_from(integer.shipped(self) | shipped)


class HybridCodec(hyperprior.HyperpriorCodec):
    """Two streams, as those of `hyperprior`; `latents`: the range coder's bytes, pass after pass.

    enhances: whether decoding ends with the quality enhancement. Without it, one sees what it gains.
    """

    card = ModelCard(
        name="hybrid",
        paper="Lee, Cho, Kim, A Hybrid Architecture of Jointly Learning Image Compression and Quality Enhancement with "
        "Improved Entropy Minimization (arXiv 1912.12817)",
        purpose="Gaussian mixtures with global and local context, and quality enhancement, for comparison",
        lossy=True,
        lossless=False,
        streams=("hyperlatents", "latents"),
        serial_by="hybrid_serial",
    )
    networks: Networks
    enhances = True

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        self.cumulative = mixture.cumulative(tensors.pop("knots"))
        self.family = [Table(-mixture.SURE_REACH, row) for row in tensors.pop("tables").numpy()]
        self._load(Networks(kernel_for(device)), tensors, device)

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        position = gain.quality_position(settings.quality)
        latents = latents_of(planes.to(self.device), shape, self.autoencoder)
        hyper, hyper_stream = self._write_hyper(latents, position)
        encoder = Encoder()
        grids = to_grids(self.autoencoder.gains.quantise(latents, position)[None])

        def code(place: Place, mixtures: Mixtures) -> NDArray[np.int64]:
            symbols = place.of(grids).long().cpu().numpy().ravel()
            mixture.encode(encoder, symbols, mixtures, self.family)
            return symbols

        self.networks.walk(hyper, position, latent_size(shape), self.cumulative, code)
        return {"hyperlatents": hyper_stream, "latents": encoder.bytes()}

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        size = latent_size(shape)
        hyper, position = self._read_hyper(streams["hyperlatents"], size)
        decoder, ended = Decoder(streams["latents"], incomplete=view.truncated), False

        def code(place: Place, mixtures: Mixtures) -> NDArray[np.int64]:
            nonlocal ended
            if not ended:
                try:
                    return mixture.decode(decoder, mixtures, self.family)
                except FormatError:  # what is missing is zero
                    if not view.truncated:
                        raise
                    ended = True
            return np.zeros(mixtures.weights.shape[1], np.int64)

        symbols = self.networks.walk(hyper, position, size, self.cumulative, code)
        latents = self.autoencoder.gains.dequantise(symbols, position)
        return view.of(planes_of(latents, shape, lambda part: self._pixels(part, position), margin=6), shape)

    def _pixels(self, latents: Tensor, position: int) -> Tensor:
        pixels = self.autoencoder.synthesise(latents)
        return self.networks.enhancement(pixels, pixels.new_tensor([position / OCTAVE])) if self.enhances else pixels
