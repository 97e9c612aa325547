"""`factorized`: Ballé, Laparra, Simoncelli, "End-to-end Optimized Image Compression" (ICLR 2017, arXiv 1611.01704).

    picture -> analysis -> * gains -> round -> entropy coder (one table a channel) -> / gains -> synthesis -> picture
                                        |
                                        +-- in training: add uniform noise (equation 7)

What makes it that system: transforms of strided convolutions and GDN (lic.layers.gdn), uniform noise for quantisation
in training, a rate-distortion cost under a learned prior in which all latents are independent
(lic.layers.factorized_prior).

What differs: gain units make one set of weights serve all qualities, where the paper trains one for each, and noise is
for the rate alone, while synthesis gets rounded latents (lic.layers.gain); the transforms have four stages of stride 2
instead of strides 4, 2, 2, the last of them for some channels only, and start as a wavelet packet
(lic.layers.autoencoder); the prior's densities are mixtures of logistics, where the paper has piecewise linear ones.

Encoder and decoder need agree on nothing but the tables, which follow from integers by integer arithmetic.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.entropy import Decoder, Encoder
from lic.layers import factorized_prior, gain
from lic.layers.autoencoder import Autoencoder, latent_size, latents_of, planes_of, typical_scales
from lic.layers.factorized_prior import FactorizedPrior


class Networks(nn.Module):
    """A lic.training.loop.Trainable."""

    shrunk = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.prior = FactorizedPrior(typical_scales())

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step; without training, with quantisation proper, what its result is worth."""
        position = gain.positions(len(pixels), generator).to(pixels.device)
        gains = self.autoencoder.gains
        scaled = self.autoencoder.analyse(pixels) * gains.before(position)
        symbols = gain.noisy(scaled, generator) if self.training else scaled.round()
        bits = self.prior.bits(symbols, gains.log2_ratios(position)).sum((1, 2, 3))
        decoded = self.autoencoder.synthesise(gain.rounded(scaled) * gains.after(position))
        return gain.losses(bits, pixels, decoded, position)

    @torch.no_grad()
    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks, and the prior's cumulatives as integers. Nothing is left for the pictures to calibrate."""
        out = self.state_dict() | {f"autoencoder.{k}": v for k, v in self.autoencoder.shipped().items()}
        return out | {"cumulatives": self.prior.cumulatives()}

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        """`hyperprior` is a start, too: its transforms and gains; the prior, of other channels, begins anew."""
        state = self.state_dict()
        fitting = {k: v for k, v in shipped.items() if k in state and v.shape == state[k].shape}
        self.load_state_dict(fitting, strict=False)


class FactorizedCodec:
    """One stream, `latents`: the position (2 bytes), then the range coder's bytes, channel by channel."""

    card = ModelCard(
        name="factorized",
        paper="Ballé, Laparra, Simoncelli, End-to-end Optimized Image Compression, ICLR 2017 (arXiv 1611.01704)",
        purpose="the first learned codec of its kind, for comparison",
        lossy=True,
        lossless=False,
        streams=("latents",),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        cumulatives = tensors.pop("cumulatives").numpy()
        networks = Networks()
        networks.load_state_dict(tensors)
        self.autoencoder = networks.autoencoder.to(device).eval()
        gains = self.autoencoder.gains
        self.tables = lru_cache(4)(lambda at: factorized_prior.tables(cumulatives, gains.integer_ratios(at)))
        self.device = device

    @staticmethod
    def trainable() -> Networks:
        return Networks()

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        position = gain.quality_position(settings.quality)
        latents = latents_of(planes.to(self.device), shape, self.autoencoder)
        symbols = self.autoencoder.gains.quantise(latents, position).cpu().numpy()
        encoder = Encoder()
        factorized_prior.encode(encoder, symbols, self.tables(position))
        return {"latents": gain.write_position(position, encoder.bytes())}

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        position, data = gain.read_position(streams["latents"])
        decoder = Decoder(data, incomplete=view.truncated)
        symbols = factorized_prior.decode(decoder, latent_size(shape), self.tables(position), view.truncated)
        latents = self.autoencoder.gains.dequantise(torch.from_numpy(symbols).to(self.device), position)
        return view.of(planes_of(latents, shape, self.autoencoder.synthesise), shape)
