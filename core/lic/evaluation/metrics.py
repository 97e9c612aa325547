"""How near a decoded picture is to its original. A new metric is one function and one entry of METRICS."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
Floats = NDArray[np.floating]

SMALLEST_SIDE = 176  # pixels; MS-SSIM's five scales want more than 160

_PATCH, _PATCHES, _DIRECTIONS = 7, 8192, 64


def psnr(original: Pixels, decoded: Pixels) -> float:
    """Peak signal-to-noise ratio over all three channels, in dB; infinite for equal pictures."""
    error = np.mean((original.astype(np.float64) - decoded) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ms_ssim(original: Pixels, decoded: Pixels) -> float:
    """Multi-scale structural similarity, mean of the RGB channels, at most 1.

    Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
    """
    import pytorch_msssim
    import torch

    a, b = (torch.tensor(x).permute(2, 0, 1)[None].float() for x in (original, decoded))
    return float(pytorch_msssim.ms_ssim(a, b, data_range=255))


def ssimulacra2(original: Pixels, decoded: Pixels) -> float:
    """SSIMULACRA 2.1: 100 for equal pictures, 90 for no visible loss, 70 high, 50 medium, 30 low quality.

    Sneyers, https://github.com/cloudinary/ssimulacra2. The library's Gaussian is replaced by libjxl's: the score hangs
    on its tails (21.2 for a pair that the reference scores 17.4; 17.5 with this one).
    """
    from PIL import Image
    from ssimulacra2 import ssimulacra2 as library

    from lic.layers.perceptual import GAUSSIAN

    kernel = np.array([*GAUSSIAN[:0:-1], *GAUSSIAN])

    def file(pixels: Pixels) -> io.BytesIO:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PPM")
        return buffer

    library.blur_image = lambda image: _blur(image, kernel, "constant")
    return float(library.compute_ssimulacra2(file(original), file(decoded)))


def patch_distance(original: Pixels, decoded: Pixels) -> float:
    """Distance between the distributions of the two pictures' 7×7 patches, whatever their places; 0 for equal pictures.

    The sliced Wasserstein distance (Rabin et al., "Wasserstein barycenter and its application to texture mixing", SSVM
    2011) at each level of a Laplacian pyramid, averaged, times 1000 (Karras et al., "Progressive growing of GANs",
    ICLR 2018, section 5). Here patches and directions are drawn with a fixed seed, at the same places in both pictures,
    and both are normalised by the original's mean and deviation, so that lost contrast counts.
    """
    rng = np.random.default_rng(0)
    distances = []
    for levels in zip(_laplacian_pyramid(original), _laplacian_pyramid(decoded), strict=True):
        windows = [np.lib.stride_tricks.sliding_window_view(level, (_PATCH, _PATCH), (0, 1)) for level in levels]
        places = windows[0].shape[0] * windows[0].shape[1]
        chosen = np.unravel_index(rng.choice(places, min(places, _PATCHES), replace=False), windows[0].shape[:2])
        a, b = (window[chosen] for window in windows)  # (patches, 3, 7, 7)
        mean, deviation = a.mean((0, 2, 3), keepdims=True), np.maximum(a.std((0, 2, 3), keepdims=True), 1)
        directions = rng.standard_normal((a[0].size, _DIRECTIONS), np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        a, b = (np.sort(((x - mean) / deviation).reshape(len(x), -1) @ directions, axis=0) for x in (a, b))
        distances.append(np.abs(a - b).mean())
    return float(1000 * np.mean(distances))


def _laplacian_pyramid(pixels: Pixels) -> list[Floats]:
    """Band-pass images, finest first, and the low-pass rest of 16 to 31 pixels a side: (h, w, 3) float32.

    Burt, Adelson, "The Laplacian pyramid as a compact image code", IEEE Transactions on Communications 1983.
    """
    kernel = np.array([1, 4, 6, 4, 1], np.float32) / 16
    image, levels = pixels.astype(np.float32), []
    while min(image.shape[:2]) >= 32:
        coarse = _blur(image, kernel, "mirror")[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = 4 * coarse
        levels.append(image - _blur(spread, kernel, "mirror"))
        image = coarse
    return [*levels, image]


def _blur(image: Floats, kernel: Floats, border: str) -> Floats:
    from scipy.ndimage import correlate1d

    return correlate1d(correlate1d(image, kernel, axis=0, mode=border), kernel, axis=1, mode=border)


def _decibels(x: Floats) -> Floats:
    return -10 * np.log10(np.maximum(x, 1e-6))


@dataclass(frozen=True)
class Metric:
    """axis: maps mean values to a scale that rises with quality, for plots and BD-rates."""

    name: str
    label: str
    function: Callable[[Pixels, Pixels], float]
    axis: Callable[[Floats], Floats] = lambda x: x
    distribution: str = "numpy"  # what must be installed

    def version(self) -> str | None:
        """None where it isn't installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


METRICS = {
    metric.name: metric
    for metric in (
        Metric("psnr_rgb_db", "PSNR (RGB), dB", psnr),
        Metric("ms_ssim", "MS-SSIM (RGB), dB", ms_ssim, lambda x: _decibels(1 - x), "pytorch-msssim"),
        Metric("ssimulacra2", "SSIMULACRA 2", ssimulacra2, distribution="ssimulacra2"),
        Metric("patch_distance", "patch distance, -dB", patch_distance, _decibels, "scipy"),
    )
}
