"""The transforms of `factorized` and `hyperprior`: strided convolutions and GDN, which start as a wavelet packet.

    pixels -> conv -> GDN -> conv -> GDN -> conv -> GDN -+- first 48 ---> conv -> 192 channels -+-> gains -> quantise
       3              64            128            192   +- other 144 -> 2x2 folded, 576 -------+

Each convolution is 5x5 with stride 2; synthesis is the mirror image, with transposed convolutions and IGDN. The latents
are at 1/16 of the resolution on each side, as in both papers. They hold as many numbers as the picture has: no quality
is out of reach.

A 5x5 convolution of stride 2 holds one level of the 5/3 wavelet (Le Gall, Tabatabai, ICASSP 1988) exactly, in both
directions. So the first 12, 48 and 192 channels of the three stages start as a packet of three levels, after an
orthonormal colour transform, with the GDNs near the identity; the fourth stage splits once more what comes from the
first low band. The channels beyond 12 and 48 start at random, and unused. Inside the networks, 64 pixel values are 1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lic.codec import PlaneShape
from lic.layers.colour import COLOUR
from lic.layers.gain import ANCHORS, COARSEST, LAST, OCTAVE, PairedGains
from lic.layers.gdn import GDN
from lic.layers.tiles import Area

STRIDE = 16  # pixels a side that a latent stands for
WIDTHS = (3, 64, 128, 192)
SPLIT = 48  # channels that the fourth stage takes
LATENTS = 4 * WIDTHS[3]
_UNIT = 64.0  # pixel values
SLOWNESS = 1 / 3

# Low- and high-pass filters: of analysis around even samples, of synthesis one sample further on.
_ANALYSIS = torch.tensor([[-0.125, 0.25, 0.75, 0.25, -0.125], [0, 0, -0.5, 1, -0.5]])
_SYNTHESIS = torch.tensor([[0.5, 1, 0.5, 0, 0], [-0.125, -0.25, 0.75, -0.25, -0.125]])


def _packet(filters: Tensor, channels: int) -> Tensor:
    """One level, (4 * channels, channels, 5, 5): band b (LL, HL, LH, HH) of channel i is number 4 i + b."""
    kernels = torch.einsum("ak,bl->abkl", filters, filters).flatten(0, 1)
    return torch.einsum("ij,bkl->ibjkl", torch.eye(channels), kernels).flatten(0, 1)


def _first_packet(filters: Tensor) -> Tensor:
    """The first level, on the colour transform's planes: band b of plane p is number 3 b + p."""
    kernels = torch.einsum("ak,bl->abkl", filters, filters).flatten(0, 1)
    return torch.einsum("pj,bkl->bpjkl", COLOUR.float(), kernels).flatten(0, 1)


class _Convolution(nn.Module):
    """5x5, stride 2. What the packet gives (dimension `results` of the weight) comes from the packet's inputs alone.

    The weight is kept divided by SLOWNESS, so that an optimiser whose steps have the size of the learning rate, as
    Adam's, moves it that much less: at the pace that suits networks from noise it would tear the wavelet apart.
    """

    def __init__(self, shape: tuple[int, int], outputs: int, packet: Tensor, results: int):
        super().__init__()
        weight = torch.empty(*shape, 5, 5)
        nn.init.kaiming_uniform_(weight, 5**0.5)  # as in nn.Conv2d
        weight.narrow(results, 0, packet.shape[results]).zero_()
        weight[: packet.shape[0], : packet.shape[1]] = packet
        self.weight = nn.Parameter(weight / SLOWNESS)
        self.bias = nn.Parameter(torch.zeros(outputs))


def _extend(x: Tensor, dim: int) -> Tensor:
    """Two samples before, mirrored, and one after. Synthesis repeats the bands' first and last samples; the sample
    after is the one for which that inverts the wavelet up to the border."""

    def sample(i: int) -> Tensor:
        return x.narrow(dim, i % x.shape[dim], 1)

    after = (8 * sample(-2) - 2 * sample(-1) + 2 * sample(-3) - sample(-4)) / 7
    return torch.cat([sample(2), sample(1), x, after], dim)


class _Down(_Convolution):
    def __init__(self, inputs: int, outputs: int, packet: Tensor):
        super().__init__((outputs, inputs), outputs, packet, results=0)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(_extend(_extend(x, 2), 3), self.weight * SLOWNESS, self.bias, stride=2)


class _Up(_Convolution):
    def __init__(self, inputs: int, outputs: int, packet: Tensor):
        super().__init__((inputs, outputs), outputs, packet, results=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        out = F.conv_transpose2d(padded, self.weight * SLOWNESS, self.bias, stride=2, padding=3)
        return out[..., : 2 * height, : 2 * width]


class Analysis(nn.Module):
    """Pixels (N, 3, H, W) less 128, in units of 64, sides multiples of STRIDE -> latents (N, LATENTS, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        packets = _first_packet(_ANALYSIS), _packet(_ANALYSIS, 12), _packet(_ANALYSIS, 48)
        stages = zip(WIDTHS, WIDTHS[1:], packets, strict=False)
        self.stages = nn.Sequential(*[m for i, o, p in stages for m in (_Down(i, o, p), GDN(o))])
        self.last = _Down(SPLIT, 4 * SPLIT, _packet(_ANALYSIS, SPLIT))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.stages(x).split([SPLIT, WIDTHS[3] - SPLIT], 1)
        return torch.cat([self.last(low), F.pixel_unshuffle(high, 2)], 1)


class Synthesis(nn.Module):
    """The inverse of Analysis."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _Up(4 * SPLIT, SPLIT, _packet(_SYNTHESIS, SPLIT))
        packets = _first_packet(_SYNTHESIS), _packet(_SYNTHESIS, 12), _packet(_SYNTHESIS, 48)
        stages = list(zip(WIDTHS, WIDTHS[1:], packets, strict=False))[::-1]
        self.stages = nn.Sequential(*[m for i, o, p in stages for m in (GDN(o, inverse=True), _Up(o, i, p))])

    def forward(self, y: Tensor) -> Tensor:
        low, high = y.split([4 * SPLIT, LATENTS - 4 * SPLIT], 1)
        return self.stages(torch.cat([self.first(low), F.pixel_shuffle(high, 2)], 1))


def packet_norms() -> Tensor:
    """How much a unit of each latent makes in pixels at the start, as a root of summed squares: (LATENTS,)."""

    def norm(bands: tuple[int, ...]) -> float:
        """That of a band, given as the band at each level, the first level first."""
        rows, columns = np.ones(1), np.ones(1)
        for band in bands[::-1]:
            rows = np.convolve(np.kron(rows, [1, 0]), _SYNTHESIS[band // 2])
            columns = np.convolve(np.kron(columns, [1, 0]), _SYNTHESIS[band % 2])
        return float(np.linalg.norm(rows) * np.linalg.norm(columns))

    low = [norm((0, *bands)) for _ in range(3) for bands in product(range(4), repeat=3)]
    planes = [norm((first, *bands)) for first in range(4) for _ in range(3) for bands in product(range(4), repeat=2)]
    return torch.cat([torch.tensor(low), torch.tensor(planes[SPLIT:]).repeat_interleave(4)])


def typical_scales() -> Tensor:
    """What scale to expect in each latent at the start, in finest steps (lic.layers.gain): (LATENTS,).

    Amplitudes in natural pictures fall with frequency (Field 1987), and norms measure wavelengths; chroma is fainter.
    The factors are rounded from what a few training pictures have.
    """
    factors = torch.tensor([24.0, 4.0, 4.0])  # of the planes, in 8-bit pixel values
    low, high = factors.repeat_interleave(SPLIT // 3 * 4), factors.repeat_interleave(SPLIT // 3).repeat(4)[SPLIT:]
    factors = torch.cat([low, high.repeat_interleave(4)])
    return factors * packet_norms().square() / 2.0 ** (COARSEST - LAST / OCTAVE)


class Autoencoder(nn.Module):
    """Analysis, synthesis, and the gains between which latents are quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.analysis, self.synthesis = Analysis(), Synthesis()
        steps = torch.arange(ANCHORS)[:, None] - COARSEST
        self.gains = PairedGains((packet_norms() * _UNIT).log2() + steps)

    def analyse(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) float32, 0..255, sides multiples of STRIDE -> latents (N, LATENTS, H/16, W/16) float32."""
        return self.analysis((pixels - 128) / _UNIT).float()

    def synthesise(self, latents: Tensor) -> Tensor:
        """Latents -> pixels, the inverse."""
        return self.synthesis(latents).float() * _UNIT + 128

    def shipped(self) -> dict[str, Tensor]:
        """For a weights file: half precision for the networks; gains in steps that both sides compute with exactly."""
        state = {k: v if k.startswith("gains.") else v.half() for k, v in self.state_dict().items()}
        return state | {"gains.log2": self.gains.rounded()}


def to_grids(latents: Tensor) -> tuple[Tensor, Tensor]:
    """(N, LATENTS, h, w) -> the coarse grid (N, 192, h, w) and, unfolded, the fine one (N, 144, 2h, 2w)."""
    return latents[:, : 4 * SPLIT], F.pixel_shuffle(latents[:, 4 * SPLIT :], 2)


def from_grids(coarse: Tensor, fine: Tensor) -> Tensor:
    """The inverse."""
    return torch.cat([coarse, F.pixel_unshuffle(fine, 2)], 1)


def latent_size(shape: PlaneShape) -> tuple[int, int]:
    """At least 2 x 2, the least that the transforms take."""
    return max(2, -(-shape.height // STRIDE)), max(2, -(-shape.width // STRIDE))


_TILE, _MARGIN = 64, 4  # latents; how far a pixel and a latent can depend on one another


def _in_pixels(area: Area) -> Area:
    return Area(*(STRIDE * side for side in area))


def latents_of(planes: Tensor, shape: PlaneShape, autoencoder: Autoencoder) -> Tensor:
    """Planes (C, H, W) int32 -> latents (LATENTS, h, w), tile by tile; the picture's borders are repeated outwards."""
    pixels = planes.float().expand(3, -1, -1) / (257 if shape.bit_depth == 16 else 1)
    height, width = latent_size(shape)
    padding = 0, width * STRIDE - shape.width, 0, height * STRIDE - shape.height
    pixels = F.pad(pixels[None], padding, mode="replicate")
    whole = Area(0, 0, height, width)
    out = pixels.new_empty(LATENTS, height, width)
    for tile in whole.squares(_TILE):
        around = tile.around(_MARGIN, 1, height, width)
        latents = autoencoder.analyse(pixels[_in_pixels(around).within(whole)])
        out[tile.within(whole)] = latents[0][tile.within(around)]
    return out


def planes_of(
    latents: Tensor, shape: PlaneShape, synthesise: Callable[[Tensor], Tensor], margin: int = _MARGIN
) -> Tensor:
    """The inverse: latents (LATENTS, h, w) -> planes (C, H, W) int32; margin is the reach of `synthesise`."""
    height, width = latent_size(shape)
    whole = Area(0, 0, height, width)
    out = latents.new_empty(shape.channels, height * STRIDE, width * STRIDE, dtype=torch.int32)
    for tile in whole.squares(_TILE):
        around = tile.around(margin, 1, height, width)
        pixels = synthesise(latents[around.within(whole)][None])[0]
        if shape.channels == 1:
            pixels = pixels.mean(0, keepdim=True)
        samples = pixels * (257 if shape.bit_depth == 16 else 1)
        samples = samples.round().clamp(0, 2**shape.bit_depth - 1).int()
        out[_in_pixels(tile).within(whole)] = samples[_in_pixels(tile).within(_in_pixels(around))]
    return out[:, : shape.height, : shape.width]
