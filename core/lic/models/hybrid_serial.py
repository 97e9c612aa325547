"""`hybrid_serial`, what `hybrid` is for `context="serial"`: the local context of the paper (arXiv 1912.12817).

    latents decoded so far -> 1x1 -> masked 5x5 -+
                                                 v
    hyperlatents -> h_s ---------------> parameter networks -> a mixture for each latent of a position

All latents of a position are coded at once, given those of the 12 positions before it, in raster order, that are at
most two rows above and two columns beside it (Minnen, Ballé, Toderici, NeurIPS 2018; section 3.2 of the paper).

What differs: latents come in two grids (see `hybrid`), so there are two networks, and the fine grid's knows all of the
coarse one. A 1x1 layer, on the latents and their magnitudes, precedes the masked convolution. Positions are coded in
*wavefronts*: in row y and column x, wavefront x + 3y. What a position looks at is in earlier ones, so those of a
wavefront don't depend on one another, and are coded together, with the result that raster order would have.

Transforms, hyperlatents and enhancement are those of a weights file of `hybrid`, which this model's own one names.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lic import weights as weight_files
from lic.codec import ModelCard
from lic.entropy import Table
from lic.layers import gain, mixture
from lic.layers.integer import Convolution, QuickConv2d, TrainableConv2d, kernel_for
from lic.models import hybrid
from lic.models.hybrid import FINE_TRUNK, GROUPS, KNOWN, CodeGrid, Group, Place, position_plane
from lic.models.hyperprior import FEATURES, HIDDEN

_REACH = 2  # rows and columns
# Of the positions that are known, how many rows below and columns to the right they are.
_AROUND = [(y, x) for y in range(-_REACH, 1) for x in range(-_REACH, _REACH + 1) if (y, x) < (0, 0)]
_EMBEDDED, _WIDTHS = (160, 96), (224, 144)  # of the coarse and of the fine grid


def wavefronts(height: int, width: int) -> list[Tensor]:
    """The positions (m,) of each wavefront, numbered row by row."""
    when = (torch.arange(width) + (_REACH + 1) * torch.arange(height)[:, None]).flatten()
    return [part for part in when.argsort(stable=True).split(when.bincount().tolist()) if len(part)]


class Serial(Group):
    """The latents of a position of one grid: what is known around them -> their mixtures."""

    def __init__(self, conv: type[Convolution], trunk: int, coded: int, embedded: int, width: int):
        super().__init__(conv, trunk, 0, coded, width)
        self.embedding = conv(2 * coded + 1, embedded, 1, KNOWN, FEATURES)
        self.context = conv(len(_AROUND) * embedded, width, 1, FEATURES, FEATURES)

    def embedded(self, known: Tensor, position: Tensor) -> Tensor:
        """Known latents (N, coded, h, w), integers -63..63 -> activations (N, E, h, w)."""
        seen = torch.cat([known, known.abs(), position_plane(position, known)], 1)
        return self.embedding(self.form(seen, KNOWN))

    def whole(self, trunk: Tensor, known: Tensor, position: Tensor) -> Tensor:
        """The parameters of all positions' mixtures at once, where all is known."""
        return self.predicted(trunk, neighbours(self.embedded(known, position)))

    def predicted(self, trunk: Tensor, around: Tensor) -> Tensor:
        """around (N, 12 * E, h, w): what is embedded at the positions of _AROUND, zero outside the picture. Returns the
        mixtures' parameters (N, PARAMETERS * coded, h, w), real numbers."""
        return self.mixtures(self.mix(torch.cat([trunk, self.context(around)], 1)))


def neighbours(embedded: Tensor) -> Tensor:
    """(N, E, h, w) -> what is around each position, (N, 12 * E, h, w)."""
    height, width = embedded.shape[2:]
    padded = F.pad(embedded, (_REACH, _REACH, _REACH, 0))
    parts = [padded[..., _REACH + y :, _REACH + x :][..., :height, :width] for y, x in _AROUND]
    return torch.cat(parts, 1)


class Networks(hybrid.Networks):
    """A lic.training.loop.Trainable where conv is TrainableConv2d: only what `hybrid` has not is trained, and the
    coarse grid's way to the fine one.

    base: the hash of the weights of `hybrid` that it goes with.
    """

    def __init__(self, conv: type[Convolution], base: str = ""):
        super().__init__(conv)
        self.base = base
        del self.coarse, self.fine  # its parallel context
        conv = QuickConv2d if conv is TrainableConv2d else conv
        sizes = zip((HIDDEN, FINE_TRUNK), map(sum, GROUPS), _EMBEDDED, _WIDTHS, strict=True)
        self.serial = nn.ModuleList([Serial(conv, *size) for size in sizes])
        self.requires_grad_(False)
        for own in (self.serial, self.finer):
            own.requires_grad_(True)

    def serial_of(self, grid: int) -> Serial:
        return cast(Serial, self.serial[grid])

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step, on rounded latents: every picture's rate counts alike."""
        position = gain.positions(len(pixels), generator).to(pixels.device)
        with torch.no_grad():
            scaled, hyper_bits, trunk, log2_scales = self.analysed(pixels, position, generator)
        rounded = scaled.round()
        bits = self.mixture_bits(rounded, rounded, trunk, log2_scales, position) + hyper_bits
        bits_per_pixel = bits / (pixels.shape[2] * pixels.shape[3])
        return {"loss": torch.log(bits_per_pixel).mean(), "bits_per_pixel": bits_per_pixel.mean()}

    def grid_bits(
        self, grid: int, values: Tensor, scales: Tensor, trunk: Tensor, known: Tensor, position: Tensor
    ) -> Tensor:
        parameters = self.serial_of(grid).whole(trunk, known, position).float()
        return mixture.mixture_bits(values, scales, parameters).sum((1, 2, 3))

    def walk_grid(
        self, grid: int, symbols: Tensor, known: Tensor, scales: Tensor, trunk: Tensor, position: Tensor, code: CodeGrid
    ) -> None:
        serial, (height, width) = self.serial_of(grid), known.shape[2:]
        stride = width + 2 * _REACH
        embedded = trunk.new_zeros((height + _REACH) * stride, _EMBEDDED[grid])  # with what is outside the picture
        offsets = torch.tensor([y * stride + x for y, x in _AROUND], device=trunk.device)
        trunk, scales, known, symbols = (x[0].flatten(1) for x in (trunk, scales, known, symbols))
        for part in wavefronts(height, width):
            part = part.to(trunk.device)
            at = (part // width + _REACH) * stride + part % width + _REACH
            around = embedded[at[:, None] + offsets].flatten(1).T
            parameters = serial.predicted(trunk[None, :, part, None], around[None, ..., None])
            symbols[:, part] = code(Place(grid, slice(None), part), parameters[0, ..., 0])
            known[:, part] = mixture.relative(symbols[:, part], scales[:, part]).clamp(-63, 63)
            embedded[at] = serial.embedded(known[None, :, part, None], position)[0, ..., 0].T

    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """What `hybrid` has not, tables that follow the pictures, and the hash of the weights of `hybrid`."""
        own = {k: v for k, v in super().shipped(pictures).items() if k.startswith(("serial.", "finer.", "tables"))}
        return own | {"hybrid": torch.tensor(list(bytes.fromhex(self.base)), dtype=torch.uint8)}


class HybridSerialCodec(hybrid.HybridCodec):
    """Two streams, as those of `hybrid`; `latents`: the range coder's bytes, wavefront after wavefront."""

    card = ModelCard(
        name="hybrid_serial",
        paper=hybrid.HybridCodec.card.paper,
        purpose="what model='hybrid' does when context='serial': the paper's local context",
        lossy=True,
        lossless=False,
        streams=("hyperlatents", "latents"),
        serial_by="hybrid_serial",
    )
    networks: Networks

    def __init__(self, device: torch.device, weights: str | None = None):
        own, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        base = bytes(own.pop("hybrid").tolist()).hex()
        tensors, _ = weight_files.load(Path(__file__).parent, "hybrid", base)
        tensors = {k: v for k, v in tensors.items() if not k.startswith(("coarse.", "fine."))} | own
        self.cumulative = mixture.cumulative(tensors.pop("knots"))
        self.family = [Table(-mixture.SURE_REACH, row) for row in tensors.pop("tables").numpy()]
        self._load(Networks(kernel_for(device)), tensors, device)

    @staticmethod
    def trainable() -> Networks:
        """On the newest weights of `hybrid`."""
        tensors, base = weight_files.load(Path(__file__).parent, "hybrid")
        networks = Networks(TrainableConv2d, base)
        networks.start_from(tensors)
        return networks
