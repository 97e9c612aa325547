"""SSIMULACRA 2 and MS-SSIM, of batches, differentiable by what is decoded: tune="visual" is trained and coded by them.

Sneyers, https://github.com/cloudinary/ssimulacra2; Wang, Simoncelli, Bovik, "Multi-scale structural similarity for
image quality assessment", Asilomar 2003. Nothing here waits for the device. What is reported is measured by the
packages of lic.evaluation.metrics.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = tuple[float, ...]  # symmetric: its middle, and one half
Measures = tuple[float, float, float]  # lost structure, artifacts, lost details

# SSIMULACRA 2's weights, but for those that are nearly 0, as all of the sixth scale's are. Of each scale, the finest
# first, and of planes of XYB: what the mean and the norm of the fourth power of each measure count.
_WEIGHTS: tuple[dict[int, tuple[Measures, Measures]], ...] = (
    {1: ((0, 0, 0), (7.46689, 0, 17.44583))},
    {0: ((0, 0, 0), (1.104173, 0, 0)), 1: ((0, 0, 0), (6.683678, 0, 1.02789))},
    {0: ((0, 0, 0), (1.842246, 11.44117, 0)), 1: ((225.2052, 0, 0), (19.21324, 0, 0))},
    {
        0: ((0, 0, 0), (1.87876, 10.94907, 0)),
        1: ((176.3932, 0, 0), (24.4330, 0.285208, 0)),
        2: ((0, 0, 0), (8.826983, 23.19243, 0)),
    },
    {
        0: ((0, 0.967794, 0), (0, 0.998177, 0)),
        1: ((0, 0, 0), (34.77906, 44.83563, 0)),
        2: ((95.10805, 0.986398, 0.983438), (0, 171.2667, 0.980786)),
    },
)
# The Gaussian of libjxl (sigma 1.5): the impulse response of its recursive filter, from Charalampidis, "Recursive
# implementation of the Gaussian filter using truncated cosine functions", IEEE TSP 2016, with zeros outside.
GAUSSIAN: Kernel = (0.26462110, 0.21292859, 0.10933537, 0.03601111, 0.00941437)
_OPSIN = (0.30, 0.622, 0.078), (0.23, 0.692, 0.078), (0.24342268924547819, 0.20476744424496821, 0.5518098665095536)
_BIAS = 0.0037930732552754493
_C2 = 0.0009
_POWERS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333  # of MS-SSIM's scales
_C = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_RADIUS = 5  # of MS-SSIM's window


def _gaussian(deviation: float, radius: int) -> Kernel:
    half = [math.exp(-((i / deviation) ** 2) / 2) for i in range(radius + 1)]
    return tuple(x / (2 * sum(half) - half[0]) for x in half)


_WINDOW = _gaussian(1.5, _RADIUS)


@lru_cache
def _weights(scale: int, device: torch.device) -> Tensor:
    """(planes that count, 2, 3)."""
    with torch.inference_mode(False):  # or no gradient could be taken
        return torch.tensor(list(_WEIGHTS[scale].values()), dtype=torch.float32, device=device)


class _Blur(torch.autograd.Function):
    """Of maps (N, C, H, W), with zeros around: its own adjoint, since kernels are symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Kernel) -> Tensor:
        ctx.kernel = kernel
        return _blurred(x, kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _blurred(gradient, ctx.kernel), None


def _blurred(x: Tensor, kernel: Kernel) -> Tensor:
    for dim in (2, 3):
        out, size = x * kernel[0], x.shape[dim]
        for i, factor in enumerate(kernel[1:size], 1):
            out.narrow(dim, i, size - i).add_(x.narrow(dim, 0, size - i), alpha=factor)
            out.narrow(dim, 0, size - i).add_(x.narrow(dim, i, size - i), alpha=factor)
        x = out
    return x


def _moments(a: Tensor, b: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, the sum of variances, and covariances, around each pixel."""
    with torch.no_grad():
        mean_a, square_a = (_blurred(x, kernel) for x in (a, a * a))
    mean_b, square_b, product = (_Blur.apply(x, kernel) for x in (b, b * b, a * b))
    return mean_a, mean_b, square_a - mean_a * mean_a + square_b - mean_b * mean_b, product - mean_a * mean_b


def _linear(pixels: Tensor) -> Tensor:
    x = pixels.clamp(0, 255) / 255
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _xyb(linear: Tensor) -> Tensor:
    cones = [r * linear[:, 0] + g * linear[:, 1] + b * linear[:, 2] + _BIAS for r, g, b in _OPSIN]
    long, medium, short = (x.clamp_min(1e-6) ** (1 / 3) - _BIAS ** (1 / 3) for x in cones)
    x, y = (long - medium) / 2, (long + medium) / 2
    return torch.stack([14 * x + 0.42, y + 0.01, short - y + 0.55], 1)


def _norms(x: Tensor) -> Tensor:
    """Of maps (N, planes, H, W), not negative: (N, planes, 2)."""
    return torch.stack([x.mean((2, 3)), (x.square().square().mean((2, 3)) + 1e-22) ** 0.25], 2)


def _measures(a: Tensor, b: Tensor) -> Tensor:
    """What one scale tells: (N, planes, 2, 3), of lost structure, of artifacts and of lost details."""
    mean_a, mean_b, variances, covariance = _moments(a, b, GAUSSIAN)
    structure = (1 - (mean_a - mean_b).square()) * (2 * covariance + _C2) / (variances + _C2)
    edges = (1 + (b - mean_b).abs()) / (1 + (a - mean_a).abs()) - 1
    return torch.stack([_norms(F.relu(x)) for x in (1 - structure, edges, -edges)], 3)


def ssimulacra2(original: Tensor, decoded: Tensor) -> Tensor:
    """RGB (N, 3, H, W) float32 0..255 -> scores (N,), at most 100; of all scales that count, also of small pictures."""
    with torch.autocast(original.device.type, enabled=False):
        a, b = _linear(original), _linear(decoded)
        distance = a.new_zeros(len(a))
        for scale, counting in enumerate(_WEIGHTS):
            planes = [_xyb(x)[:, min(counting) : max(counting) + 1] for x in (a, b)]
            distance = distance + (_measures(*planes) * _weights(scale, a.device)).sum((1, 2, 3))
            a, b = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (a, b))
        x = distance * 0.9562382616834844
        x = 2.326765642916932 * x - 0.020884521182843837 * x**2 + 6.248496625763138e-05 * x**3
        return 100 - 10 * x.clamp_min(1e-5) ** 0.6276336467831387


def ms_ssim(original: Tensor, decoded: Tensor) -> Tensor:
    """RGB (N, 3, H, W) float32 0..255 -> (N,), at most 1 but for rounding: the mean of the channels. Small pictures
    have fewer scales: with sides up to 160 it isn't what is published."""
    with torch.autocast(original.device.type, enabled=False):
        a, b = original, decoded.clamp(0, 255)
        out = a.new_ones(a.shape[:2])
        for scale, power in enumerate(_POWERS):
            if min(a.shape[2:]) <= 2 * _RADIUS:
                break
            whole = (..., slice(_RADIUS, -_RADIUS), slice(_RADIUS, -_RADIUS))  # where the window is
            mean_a, mean_b, variances, covariance = (x[whole] for x in _moments(a, b, _WINDOW))
            value = (2 * covariance + _C[1]) / (variances + _C[1])
            if scale == len(_POWERS) - 1:
                value = value * (2 * mean_a * mean_b + _C[0]) / (mean_a.square() + mean_b.square() + _C[0])
            out = out * value.mean((2, 3)).clamp_min(1e-4) ** power
            a, b = (F.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[2:]]) for x in (a, b))
        return out.mean(1)
