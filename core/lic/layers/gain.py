"""Gain units: continuous quality from one set of weights.

Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation" (CVPR 2021): each channel has a
gain before quantisation and one after, learned at a few anchors and interpolated exponentially between them (equation
8). They start as one quantisation step for all channels, and then learn which channels matter more at which rate, at no
cost: nothing else in the networks needs to know of the rate.

The *position* of a picture says how finely it is quantised: an integer in 1/256 octave, 0 the coarsest, with an anchor
each octave. The last anchor's steps, the *finest* ones, are the unit of what both sides compute in integers.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.errors import FormatError

ANCHORS = 8
COARSEST = 8  # the logarithm to base 2 of the step at position 0, in 8-bit pixel values
OCTAVE = 256
LAST = (ANCHORS - 1) * OCTAVE  # the largest position

RATIO_UNIT = 1024
POWER_BITS = 20  # fractional bits of powers of two
POWERS = np.array([round(2 ** (i / OCTAVE + POWER_BITS)) for i in range(OCTAVE)], np.int64)


def quality_position(quality: float) -> int:
    """quality 0..100 -> position; the steps are 256 pixel values at 0, 19 at 75, 2.8 at 100."""
    t = quality / 100
    return round(OCTAVE * (4.5 * t + 2 * t**6))


def positions(count: int, generator: torch.Generator) -> Tensor:
    """Positions to train at, (count,) float32 in octaves: mostly where files have 0.1 to 2 bits a pixel."""
    wide = torch.rand(1, generator=generator) < 0.25
    low, high = (0, ANCHORS - 1) if wide else (0.5, 4.5)
    return low + (high - low) * torch.rand(count, generator=generator)


def losses(bits: Tensor, pixels: Tensor, decoded: Tensor, position: Tensor) -> dict[str, Tensor]:
    """What training optimises: bits (N,) of each picture, pixels and decoded (N, 3, H, W), position (N,) in octaves.

    The rate-distortion cost is bits per pixel + lambda * mean squared error, with lambda = 30 / step^2: what a bit is
    worth to a uniform quantiser of that step at high rates. Of it we take the logarithm: every rate counts alike.
    """
    bits_per_pixel = bits / (pixels.shape[2] * pixels.shape[3])
    error = (pixels - decoded.float()).square().mean((1, 2, 3))
    cost = bits_per_pixel + 30 / torch.exp2(2 * (COARSEST - position)) * error
    return {
        "loss": torch.log(cost + 0.05).mean(),
        "bits_per_pixel": bits_per_pixel.mean(),
        "psnr": -10 * torch.log10(error / 255**2).mean(),
    }


def structural_losses(bits: Tensor, pixels: Tensor, decoded: Tensor, position: Tensor) -> dict[str, Tensor]:
    """As `losses`, for MS-SSIM (Wang, Simoncelli, Bovik, Asilomar 2003) instead of squared error: the cost is bits per
    pixel + lambda * (1 - MS-SSIM), lambda = 1.2 * 4^position. Crops of 160 pixels and less get a window of less than 11
    pixels.
    """
    from pytorch_msssim import ms_ssim

    window = min(11, (min(pixels.shape[2:]) - 1) // 32 * 2 + 1)  # of pixels; five scales want 16 times as many
    with torch.autocast(pixels.device.type, enabled=False):
        values = ms_ssim(pixels, decoded.float(), data_range=255, size_average=False, win_size=window)
    bits_per_pixel = bits / (pixels.shape[2] * pixels.shape[3])
    cost = bits_per_pixel + 1.2 * torch.exp2(2 * position) * (1 - values)
    error = (pixels - decoded.detach().float()).square().mean((1, 2, 3))
    return {
        "loss": torch.log(cost + 0.05).mean(),
        "bits_per_pixel": bits_per_pixel.mean(),
        "psnr": -10 * torch.log10(error / 255**2).mean(),
        "ms_ssim_db": -10 * torch.log10(1 - values + 1e-6).mean(),
    }


def noisy(scaled: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise for quantisation, as both papers have it: what the rate is computed from in training."""
    return scaled + (torch.rand(scaled.shape, generator=generator) - 0.5).to(scaled.device)


def rounded(scaled: Tensor) -> Tensor:
    """Quantisation proper, through which gradients pass straight: what synthesis gets, in training too.

    With noise there as well, as in the papers, all that is zero after rounding disturbs the picture: at the start, 3 dB
    over all positions, which decoding doesn't see.
    """
    return scaled + (scaled.round() - scaled).detach()


def write_position(position: int, coded: bytes) -> bytes:
    return struct.pack("<H", position) + coded


def read_position(stream: bytes) -> tuple[int, bytes]:
    """A stream's first two bytes and the rest. Raises FormatError."""
    position = int.from_bytes(stream[:2], "little")
    if len(stream) < 2 or position > LAST:
        raise FormatError("the coded picture's header is damaged")
    return position, stream[2:]


class Gains(nn.Module):
    """The gains before quantisation; log2 (ANCHORS, C) holds their logarithms."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.log2 = nn.Parameter(start.clone())

    @staticmethod
    def _between(anchors: Tensor, position: Tensor) -> Tensor:
        below = position.long().clamp(max=ANCHORS - 2)
        share = (position - below)[:, None]
        return (anchors[below] * (1 - share) + anchors[below + 1] * share)[..., None, None]

    def before(self, position: Tensor) -> Tensor:
        """position (N,) in octaves -> gains (N, C, 1, 1)."""
        return torch.exp2(self._between(self.log2, position))

    def finest(self) -> Tensor:
        """The last anchor's gains, (C, 1, 1)."""
        return torch.exp2(self.log2[-1])[:, None, None]

    def log2_ratios(self, position: Tensor) -> Tensor:
        """The logarithms of the steps in finest steps, (N, C, 1, 1)."""
        return self.log2[-1][:, None, None] - self._between(self.log2, position)

    def quantise(self, values: Tensor, position: int) -> Tensor:
        """(C, H, W) -> int32."""
        return (values * self.before(values.new_tensor([position / OCTAVE]))[0]).round().int()

    def rounded(self) -> Tensor:
        """log2 as weights files hold it: in multiples of 1 / OCTAVE."""
        return (self.log2 * OCTAVE).round() / OCTAVE

    def integer_log2_ratios(self, position: int) -> NDArray[np.int64]:
        """As log2_ratios, (C,), in 1 / OCTAVE; out of a weights file, the same on every device."""
        anchors = (self.log2.detach() * OCTAVE).long().cpu().numpy()
        below = min(position // OCTAVE, ANCHORS - 2)
        share = position - below * OCTAVE
        return anchors[-1] - (anchors[below] * (OCTAVE - share) + anchors[below + 1] * share) // OCTAVE

    def integer_ratios(self, position: int) -> NDArray[np.int64]:
        """The steps in finest steps, (C,), in 1 / RATIO_UNIT; likewise."""
        logarithms = self.integer_log2_ratios(position).clip(-8 * OCTAVE, 16 * OCTAVE)
        return (POWERS[logarithms % OCTAVE] * RATIO_UNIT << (logarithms // OCTAVE + 8)) >> (POWER_BITS + 8)


class PairedGains(Gains):
    """With gains after quantisation, of their own, which start as the inverse of those before."""

    def __init__(self, start: Tensor):
        super().__init__(start)
        self.log2_inverse = nn.Parameter(-start)

    def after(self, position: Tensor) -> Tensor:
        """position (N,) in octaves -> gains (N, C, 1, 1)."""
        return torch.exp2(self._between(self.log2_inverse, position))

    def dequantise(self, symbols: Tensor, position: int) -> Tensor:
        """(C, H, W), integers -> float32."""
        values = symbols.float()
        return values * self.after(values.new_tensor([position / OCTAVE]))[0]
