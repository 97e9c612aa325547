"""SSIMULACRA 2 and MS-SSIM of batches, differentiable, without waiting for the device: see lic.evaluation.metrics.

Sneyers, https://github.com/cloudinary/ssimulacra2, whose weights come from the package `ssimulacra2`; Wang, Simoncelli,
Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from ssimulacra2 import ssimulacra2 as library
from torch import Tensor

from lic.evaluation.metrics import _KERNEL

_GAUSSIAN = torch.exp(-(torch.arange(-5.0, 6).square()) / (2 * 1.5**2))
_KERNELS = {"ssimulacra2": torch.tensor(_KERNEL).float(), "ms_ssim": _GAUSSIAN / _GAUSSIAN.sum()}

_SCALES = 6
_OPSIN = (0.30, 0.622, 0.078), (0.23, 0.692, 0.078), (0.24342268924547819, 0.20476744424496821, 0.5518098665095536)
_BIAS = 0.0037930732552754493


@lru_cache
def _kernel(name: str, channels: int, device: torch.device) -> Tensor:
    return _KERNELS[name].view(1, 1, -1, 1).repeat(channels, 1, 1, 1).to(device)


@lru_cache
def _weights(device: torch.device) -> Tensor:
    """(scales, 3 planes, mean and norm of the fourth power, 3 measures)."""
    return torch.tensor(library.weights).float().view(3, _SCALES, 2, 3).transpose(0, 1).to(device)


def _blur(x: Tensor, name: str, padding: int = 0) -> Tensor:
    kernel = _kernel(name, x.shape[1], x.device)
    x = F.conv2d(x.contiguous(), kernel, padding=(padding, 0), groups=x.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), padding=(0, padding), groups=x.shape[1])


def _moments(a: Tensor, b: Tensor, name: str, padding: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, the sum of variances, and covariances, around each pixel."""
    with torch.no_grad():
        mean_a, square_a = _blur(torch.cat([a, a * a], 1), name, padding).chunk(2, 1)
    mean_b, square_b, product = _blur(torch.cat([b, b * b, a * b], 1), name, padding).chunk(3, 1)
    return mean_a, mean_b, square_a - mean_a * mean_a + square_b - mean_b * mean_b, product - mean_a * mean_b


def _linear(pixels: Tensor) -> Tensor:
    x = pixels.clamp(0, 255) / 255
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _xyb(linear: Tensor) -> Tensor:
    cones = [sum(row[i] * linear[:, i] for i in range(3)) + _BIAS for row in _OPSIN]
    long, medium, short = (x.clamp_min(1e-6) ** (1 / 3) - _BIAS ** (1 / 3) for x in cones)
    x, y = (long - medium) / 2, (long + medium) / 2
    return torch.stack([14 * x + 0.42, y + 0.01, short - y + 0.55], 1)


def _norms(x: Tensor) -> Tensor:
    """Of maps (N, 3, H, W), not negative: (N, 3, 2)."""
    return torch.stack([x.mean((2, 3)), (x.square().square().mean((2, 3)) + 1e-22) ** 0.25], 2)


def _measures(a: Tensor, b: Tensor) -> Tensor:
    """What one scale tells: (N, 3, 2, 3), of lost structure, of artifacts and of lost details."""
    mean_a, mean_b, variances, covariance = _moments(a, b, "ssimulacra2", 4)
    structure = (1 - (mean_a - mean_b).square()) * (2 * covariance + 0.0009) / (variances + 0.0009)
    edges = (1 + (b - mean_b).abs()) / (1 + (a - mean_a).abs()) - 1
    return torch.stack([_norms(F.relu(x)) for x in (1 - structure, edges, -edges)], 3)


def ssimulacra2(original: Tensor, decoded: Tensor) -> Tensor:
    """RGB (N, 3, H, W) float32 0..255 -> scores (N,), at most 100; of all six scales, also of small pictures."""
    with torch.autocast(original.device.type, enabled=False):
        a, b = _linear(original), _linear(decoded)
        distance = torch.zeros(len(a), device=a.device)
        for weights in _weights(a.device):
            distance = distance + (_measures(_xyb(a), _xyb(b)) * weights).sum((1, 2, 3))
            a, b = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (a, b))
        x = distance * 0.9562382616834844
        x = 2.326765642916932 * x - 0.020884521182843837 * x**2 + 6.248496625763138e-05 * x**3
        return 100 - 10 * x.clamp_min(1e-5) ** 0.6276336467831387


def ms_ssim(original: Tensor, decoded: Tensor) -> Tensor:
    """RGB (N, 3, H, W) float32 0..255, sides > 160 -> (N,), at most 1: the mean of the channels."""
    powers = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    with torch.autocast(original.device.type, enabled=False):
        a, b = original, decoded.clamp(0, 255)
        out = torch.ones(a.shape[:2], device=a.device)
        for scale, power in enumerate(powers):
            mean_a, mean_b, variances, covariance = _moments(a, b, "ms_ssim")
            value = (2 * covariance + c2) / (variances + c2)
            if scale == len(powers) - 1:
                value = value * (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
            out = out * value.mean((2, 3)).clamp_min(1e-4) ** power
            a, b = (F.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[2:]]) for x in (a, b))
        return out.mean(1)
