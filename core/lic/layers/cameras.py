"""What cameras and earlier files leave in pictures: colours interpolated from a mosaic, chroma of half the resolution,
noise. For models of single pixel values, which can tell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lic.layers import jpeg, reversible

_GAMMA = 2.2
# Malvar, He, Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images" (2004), figure
# 2, in sixteenths: green at red and blue; red at green in red's rows; red at blue. And plain bilinear interpolation.
_GREEN = [[0, 0, -2, 0, 0], [0, 0, 4, 0, 0], [-2, 4, 8, 4, -2], [0, 0, 4, 0, 0], [0, 0, -2, 0, 0]]
_ROW = [[0, 0, 1, 0, 0], [0, -2, 0, -2, 0], [-2, 8, 10, 8, -2], [0, -2, 0, -2, 0], [0, 0, 1, 0, 0]]
_OTHER = [[0, 0, -3, 0, 0], [0, 4, 0, 4, 0], [-3, 0, 12, 0, -3], [0, 4, 0, 4, 0], [0, 0, -3, 0, 0]]
_CORRECTED = torch.tensor([_GREEN, _ROW, _OTHER]) / 16
_BILINEAR = torch.zeros(3, 5, 5)
_BILINEAR[0, [1, 2, 2, 3], [2, 1, 3, 2]] = 1 / 4
_BILINEAR[1, 2, [1, 3]] = 1 / 2
_BILINEAR[2, [1, 1, 3, 3], [1, 3, 1, 3]] = 1 / 4


def marked(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, H, W) float32, whole numbers 0..255, sides even -> planes (N, 3, H, W) int32 as
    `lic.layers.mapping` has them: of half of the pictures as they are, of others with noise, after a mosaic, or as
    YCbCr."""
    return torch.stack([_marked(picture, generator) for picture in pixels])


def _marked(picture: Tensor, generator: torch.Generator) -> Tensor:
    kind, noise, choice = torch.rand(3, generator=generator).tolist()
    if kind > 0.5 and noise < 0.5:
        drawn = torch.randn(picture.shape, generator=generator).to(picture.device)
        picture = (picture + drawn * 5 * noise).clamp(0, 255)
    if kind > 0.7:
        return (to_ycbcr(picture, 1 if choice < 0.25 else 2) - 128).round().int()
    if kind > 0.55:
        picture = demosaiced(picture, _CORRECTED if choice < 0.5 else _BILINEAR)
    return reversible.to_rct(picture.round().int() - 128)


def demosaiced(picture: Tensor, kernels: Tensor) -> Tensor:
    """(3, H, W) as a camera with a Bayer sensor, red in the corner, and these kernels has it, in linear light."""
    linear = (picture / 255) ** _GAMMA
    sensor = linear[1].clone()
    sensor[::2, ::2], sensor[1::2, 1::2] = linear[0, ::2, ::2], linear[2, 1::2, 1::2]
    green, row, other = kernels.to(picture.device)
    weight = torch.stack([green, row, row.T, other])[:, None]
    green, row, column, other = F.conv2d(F.pad(sensor[None, None], [2] * 4, mode="reflect"), weight)[0]
    out = sensor.repeat(3, 1, 1)
    for y, x in (0, 0), (1, 1):
        out[1, y::2, x::2] = green[y::2, x::2]
        out[2 - 2 * y, y::2, x::2] = other[y::2, x::2]
        out[2 * y, y::2, 1 - x :: 2] = row[y::2, 1 - x :: 2]
        out[2 * y, 1 - y :: 2, x::2] = column[1 - y :: 2, x::2]
    return out.clamp(0, 1) ** (1 / _GAMMA) * 255


def to_ycbcr(picture: Tensor, every: int) -> Tensor:
    """RGB (3, H, W) -> Y, Cb, Cr, 0..255, of which every so many samples of chroma are kept along each axis, as JPEG
    files have it (JFIF 1.02)."""
    red, green, blue = picture
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = 128 + torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402])
    if every > 1:
        kept = F.avg_pool2d(chroma[None], every).round()
        chroma = F.interpolate(kept, scale_factor=every, mode="bilinear")[0]
    return torch.cat([luma[None], chroma])


def compressed(pictures: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Pictures (N, 3, H, W) float32, 0..255, sides multiples of 16, as JPEG files have them: for each component, the
    quantised coefficients (N, 64, h, w) int32, in zigzag order, and the quantisation tables (N, 64) int32, 0 where no
    block has the coefficient. Chroma of half of the resolution in most calls; tables as libjpeg's, or flatter."""
    kind, *numbers = torch.rand(1 + 2 * len(pictures), generator=generator).tolist()
    every = 1 if kind < 0.4 else 2
    planes = torch.stack([to_ycbcr(picture, 1) for picture in pictures]) - 128
    chroma = F.avg_pool2d(planes[:, 1:], every)
    quality, flatness = (torch.tensor(x)[:, None] for x in (numbers[::2], numbers[1::2]))
    quality = 97 - 60 * quality**2
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    shape = torch.where(flatness < 0.6, 1.0, flatness)
    out = []
    for component, samples in enumerate((planes[:, 0], chroma[:, 0], chroma[:, 1])):
        base = jpeg.TABLES[min(component, 1)].float()
        table = (base[0] * (base / base[0]) ** shape * scale).round().clamp(1, 255).int().to(pictures.device)
        coefficients = (jpeg.transformed(samples.round()) / table[..., None, None]).round().int()
        out.append((coefficients, table * coefficients.ne(0).any(3).any(2)))
    return out
