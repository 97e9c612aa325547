"""Soft-to-hard vector quantisation (Agustsson et al., NeurIPS 2017, arXiv 1704.00648), and integer tables for what it
gives.

A codebook's centres are shared by many *rows*, sequences of vectors with statistics of their own. A vector z belongs to
centre c_j as far as the softmax of -sharpness * |z - c_j|^2 says (the paper calls the sharpness sigma): to all of them
a little where it is small, to the nearest alone in the limit. Training raises it step by step. The histogram of a row's
assignments is its prior, its rate their cross-entropy under it (section 3.2).

Beyond the paper, the bits that a centre costs count as distance, as in entropy-constrained vector quantisation (Chou,
Lookabaugh, Gray, 1989), and centres and histograms are kept at anchors of position (lic.layers.gain), one an octave,
and interpolated between them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.entropy import PRECISION, Table
from lic.layers.gain import OCTAVE, POWERS

CENTRES = 256  # of a codebook; the first is nearly zero
ANCHORS = 5
LAST = (ANCHORS - 1) * OCTAVE  # the largest position of codebooks
LAGRANGIAN = 0.1  # squared quantisation steps that a bit is worth
SPEED = 32  # centres are kept this much smaller: they learn so much faster
BITS_UNIT = 16  # weights files have bits in 1 / BITS_UNIT
_FLOOR = 0.02  # vectors that every centre is taken to have seen
_KEEP = 0.997  # share of a histogram that outlasts a picture
_BELIEF = 2.0**14  # vectors that a histogram from a weights file counts as much as


def companded() -> Tensor:
    """(CENTRES, 1): all integers to 38, then wider and wider apart, to 406."""
    numbers = torch.arange(1, CENTRES // 2 + 1).float()
    positive = numbers.where(numbers < 38, 38 * torch.exp(numbers / 38 - 1))
    return torch.cat([torch.zeros(1), positive, -positive[:-1]])[:, None]


def first_centres(dimension: int, widest: float) -> Tensor:
    """(CENTRES, dimension): k-means of Laplacians whose scales, one a vector, are 2**-2 to 2**widest. Small vectors are
    left out: whatever belongs to a centre near zero costs less bits at zero."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, 8000, dimension, generator=generator)
    scales = torch.exp2(-2 + (widest + 2) * torch.rand(8000, 1, generator=generator))
    samples = -uniform[0].clamp(min=1e-6).log() * (uniform[1] - 0.5).sign() * scales
    samples = samples[samples.abs().amax(1) > 0.5]
    centres = samples[:CENTRES]
    for _ in range(8):
        centres[0] = 0
        nearest = (2 * samples @ centres.T - centres.square().sum(1)).argmax(1)
        counts = torch.bincount(nearest, minlength=CENTRES)[:, None]
        means = torch.zeros_like(centres).index_add_(0, nearest, samples) / counts.clamp(min=1)
        centres = torch.where(counts > 0, means, centres)
    centres[0] = 0
    return centres


def tables(bits: NDArray[np.uint8], position: int) -> list[Table]:
    """A table for each row, at a position 0..LAST, out of bits (ANCHORS, rows, CENTRES) in 1 / BITS_UNIT."""
    below = min(position // OCTAVE, ANCHORS - 2)
    share = position - below * OCTAVE
    first, second = bits[below : below + 2].astype(np.int64)
    logarithms = -((first * (OCTAVE - share) + second * share) // BITS_UNIT)  # in 1 / OCTAVE
    weights = POWERS[logarithms % OCTAVE] >> -(logarithms // OCTAVE)
    frequencies = 1 + weights * (2**PRECISION - CENTRES - 1) // weights.sum(1, keepdims=True)
    return [Table(0, np.insert(row, 0, 2**PRECISION - row.sum())) for row in frequencies]


class Codebook(nn.Module):
    """Centres, and how often each row's vectors were assigned to them."""

    counts: Tensor

    def __init__(self, rows: int, centres: Tensor):
        super().__init__()
        self.centres = nn.Parameter(centres.repeat(ANCHORS, 1, 1) / SPEED)
        self.register_buffer("counts", torch.full((ANCHORS, rows, CENTRES), 0.1))
        self.counts[..., 0] *= CENTRES  # half of the vectors are zero, until more is known

    def centres_at(self, position: Tensor) -> Tensor:
        """position () in octaves -> (CENTRES, dimension)."""
        below, share = _between(position)
        return torch.lerp(self.centres[below], self.centres[below + 1], share) * SPEED

    def bits_at(self, position: Tensor) -> Tensor:
        """position () in octaves -> what each centre costs, (rows, CENTRES)."""
        below, share = _between(position)
        logarithms = (self.counts[below : below + 2] + _FLOOR).log()
        return torch.lerp(logarithms[0], logarithms[1], share).log_softmax(1) * (-1 / math.log(2))

    def soft(self, vectors: Tensor, position: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A step of training: vectors (rows, n, dimension) -> what they are quantised to, likewise; their bits, ();
        each one's largest assignment, (rows, n); and how far hard assignment would move it, (rows, n, dimension).

        The histograms of the anchors on both sides follow.
        """
        centres, bits = self.centres_at(position), self.bits_at(position)
        offsets = -sharpness * (centres.square().sum(1) + LAGRANGIAN * bits)
        factors = (2 * sharpness * centres.T).expand(len(vectors), -1, -1)
        assignments = torch.baddbmm(offsets[:, None], vectors, factors).softmax(2)
        totals = assignments.sum(1)
        self.count(totals.detach(), position, _KEEP)
        values = assignments @ centres
        largest, nearest = assignments.detach().max(2)
        return values, (totals * bits).sum(), largest, (centres[nearest] - values).detach()

    @torch.no_grad()
    def count(self, totals: Tensor, position: Tensor, keep: float = 1.0) -> None:
        """Add assignments (rows, CENTRES) to the histograms of the anchors on both sides."""
        below, share = _between(position)
        self.counts *= keep
        self.counts[below] += (1 - share) * totals
        self.counts[below + 1] += share * totals

    def nearest(self, vectors: Tensor, position: Tensor) -> Tensor:
        """Hard assignment: vectors (rows, n, dimension) -> numbers of centres (rows, n), int64."""
        centres = self.centres_at(position)
        offsets = centres.square().sum(1) + LAGRANGIAN * self.bits_at(position)
        rows = zip(vectors, offsets, strict=True)  # one at a time, for want of memory
        return torch.stack([(row @ (2 * centres.T) - offset).argmax(1) for row, offset in rows])

    def shipped_bits(self) -> Tensor:
        """What each centre costs at the anchors, as weights files have it: (ANCHORS, rows, CENTRES) uint8."""
        bits = (self.counts + _FLOOR).log().log_softmax(2) * (-BITS_UNIT / math.log(2))
        return bits.round().clamp(0, 255).byte()

    def start_from(self, bits: Tensor) -> None:
        """The inverse."""
        self.counts.copy_(_BELIEF * torch.exp2(bits.float() / -BITS_UNIT))


def _between(position: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor below, which isn't the last, and how far the position is on the way to the next."""
    below = position.long().clamp(max=ANCHORS - 2)
    return below, position - below
