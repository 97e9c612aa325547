"""`softvq`: Agustsson, Mentzer, Tschannen, Cavigelli, Timofte, Benini, Van Gool, "Soft-to-Hard Vector Quantization for
End-to-End Learning Compressible Representations" (NeurIPS 2017, arXiv 1704.00648).

    picture -> analysis -> * gains -> vectors -> assignment -> entropy coder (one histogram a row of vectors)
                                                     |
                                     centres of those <-> / gains -> synthesis -> picture

What makes it that system: latents are quantised as vectors, to the centres of learned codebooks; the assignment is soft
in training, to all centres by distance, and hardens from step to step; the rate is the cross-entropy of the assignments
under their histogram; files have the nearest centre's number, coded under that histogram (lic.layers.codebook).

What differs: transforms and gain units as in `factorized` (lic.layers.autoencoder), so that one set of weights serves
all qualities; a centre's bits count as distance; each row of vectors has a histogram of its own, where the paper has
one for all; and there are three codebooks, as latents that are large need smaller vectors. The paper's vectors, 2x2
neighbours in a channel, are there for the chroma of the fine bands; fine luma has 1x2; coarse luma and the lowest
chroma, tens of steps large, have scalar centres; the other coarse chroma has the last split's four bands of one place.

Codebooks end somewhere: what is larger than all centres saturates. So this model's positions end at 4 octaves, at steps
of 16 pixel values, which takes some 2 bits a pixel.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.entropy import Decoder, Encoder
from lic.errors import FormatError
from lic.layers import codebook, factorized_prior, gain
from lic.layers.autoencoder import LATENTS, Autoencoder, latent_size, latents_of, planes_of
from lic.layers.codebook import CENTRES, LAST, Codebook
from lic.layers.gain import OCTAVE

_BAND, _LUMA = LATENTS // 4, LATENTS // 12  # latents of the first level's bands, the coarse grid first; luma's share
_SCALARS = [*range(_LUMA), *range(_LUMA, _LUMA + 4), *range(2 * _LUMA, 2 * _LUMA + 4)]
_PAIRS = [i for i in range(_BAND, LATENTS) if i % _BAND < _LUMA]
_QUADS = [i for i in range(LATENTS) if i % _BAND >= _LUMA and i not in _SCALARS]
_NAMES = "scalars", "pairs", "quads"
_GROUPS = (_SCALARS, 1), (_PAIRS, 2), (_QUADS, 4)  # which latents make vectors, of how many numbers
_ROWS = [len(latents) // dimension for latents, dimension in _GROUPS]
_PLACES = torch.tensor(_SCALARS + _PAIRS + _QUADS).argsort()  # of the latents among those that vectors hold

_SOFTEST, _HARDEST = 8.0, 48.0  # sharpness, per squared step
_ANNEALING = 500  # steps of training


def quality_position(quality: float) -> int:
    """quality 0..100 -> position 0..LAST; the steps are 256 pixel values at 0, 16 at 100."""
    return round(LAST * quality / 100)


def _vectors(latents: Tensor) -> list[Tensor]:
    """Latents (LATENTS, h, w) -> vectors (rows, h * w, dimension) for each codebook."""
    return [latents[numbers].reshape(-1, d, latents[0].numel()).transpose(1, 2) for numbers, d in _GROUPS]


def _latents(vectors: list[Tensor], size: tuple[int, ...]) -> Tensor:
    """The inverse."""
    return torch.cat([v.transpose(1, 2).reshape(-1, *size) for v in vectors])[_PLACES.to(vectors[0].device)]


class Networks(nn.Module):
    """A lic.training.loop.Trainable."""

    shrunk = 0.5
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.scalars = Codebook(_ROWS[0], codebook.companded())
        self.pairs = Codebook(_ROWS[1], codebook.first_centres(2, widest=3.5))
        self.quads = Codebook(_ROWS[2], codebook.first_centres(4, widest=2.5))
        self.register_buffer("steps", torch.zeros(()))  # of training

    @property
    def codebooks(self) -> tuple[Codebook, Codebook, Codebook]:
        return self.scalars, self.pairs, self.quads

    def sharpness(self) -> Tensor:
        """Annealing: exponentially from _SOFTEST to _HARDEST."""
        return _SOFTEST * (_HARDEST / _SOFTEST) ** (self.steps / _ANNEALING).clamp(max=1)

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step, in which synthesis gets softly quantised latents; without training, with hard assignment,
        what its result is worth. hardness: the mean of the largest assignments, gap: the root mean square, in steps, of
        what soft and hard quantisation differ by.
        """
        position = gain.positions(len(pixels), generator).to(pixels.device).clamp(max=LAST / OCTAVE)
        gains = self.autoencoder.gains
        scaled = (self.autoencoder.analyse(pixels) * gains.before(position)).float()
        quantise = self.soft if self.training else self.hard
        with torch.autocast(pixels.device.type, enabled=False):
            results = [quantise(*each) for each in zip(scaled, position, strict=True)]
        self.steps += self.training
        values, bits, hardness, gap = (torch.stack(column) for column in zip(*results, strict=True))
        decoded = self.autoencoder.synthesise(values * gains.after(position))
        losses = gain.structural_losses(bits, pixels, decoded, position)
        return losses | {"hardness": hardness.mean(), "gap": gap.mean().sqrt()}

    def soft(self, scaled: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one picture's latents (LATENTS, h, w) in steps: quantised ones, bits, hardness and squared gap, all ()."""
        pairs = zip(self.codebooks, _vectors(scaled), strict=True)
        results = [book.soft(vectors, position, self.sharpness()) for book, vectors in pairs]
        values, bits, largest, moved = zip(*results, strict=True)
        hardness = torch.cat([each.flatten() for each in largest]).mean()
        gap = torch.cat([each.flatten() for each in moved]).square().mean()
        return _latents(list(values), scaled.shape[1:]), torch.stack(bits).sum(), hardness, gap

    def hard(self, scaled: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Likewise."""
        symbols = self.symbols(scaled, position)
        bits = torch.cat([book.bits_at(position) for book in self.codebooks]).gather(1, symbols.flatten(1))
        return self.values(symbols, position), bits.sum(), bits.new_ones(()), bits.new_zeros(())

    def symbols(self, scaled: Tensor, position: Tensor) -> Tensor:
        """Latents (LATENTS, h, w) in steps -> the numbers of centres (rows, h, w), int64; position () in octaves."""
        pairs = zip(self.codebooks, _vectors(scaled), strict=True)
        return torch.cat([book.nearest(v, position) for book, v in pairs]).view(-1, *scaled.shape[1:])

    def values(self, symbols: Tensor, position: Tensor) -> Tensor:
        """The inverse: what the latents are quantised to."""
        parts = zip(self.codebooks, symbols.flatten(1).split(_ROWS), strict=True)
        vectors = [book.centres_at(position)[part] for book, part in parts]
        return _latents(vectors, symbols.shape[1:])

    @torch.no_grad()
    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks, with the histograms of the pictures' hard assignments as bits."""
        out = self.state_dict() | {f"autoencoder.{k}": v for k, v in self.autoencoder.shipped().items()}
        networks = Networks()
        networks.load_state_dict(out)
        networks.calibrate(pictures)
        for name, book in zip(_NAMES, networks.codebooks, strict=True):
            del out[f"{name}.counts"]
            out[f"{name}.bits"] = book.shipped_bits()
        return out

    def calibrate(self, pictures: list[np.ndarray]) -> None:
        """Count the assignments of all latents at the anchors, which go by the histograms that training left."""
        counts = [torch.zeros_like(book.counts) for book in self.codebooks]
        for pixels in tqdm(pictures, desc="calibrating", unit="picture", disable=None):
            planes = torch.from_numpy(pixels.astype(np.int32)).permute(2, 0, 1)
            latents = latents_of(planes, PlaneShape(3, planes.shape[1], planes.shape[2], 8), self.autoencoder)
            for anchor in range(codebook.ANCHORS):
                position = torch.tensor(float(anchor))
                symbols = self.symbols(latents * self.autoencoder.gains.before(position[None])[0], position)
                for count, part in zip(counts, symbols.flatten(1).split(_ROWS), strict=True):
                    count[anchor].scatter_add_(1, part, torch.ones(part.shape))
        for book, count in zip(self.codebooks, counts, strict=True):
            book.counts.copy_(count)

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        """`hyperprior` is a start, too: its transforms and gains; the codebooks begin anew."""
        state = self.state_dict()
        self.load_state_dict({k: v for k, v in shipped.items() if k in state}, strict=False)
        for name, book in zip(_NAMES, self.codebooks, strict=True):
            if f"{name}.bits" in shipped:
                book.start_from(shipped[f"{name}.bits"])


class SoftvqCodec:
    """One stream, `latents`: the position (2 bytes), then the range coder's bytes, row of vectors by row."""

    card = ModelCard(
        name="softvq",
        paper="Agustsson et al., Soft-to-Hard Vector Quantization, NeurIPS 2017 (arXiv 1704.00648)",
        purpose="vector quantisation with learned codebooks, for comparison",
        lossy=True,
        lossless=False,
        streams=("latents",),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        networks = Networks()
        all_bits = [tensors.pop(f"{name}.bits") for name in _NAMES]
        for name, book, some in zip(_NAMES, networks.codebooks, all_bits, strict=True):
            book.start_from(some)
            tensors[f"{name}.counts"] = book.counts
        networks.load_state_dict(tensors)
        bits = torch.cat(all_bits, 1).numpy()
        self.tables = lru_cache(4)(lambda position: codebook.tables(bits, position))
        self.networks, self.autoencoder, self.device = networks.to(device).eval(), networks.autoencoder, device

    @staticmethod
    def trainable() -> Networks:
        return Networks()

    def _octaves(self, position: int) -> Tensor:
        return torch.tensor(position / OCTAVE, device=self.device)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        position = quality_position(settings.quality)
        octaves = self._octaves(position)
        scaled = latents_of(planes.to(self.device), shape, self.autoencoder)
        scaled *= self.autoencoder.gains.before(octaves[None])[0]
        symbols = self.networks.symbols(scaled, octaves)
        encoder = Encoder()
        factorized_prior.encode(encoder, symbols.int().cpu().numpy(), self.tables(position))
        return {"latents": gain.write_position(position, encoder.bytes())}

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        position, data = gain.read_position(streams["latents"])
        if position > LAST:
            raise FormatError("the coded picture's header is damaged")
        decoder = Decoder(data, incomplete=view.truncated)
        symbols = factorized_prior.decode(decoder, latent_size(shape), self.tables(position), view.truncated)
        if symbols.min() < 0 or symbols.max() >= CENTRES:
            raise FormatError("the coded data is damaged: a centre that there isn't")
        values = self.networks.values(torch.from_numpy(symbols).to(self.device), self._octaves(position))
        latents = self.autoencoder.gains.dequantise(values, position)
        return view.of(planes_of(latents, shape, self.autoencoder.synthesise), shape)
