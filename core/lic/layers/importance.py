"""Importance maps (arXiv 1801.04260, section 3.4): at each position, how many of the latents are spent there.

A map's levels are 0..GROUPS, each of which opens one group of channels more, the important ones first. What is not open
is zero, and is not coded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.entropy import Decoder, Encoder, Table, integer_frequencies
from lic.errors import FormatError

GROUPS = 16
_HIDDEN = 32
_CONTEXTS = 3 * GROUPS + 1
_SPEED = 32  # parameters are this much smaller than what they stand for: they learn so much faster


class ImportanceNetwork(nn.Module):
    """Latents in steps -> how many groups to give up at each position, from the last one on that isn't all zero.

    In the paper the network gives the level itself, which then has to learn where the latents end.
    """

    def __init__(self, latents: int):
        super().__init__()
        self.hidden, self.out = nn.Conv2d(latents + 1, _HIDDEN, 1), nn.Conv2d(_HIDDEN, 1, 3, padding=1)
        self.out.weight.data *= 0.25
        nn.init.constant_(cast(Tensor, self.out.bias), -1.5)  # a fifth of a group

    def forward(self, scaled: Tensor, position: Tensor) -> Tensor:
        """scaled (N, C, h, w), position (N,) in octaves -> (N, 1, h, w), positive."""
        plane = (position / 4 - 1).view(-1, 1, 1, 1).expand(-1, 1, *scaled.shape[2:])
        hidden = F.relu(self.hidden(torch.cat([scaled.detach().abs().log1p(), plane], 1)))
        return F.softplus(self.out(hidden).float())


class MapPrior(nn.Module):
    """What the levels cost: one table for each sum of the levels to the left, above, and above to the right."""

    def __init__(self) -> None:
        super().__init__()
        distance = torch.arange(GROUPS + 1) - torch.arange(_CONTEXTS)[:, None] / 3
        self.logarithms = nn.Parameter(distance.abs() / -_SPEED)

    def bits(self, levels: Tensor, kept: Tensor) -> Tensor:
        """levels (N, 1, h, w), whole numbers, and the real numbers they were rounded from, which get gradients: what
        one level more would cost. (N,)"""
        padded = F.pad(levels, (1, 1, 1, 0)).long()
        contexts = padded[..., 1:, :-2] + padded[..., :-1, 1:-1] + padded[..., :-1, 2:]
        costs = F.log_softmax(self.logarithms * _SPEED, 1)[contexts] / -math.log(2)
        below = kept.detach().long().clamp(max=GROUPS - 1)[..., None]
        more = (costs.gather(-1, below + 1) - costs.gather(-1, below)).detach()[..., 0]
        bits = costs.gather(-1, levels.long()[..., None])[..., 0] + more * (kept - kept.detach())
        return bits.sum((1, 2, 3))

    def tables(self) -> Tensor:
        """Frequencies, an escape's first: (_CONTEXTS, GROUPS + 2) int32."""
        probabilities = F.pad((self.logarithms.detach().double() * _SPEED).softmax(1), (1, 0)).cpu().numpy()
        return torch.from_numpy(np.stack([integer_frequencies(row) for row in probabilities]).astype(np.int32))


def family(tables: Tensor) -> list[Table]:
    return [Table(0, row) for row in tables.numpy()]


def _diagonals(padded: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]]:
    """Rows and columns of the levels that can be coded at once, and their contexts; padded has a row of zeros more
    above, and a column of zeros more on both sides."""
    height, width = padded.shape[0] - 1, padded.shape[1] - 2
    for diagonal in range(2 * height + width - 2):
        rows = np.arange(max(0, (diagonal - width) // 2 + 1), min(height, diagonal // 2 + 1))
        columns = diagonal - 2 * rows
        yield rows, columns, padded[rows + 1, columns] + padded[rows, columns + 1] + padded[rows, columns + 2]


def encode(encoder: Encoder, levels: NDArray[np.int64], family: list[Table]) -> None:
    """levels (h, w)."""
    for rows, columns, contexts in _diagonals(np.pad(levels, ((1, 0), (1, 1)))):
        encoder.encode(levels[rows, columns], contexts, family)


def decode(decoder: Decoder, size: tuple[int, int], family: list[Table]) -> NDArray[np.int64]:
    """The inverse. Raises FormatError."""
    padded = np.zeros((size[0] + 1, size[1] + 2), np.int64)
    for rows, columns, contexts in _diagonals(padded):
        levels = decoder.decode(contexts, family)
        if levels.min() < 0 or levels.max() > GROUPS:
            raise FormatError("the importance map is damaged")
        padded[rows + 1, columns + 1] = levels
    return padded[1:, 1:-1]
