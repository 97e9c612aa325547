"""The latents of lic.layers.autoencoder as two volumes, and the planes that `context3d` codes them in.

The *coarse* volume has 192 channels, 16 pixels a position; the *fine* one, unfolded, 144 channels, 8 pixels a position.
Channels come in the order of their usual scales, low frequencies and luma first. Those of great range have two or three
digits: multiples of 64 centres (lic.layers.centres), of 8, and the rest. Each digit is a *plane* of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from lic.layers.autoencoder import LATENTS, SPLIT
from lic.layers.importance import GROUPS

FACTORS = 64, 8, 1  # of digits


def spread(x: Tensor) -> Tensor:
    """From the coarse volume's size to the fine one's: (..., h, w) -> (..., 2h, 2w), each position four times."""
    return x.repeat_interleave(2, -2).repeat_interleave(2, -1)


class Channel(NamedTuple):
    """A channel of a volume: the first of its latents, its colour plane, and its rows' and columns' frequency, 1 being
    Nyquist's."""

    latent: int
    colour: int
    rows: float
    columns: float

    def log2_scale(self) -> float:
        """The usual one, in finest steps: amplitudes fall with frequency (Field 1987). Fitted to `hyperprior`'s latents
        of a few training pictures, with a standard error of 0.3."""
        return (2.9, -0.1, -0.6)[self.colour] - 0.75 * math.log2(self.rows**2 + self.columns**2)

    def distance(self, other: Channel) -> float:
        rows, columns = math.log2(self.rows / other.rows), math.log2(self.columns / other.columns)
        return rows**2 + columns**2 + 0.5 * (self.colour != other.colour)


def _channel(latent: int, number: int, last: list[int]) -> Channel:
    """number: that of the packet's channel after three levels; last: the band of the fourth, if there is one."""
    first = number // 16
    bands = [first // 3, number // 4 % 4, number % 4, *last]
    return Channel(latent, first % 3, _frequency([b // 2 for b in bands]), _frequency([b % 2 for b in bands]))


def _frequency(high: list[int]) -> float:
    """high: at each level, whether the band is the upper one, which turns all below it upside down."""
    index = upside_down = 0
    for bit in high:
        upside_down ^= bit
        index = 2 * index + upside_down
    return (index + 0.5) / 2 ** len(high)


# By number in their volume.
_CHANNELS = [
    [_channel(i, i // 4, [i % 4]) for i in range(4 * SPLIT)],
    [_channel(4 * i, i, []) for i in range(SPLIT, LATENTS // 4)],
]


class Plane(NamedTuple):
    """A digit of a channel; group: of the importance map, the one that opens it."""

    number: int  # of the channel
    channel: Channel
    factor: int
    group: int

    def log2_scale(self) -> float:
        """The usual one, in finest units."""
        return self.channel.log2_scale() - math.log2(self.factor)


def _planes(fine: int) -> list[Plane]:
    out = []
    for number, channel in sorted(enumerate(_CHANNELS[fine]), key=lambda item: -item[1].log2_scale()):
        digits = 1 if fine or number % 64 >= 16 else 2 if number % 64 else 3
        out += [Plane(number, channel, factor, _group(channel)) for factor in FACTORS[-digits:]]
    return out


def _group(channel: Channel) -> int:
    """Groups are the smaller, the earlier."""
    coarse, fine = (sum(c.log2_scale() > channel.log2_scale() for c in channels) for channels in _CHANNELS)
    return int(GROUPS * ((coarse + 4 * fine) / LATENTS) ** 0.5)


PLANES = _planes(0), _planes(1)


def relatives(count: int) -> list[list[int]]:
    """For each plane of both volumes, the numbers of those, coded before it, that are nearest in frequency."""
    channels = [plane.channel for planes in PLANES for plane in planes]
    return [
        sorted(range(i), key=lambda j: (channel.distance(channels[j]), -j))[:count]
        for i, channel in enumerate(channels)
    ]
