"""`hyperprior`: Ballé, Minnen, Singh, Hwang, Johnston, "Variational image compression with a scale hyperprior" (ICLR
2018, arXiv 1802.01436).

    picture -> analysis -+-> * gains -> round -----------> entropy coder ------> / gains -> synthesis -> picture
                         |                                    ^ scale of each latent
                         +-> h_a -> * gains -> round -> entropy coder -> h_s
                                      hyperlatents      (one table a channel)

What makes it that system (section 3): hyperlatents z, side information that costs bits of its own under a learned
factorised prior, tell the scale of each latent y; given them, y is a zero-mean Gaussian convolved with a uniform. Both
are relaxed by uniform noise in training; the cost is the distortion and the bits of both.

What differs: transforms and gain units as in `factorized`, which it extends; h_a takes logarithms of |y|, so that a
scale is a shift; h_s gives logarithms of scales before quantisation, from which those of the steps are subtracted. It
works in integers (lic.layers.integer) on what both sides decode, so that both choose the same of 64 tables everywhere;
the tables start as Gaussians and follow the training pictures. It upsamples by shuffling channels into pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.entropy import Decoder, Encoder, Table
from lic.errors import FormatError
from lic.layers import factorized_prior, gain, gaussian, integer
from lic.layers.autoencoder import LATENTS, SLOWNESS, Autoencoder, latent_size, latents_of, planes_of, typical_scales
from lic.layers.factorized_prior import SPEED, FactorizedPrior
from lic.layers.gain import ANCHORS, OCTAVE, RATIO_UNIT, Gains
from lic.layers.integer import Convolution, TrainableConv2d, kernel_for, rectified, signed

HYPERLATENTS, HIDDEN = 64, 80
_STRIDE = 4  # latents a side that a hyperlatent stands for
_LOG2_UNIT = 2  # what h_s's outputs are multiplied by: octaves of scale
_GROUP = 48  # channels that are coded together
_INPUT, FEATURES = signed(3), rectified(4)


class _SlowConv2d(nn.Conv2d):
    """A convolution whose weight is kept divided by SLOWNESS, as in lic.layers.autoencoder: with many inputs, all
    positive, it would otherwise overshoot."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride)
        self.weight.data /= SLOWNESS

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, [self.kernel_size[0] // 2] * 4, mode="replicate")
        return F.conv2d(x, self.weight * SLOWNESS, self.bias, self.stride)


class HyperAnalysis(nn.Sequential):
    """Latents (N, LATENTS, h, w) in finest steps -> hyperlatents (N, HYPERLATENTS, h/4, w/4), sides rounded up."""

    usual: Tensor

    def __init__(self) -> None:
        super().__init__(
            _SlowConv2d(LATENTS, HIDDEN, 1),
            nn.ReLU(),
            _SlowConv2d(HIDDEN, HIDDEN, 5, stride=2),
            nn.ReLU(),
            _SlowConv2d(HIDDEN, HYPERLATENTS, 5, stride=2),
        )
        self.register_buffer("usual", typical_scales().log1p()[:, None, None], persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[2:]
        padded = F.pad(latents, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate")
        return super().forward(torch.log1p(padded.abs()) - self.usual).float()


class HyperSynthesis(nn.Module):
    """Hyperlatents in finest steps (N, HYPERLATENTS, h, w), integers -> (N, LATENTS, 4h, 4w): the logarithm to base
    2 of how far each latent's scale is from what is usual in its channel, divided by _LOG2_UNIT."""

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.form = conv.form
        self.coarse = conv(HYPERLATENTS, 4 * HIDDEN, 3, _INPUT, FEATURES)
        self.fine = conv(HIDDEN, 4 * HIDDEN, 3, FEATURES, FEATURES)
        self.out = conv(HIDDEN, LATENTS, 1, FEATURES, None)
        if isinstance(self.out, TrainableConv2d):  # little, at first
            self.out.weight.data *= 0.25
            self.out.bias.data.zero_()

    def features(self, x: Tensor) -> Tensor:
        """Activations (N, HIDDEN, 4h, 4w) of scale FEATURES."""
        x = F.pad(x.float(), (1, 1, 1, 1), mode="replicate")  # crops in training are nearly all border
        x = F.pixel_shuffle(self.coarse(self.form(x, _INPUT)), 2)
        return F.pixel_shuffle(self.fine(x), 2)[..., 4:-4, 4:-4]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class Networks(nn.Module):
    """A lic.training.loop.Trainable where conv is TrainableConv2d."""

    shrunk = 0.5

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.autoencoder = Autoencoder()
        self.hyper_analysis, self.hyper_synthesis = HyperAnalysis(), HyperSynthesis(conv)
        self.usual_log2_scales = nn.Parameter(typical_scales().log2() / SPEED)  # of each channel, in finest steps
        self.hyper_gains = Gains(torch.linspace(0, 3, ANCHORS)[:, None].repeat(1, HYPERLATENTS))
        self.prior = FactorizedPrior(torch.full((HYPERLATENTS,), 2.0))

    def hyperlatents(self, latents: Tensor) -> Tensor:
        """Of latents (N, LATENTS, h, w), before quantisation."""
        return self.hyper_analysis(latents * self.autoencoder.gains.finest())

    def side_information(self, latents: Tensor, position: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """In training: the bits of the hyperlatents, (N,), and what h_s sees of them (N, HYPERLATENTS, h/4, w/4)."""
        hyper = self.hyperlatents(latents) * self.hyper_gains.before(position)
        symbols = gain.noisy(hyper, generator) if self.training else hyper.round()
        log2_ratios = self.hyper_gains.log2_ratios(position)
        bits = self.prior.bits(symbols, log2_ratios).sum((1, 2, 3))
        ratios = torch.exp2(log2_ratios)
        rounded = (hyper.round() * ratios).round().clamp(_INPUT.low, _INPUT.high)  # what the decoder sees
        inputs = (hyper * ratios).clamp(_INPUT.low, _INPUT.high)
        return bits, inputs + (rounded - inputs).detach()

    def log2_scales(self, real: Tensor, position: Tensor, size: torch.Size) -> Tensor:
        """In training: what h_s gives -> the logarithms of the latents' scales, in steps."""
        usual = self.usual_log2_scales[:, None, None] * SPEED - self.autoencoder.gains.log2_ratios(position)
        return real[..., : size[0], : size[1]].float() * _LOG2_UNIT + usual

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step; without training, with quantisation proper, what its result is worth."""
        position = gain.positions(len(pixels), generator).to(pixels.device)
        gains = self.autoencoder.gains
        latents = self.autoencoder.analyse(pixels)
        hyper_bits, inputs = self.side_information(latents, position, generator)
        log2_scales = self.log2_scales(self.hyper_synthesis(inputs), position, latents.shape[2:])
        scaled = latents * gains.before(position)
        symbols = gain.noisy(scaled, generator) if self.training else scaled.round()
        bits = gaussian.gaussian_bits(symbols, log2_scales).sum((1, 2, 3))
        decoded = self.autoencoder.synthesise(gain.rounded(scaled) * gains.after(position))
        share = (hyper_bits / (hyper_bits + bits)).mean()
        return gain.losses(bits + hyper_bits, pixels, decoded, position) | {"hyperlatents_share": share}

    def hyper_inputs(self, hyper_symbols: Tensor, position: int) -> Tensor:
        """Decoded hyperlatents (HYPERLATENTS, h, w), integers -> what h_s sees of them, (1, HYPERLATENTS, h, w)."""
        ratios = torch.from_numpy(self.hyper_gains.integer_ratios(position)).to(hyper_symbols.device)[:, None, None]
        inputs = (hyper_symbols * ratios + RATIO_UNIT // 2) // RATIO_UNIT
        return inputs.clamp(_INPUT.low, _INPUT.high)[None]

    def integer_log2_scales(self, real: Tensor, position: int, size: tuple[int, int]) -> Tensor:
        """What h_s gives -> the logarithms of the latents' scales, in steps (LATENTS, *size), int64 in 1 / OCTAVE."""
        steps = torch.from_numpy(self.autoencoder.gains.integer_log2_ratios(position)).to(real.device)
        usual = (self.usual_log2_scales * (SPEED * OCTAVE)).round().long() - steps
        return (real[0, :, : size[0], : size[1]] * (_LOG2_UNIT * OCTAVE)).round().long() + usual[:, None, None]

    def tables(self, hyper_symbols: Tensor, position: int, size: tuple[int, int]) -> Tensor:
        """Decoded hyperlatents -> the index of each latent's table (LATENTS, *size), int32. All in integers."""
        real = self.hyper_synthesis(self.hyper_inputs(hyper_symbols, position))
        return gaussian.table_index(self.integer_log2_scales(real, position, size))

    def rounded(self) -> dict[str, Tensor]:
        """The state of the networks in which integer convolutions have kernels, as a weights file has it."""
        out = self.state_dict() | {f"autoencoder.{k}": v for k, v in self.autoencoder.shipped().items()}
        out |= {f"hyper_analysis.{k}": v.half() for k, v in self.hyper_analysis.state_dict().items()}
        out["hyper_gains.log2"] = self.hyper_gains.rounded()
        out["usual_log2_scales"] = (self.usual_log2_scales * (SPEED * OCTAVE)).round() / (SPEED * OCTAVE)
        return out | integer.shipped(self)

    @torch.no_grad()
    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks, h_s in integers, the prior's cumulatives, and tables that follow the pictures' latents."""
        out = self.rounded()
        networks = Networks(kernel_for(torch.device("cpu")))
        networks.load_state_dict(out)
        counts = networks.counts(pictures)
        return out | {"cumulatives": self.prior.cumulatives(), "tables": gaussian.calibrated(counts)}

    def counts(self, pictures: list[np.ndarray]) -> np.ndarray:
        """How often each symbol occurs under each table, over the pictures at positions all along."""
        counts = np.zeros((gaussian.SCALES, 2 * gaussian.REACH + 2))
        for hyper, symbols, position in self.quantised(pictures):
            tables = self.tables(hyper, position, (symbols.shape[1], symbols.shape[2]))
            gaussian.count(counts, tables.numpy(), symbols.numpy())
        return counts

    def quantised(self, pictures: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The pictures' hyperlatents and latents, int32, at positions all along."""
        for i, pixels in enumerate(tqdm(pictures, desc="calibrating", unit="picture", disable=None)):
            position = (2 * i + 1) % (2 * ANCHORS - 2) * OCTAVE // 2
            planes = torch.from_numpy(pixels.astype(np.int32)).permute(2, 0, 1)
            shape = PlaneShape(3, planes.shape[1], planes.shape[2], 8)
            latents = latents_of(planes, shape, self.autoencoder)
            hyper = self.hyper_gains.quantise(self.hyperlatents(latents[None])[0], position)
            yield hyper, self.autoencoder.gains.quantise(latents, position), position

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        convolutions = integer.shipped(self)
        self.load_state_dict({k: v for k, v in shipped.items() if k not in convolutions}, strict=False)
        integer.start_from(self, shipped)


class HyperpriorCodec:
    """Two streams. `hyperlatents`: the position (2 bytes), then the range coder's bytes, channel by channel. `latents`:
    the range coder's bytes, 48 channels after 48."""

    card = ModelCard(
        name="hyperprior",
        paper="Ballé et al., Variational image compression with a scale hyperprior, ICLR 2018 (arXiv 1802.01436)",
        purpose="the scale hyperprior, for comparison",
        lossy=True,
        lossless=False,
        streams=("hyperlatents", "latents"),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        self.family = [Table(-gaussian.REACH, row) for row in tensors.pop("tables").numpy()]
        self._load(Networks(kernel_for(device)), tensors, device)

    def _load(self, networks: Networks, tensors: dict[str, Tensor], device: torch.device) -> None:
        cumulatives, gains = tensors.pop("cumulatives").numpy(), networks.hyper_gains
        networks.load_state_dict(tensors)
        self.networks, self.autoencoder, self.device = networks.to(device).eval(), networks.autoencoder, device
        self.hyper_family = lru_cache(4)(lambda at: factorized_prior.tables(cumulatives, gains.integer_ratios(at)))

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        position, size = gain.quality_position(settings.quality), latent_size(shape)
        latents = latents_of(planes.to(self.device), shape, self.autoencoder)
        hyper, hyper_stream = self._write_hyper(latents, position)
        encoder = Encoder()
        tables = self.networks.tables(hyper, position, size).cpu().numpy()
        symbols = self.autoencoder.gains.quantise(latents, position).cpu().numpy()
        for first in range(0, LATENTS, _GROUP):
            group = slice(first, first + _GROUP)
            encoder.encode(symbols[group].ravel(), tables[group].ravel(), self.family)
        return {"hyperlatents": hyper_stream, "latents": encoder.bytes()}

    def _write_hyper(self, latents: Tensor, position: int) -> tuple[Tensor, bytes]:
        """The latents' hyperlatents (HYPERLATENTS, h/4, w/4), int32, and their stream."""
        hyper = self.networks.hyper_gains.quantise(self.networks.hyperlatents(latents[None])[0], position)
        encoder = Encoder()
        factorized_prior.encode(encoder, hyper.cpu().numpy(), self.hyper_family(position))
        return hyper, gain.write_position(position, encoder.bytes())

    def _read_hyper(self, stream: bytes, size: tuple[int, int]) -> tuple[Tensor, int]:
        """The hyperlatents of latents of that size, and the position."""
        position, data = gain.read_position(stream)
        hyper_size = -(-size[0] // _STRIDE), -(-size[1] // _STRIDE)
        hyper = factorized_prior.decode(Decoder(data), hyper_size, self.hyper_family(position))
        return torch.from_numpy(hyper).to(self.device), position

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        size = latent_size(shape)
        hyper, position = self._read_hyper(streams["hyperlatents"], size)
        tables = self.networks.tables(hyper, position, size).cpu().numpy()
        decoder, symbols = Decoder(streams["latents"], incomplete=view.truncated), np.zeros_like(tables)
        try:
            for first in range(0, LATENTS, _GROUP):
                group = slice(first, first + _GROUP)
                symbols[group] = decoder.decode(tables[group].ravel(), self.family).reshape(-1, *size)
        except FormatError:  # what is missing is zero
            if not view.truncated:
                raise
        latents = self.autoencoder.gains.dequantise(torch.from_numpy(symbols).to(self.device), position)
        return view.of(planes_of(latents, shape, self.autoencoder.synthesise), shape)
