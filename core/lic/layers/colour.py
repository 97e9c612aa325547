"""Orthonormal colour transforms: an error of one quantisation step is the same error in RGB, whatever the plane.

The usual one is that of grey, red to blue, and green to both. A picture may have one of its own, near Karhunen-Loève's:
the usual planes, turned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lic.layers import lifting

COLOUR = torch.tensor([[3**-0.5] * 3, [2**-0.5, 0, -(2**-0.5)], [6**-0.5, -2 * 6**-0.5, 6**-0.5]], dtype=torch.float64)
UNTURNED = 0, 0, 0

_AXES = (0, 1), (0, 2), (1, 2)
_WORTH_TURNING = 0.005  # the share of the cost that it has to save, and bits, since the angles take some
_TURN_BITS = 200
_STEP = 24  # quantisation step, in pixel values, to choose for: one for all, so that files grow evenly with quality
_WATER_LEVEL = 0.12 * _STEP**2  # the largest variance that is left to be an error
_CLASSES, _SAMPLES = 8, 2**16  # of coefficients, by energy; how many of a level are looked at, or twice as many


def to_planes(pixels: Tensor) -> Tensor:
    """RGB (N, 3, H, W) float32 0..255 -> the usual planes, whatever autocast says."""
    return times(COLOUR, pixels - 128)


def times(matrix: Tensor, planes: Tensor) -> Tensor:
    """A matrix (3, 3) times each pixel of planes (N, 3, H, W)."""
    return torch.stack([sum(row[j] * planes[:, j] for j in range(3)) for row in matrix.tolist()], 1)


def turn(angles: Sequence[int]) -> Tensor:
    """Angles in 1 / 256 turn, from the first axis to the second, the first to the third, the second to the third: what
    the usual planes are to be multiplied by, (3, 3) float64."""
    matrix = torch.eye(3, dtype=torch.float64)
    for (i, j), angle in zip(_AXES, angles, strict=True):
        step = torch.eye(3, dtype=torch.float64)
        step[i, i] = step[j, j] = math.cos(angle * math.pi / 128)
        step[i, j] = math.sin(angle * math.pi / 128)
        step[j, i] = -step[i, j]
        matrix = step @ matrix
    return matrix


def best_angles(planes: Tensor, levels: int) -> Sequence[int]:
    """Angles, each -128..127, that make the usual planes (1, 3, H, W) cost least in a wavelet of so many levels;
    UNTURNED where they would save next to nothing.

    The cost is that of Gaussians, classes of coefficients of each level, by reverse water-filling (Cover, Thomas,
    section 10.3.3): the logarithms of their variances, and the variances themselves where they are small.
    """
    counts, parts = [], []
    for band in lifting.analyse(planes, levels)[1]:
        every = 3 * band[0, 0].numel() // _SAMPLES | 1  # odd, or it could meet the same columns in every row
        colours = band.view(3, 3, -1)[..., ::every].transpose(0, 1).flatten(1).cpu().double()
        for part in colours[:, colours.square().sum(0).argsort()].chunk(_CLASSES, 1):
            counts.append(part.shape[1] * every)
            parts.append(part @ part.T / part.shape[1])
    weights, covariances = torch.tensor(counts).double(), torch.stack(parts)

    def cost(angles: Sequence[int]) -> float:
        """In half nats."""
        matrix = turn(angles)
        variances = (matrix @ covariances @ matrix.T).diagonal(dim1=1, dim2=2) / _WATER_LEVEL
        return float(weights @ torch.where(variances < 1, variances, variances.clamp(min=1).log() + 1).sum(1))

    best: Sequence[int] = UNTURNED
    first = least = cost(best)
    for size in (16, 8, 4, 2, 1):
        improved = True
        while improved:
            tried = [[*best] for _ in range(6)]
            for i, angles in enumerate(tried):
                angles[i % 3] += size if i < 3 else -size
            cheapest = min(tried, key=cost)
            improved = cost(cheapest) < least
            if improved:
                best, least = cheapest, cost(cheapest)
    worth = least < first * (1 - _WORTH_TURNING) and first - least > 2 * math.log(2) * _TURN_BITS
    return [(angle + 128) % 256 - 128 for angle in best] if worth else UNTURNED
