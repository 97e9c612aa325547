"""What a file adds to the prior: linear regressions of a tile's coefficients on what is decoded before them.

A prior knows pictures in general; an encoder has this one, and what its camera and earlier formats did: the mosaic
whose gaps were filled, chroma of half the resolution, a filter. For each band of a pass it may send a few neighbours,
each with a coefficient, and a change of scale. They are least squares', chosen by orthogonal matching pursuit (Pati,
Rezaiifar, Krishnaprasad 1993) as long as they save more bits than they take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lic.entropy import Decoder, Encoder
from lic.layers.band_prior import Pass, to_multiple
from lic.layers.coefficients import SCALE_STEPS, SCALES, logistic_bits
from lic.layers.lifting import FRACTION

_LEVELS, _FEWEST = 2, 1024  # the finest levels have them, where a tile has as many cells
_TERMS = 24  # at most, for a band
_UNIT = 64  # coefficients are integers, -127..127, in 1 / _UNIT
_TO_EIGHTHS = FRACTION + 3
_WIDEST = 2**18  # of a neighbour, in 1 / 2**FRACTION: so sums stay within 32 bits
_NARROWER, _CHANGES = 8, 16  # scales change by -8..7 places in the list of tables

_LOOKED_AT = 8192  # cells
_CHANCE = 12  # bits that the best of hundreds of neighbours saves, in the cells looked at, by chance


class Regression(NamedTuple):
    """Of one band: by how much its scale moves, and its terms: the neighbours' numbers, and their coefficients."""

    scale: int
    neighbours: list[int]
    coefficients: list[int]


NOTHING = Regression(0, [], [])


class Neighbours:
    """What is decoded around each cell of a tile before a pass: numbered, nine cells of each channel."""

    def __init__(self) -> None:
        self._channels: list[Tensor] = []

    def enter(self, this: Pass) -> bool:
        """Get ready for a pass, and whether it has regressions; a tile's first one begins anew."""
        height, width = this.low.shape[2:]
        if this.level > _LEVELS or -(-height // 2) * -(-width // 2) < _FEWEST:
            return False
        if this.first:
            self._channels.clear()
            samples = F.pixel_unshuffle(to_multiple(this.low, 2), 2).unflatten(1, (3, 4))
            means = samples.sum(2, keepdim=True, dtype=torch.int32) >> 2
            self.add((samples - means).flatten(1, 2))
        return True

    def add(self, values: Tensor) -> None:
        """A pass that is decoded now, (1, C, h, w) int32 in 1 / 2**FRACTION."""
        self._channels += F.pad(values[0].clamp(-_WIDEST, _WIDEST), [1] * 4)

    def __len__(self) -> int:
        return 9 * len(self._channels)

    def at(self, cells: Tensor, first: int = 0) -> Tensor:
        """All neighbours, or those from a number on, the first of a channel, of cells, which are numbered row by row:
        (cells, neighbours) float32."""
        width = self._channels[0].shape[1]
        corners = cells // (width - 2) * width + cells % (width - 2)
        nine = torch.tensor([y * width + x for y in range(3) for x in range(3)], device=cells.device)
        channels = self._channels[first // 9 :]
        return torch.cat([channel.flatten()[corners[:, None] + nine].float() for channel in channels], 1)

    def weighted(self, regression: Regression) -> Tensor:
        """The sum of a regression's terms, (h, w) int32, in eighths."""
        height, width = (side - 2 for side in self._channels[0].shape)
        total = self._channels[0].new_zeros(height, width)
        for number, coefficient in zip(regression.neighbours, regression.coefficients, strict=True):
            y, x = divmod(number % 9, 3)
            total += coefficient * self._channels[number // 9][y : y + height, x : x + width]
        return total + (1 << _TO_EIGHTHS - 1) >> _TO_EIGHTHS

    def applied(self, mean: Tensor, scale: Tensor, regressions: Sequence[Regression]) -> tuple[Tensor, Tensor]:
        """Means in eighths and table scales (1, bands, h, w), int32, with each band's regression."""
        means = [plane + self.weighted(r) for plane, r in zip(mean[0], regressions, strict=True)]
        scales = [plane + r.scale for plane, r in zip(scale[0], regressions, strict=True)]
        return torch.stack(means)[None], torch.stack(scales)[None].clamp(0, SCALES - 1)


def write(encoder: Encoder, regressions: Sequence[Regression], neighbours: int) -> None:
    """neighbours: how many there are to choose from."""
    encoder.uniform([r.scale + _NARROWER for r in regressions], _CHANGES)
    encoder.uniform([len(r.neighbours) for r in regressions], _TERMS + 1)
    encoder.uniform([number for r in regressions for number in r.neighbours], neighbours)
    encoder.uniform([c + 127 for r in regressions for c in r.coefficients], 255)


def read(decoder: Decoder, bands: int, neighbours: int) -> list[Regression]:
    scales = (decoder.uniform(bands, _CHANGES) - _NARROWER).tolist()
    counts = decoder.uniform(bands, _TERMS + 1).tolist()
    numbers = iter(decoder.uniform(sum(counts), neighbours).tolist())
    coefficients = iter((decoder.uniform(sum(counts), 255) - 127).tolist())
    out = []
    for scale, count in zip(scales, counts, strict=True):
        out.append(Regression(scale, [next(numbers) for _ in range(count)], [next(coefficients) for _ in range(count)]))
    return out


class Fit:
    """What finds the regressions of a tile, pass after pass: least squares over some of its cells, whose weights are,
    for each plane, those that its first pass suggests."""

    def __init__(self) -> None:
        self._begin(0)

    def _begin(self, cells: int) -> None:
        self._cells = torch.randperm(cells, generator=torch.Generator().manual_seed(0))[:_LOOKED_AT]
        self._x = torch.zeros(len(self._cells), 0)
        self._of_planes: dict[int, tuple[Tensor, Tensor]] = {}  # weights, and sums of products

    def regressions(
        self, neighbours: Neighbours, this: Pass, values: Tensor, mean: Tensor, scale: Tensor
    ) -> list[Regression]:
        """Those of a pass: values in whole units, means in eighths, their table scales: (1, bands, h, w) int32."""
        if this.first:
            self._begin(values[0, 0].numel())
        cells, plane = self._cells.to(values.device), this.planes.start
        # On the CPU whatever the device: so it makes the same files.
        value, expected, index = (x[0].flatten(1)[:, cells].cpu() for x in (values, mean / 8, scale))
        self._x = torch.cat([self._x, neighbours.at(cells, self._x.shape[1]).cpu() / 2**FRACTION], 1)
        if plane not in self._of_planes:
            variance = _steps(index).square() * (math.pi**2 / 3) + 1 / 12  # a logistic's, and rounding's
            self._of_planes[plane] = (1 / variance).mean(0)[:, None], torch.zeros(0, 0)
        weight, sums = self._of_planes[plane]
        known = len(sums)
        products = (weight * self._x[:, known:]).T @ self._x
        sums = torch.cat([torch.cat([sums, products[:, :known].T], 1), products])
        self._of_planes[plane] = weight, sums
        gram = sums.double().numpy()
        right = (self._x.T @ (weight * (value - expected).T)).double().numpy()
        share = len(cells) / values[0, 0].numel()
        cost = share * math.log2(255 * len(neighbours))  # of a term, in bits of those cells
        out = []
        for band in range(len(value)):
            error = value[band] - expected[band]
            chosen, solved = _pursued(gram, right[:, band], cost + _CHANCE)
            coefficients = np.clip(np.round(solved * _UNIT), -127, 127).astype(int).tolist()
            added = self._x[:, chosen] @ torch.tensor(coefficients, dtype=torch.float32) / _UNIT
            plain, better = _rescaled(error, index[band]), _rescaled(error - added, index[band])
            if better[0] + len(chosen) * cost < plain[0]:
                out.append(Regression(better[1], chosen, coefficients))
            else:
                out.append(Regression(plain[1], [], []))
        return out


def _steps(index: Tensor) -> Tensor:
    return torch.tensor(SCALE_STEPS)[index.clamp(0, SCALES - 1)]


def _pursued(
    gram: NDArray[np.float64], right: NDArray[np.float64], cost: float
) -> tuple[list[int], NDArray[np.float64]]:
    """Neighbours and their coefficients, from the normal equations of residuals whose variances are 1: one after the
    other what helps most, as long as it saves so many bits."""
    diagonal = gram.diagonal() + 1e-9
    damping = 1e-6 * diagonal.mean()
    chosen: list[int] = []
    solved, saved = np.zeros(0), 0.0
    while len(chosen) < _TERMS:
        rest = (right - gram[:, chosen] @ solved) ** 2 / diagonal
        rest[chosen] = 0
        tried = [*chosen, int(rest.argmax())]
        solution = np.linalg.solve(gram[np.ix_(tried, tried)] + damping * np.eye(len(tried)), right[tried])
        saving = float(solution @ right[tried]) / (2 * math.log(2))
        if saving < saved + cost:
            break
        chosen, solved, saved = tried, solution, saving
    return chosen, solved


def _rescaled(values: Tensor, index: Tensor) -> tuple[float, int]:
    """The bits of values, less their means, with the best change of scale; and that change."""

    def bits(change: int) -> float:
        log_scale = _steps(index + change).log() / 3  # as a prior has it
        return float(logistic_bits(values - 0.5, values + 0.5, torch.zeros(()), log_scale).sum())

    best = bits(0), 0
    for direction in (-1, 1):
        for change in range(direction, direction * _NARROWER, direction):
            if (tried := bits(change)) >= best[0]:
                break
            best = tried, change
    return best
