"""A learned factorised prior: one density a channel; and integer tables out of it, for any quantisation step.

A cumulative is a monotone network, as in arXiv 1802.01436, appendix 6.1, here one of a single hidden layer: a weighted
sum of sigmoids, hence a mixture of logistics. It is that of the values before quantisation, in finest steps
(lic.layers.gain), so that one density serves every step: a symbol's probability is its integral over the step.

In a weights file the cumulatives are integers at fixed knots, linear between them, as if the density were piecewise
constant (much as in arXiv 1611.01704), and a table follows from them by integer arithmetic alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.entropy import PRECISION, Decoder, Encoder, Table
from lic.errors import FormatError
from lic.layers.gain import RATIO_UNIT

COMPONENTS = 3
SPEED = 32  # the parameters are this much smaller than what they stand for: they learn so much faster

# In 1 / RATIO_UNIT finest steps: 0 and, on both sides, four an octave from 1/8 step to 2**15 steps.
_POSITIVE = [round(RATIO_UNIT / 8 * 2 ** (i / 4)) for i in range(18 * 4 + 1)]
KNOTS = np.array([-k for k in reversed(_POSITIVE)] + [0] + _POSITIVE, np.int64)
_TAIL = 2 ** (PRECISION - 16)  # what lies outside a table, on each side
_REACH = 511  # the largest symbol of a table


class FactorizedPrior(nn.Module):
    def __init__(self, typical: Tensor):
        """typical (C,): what scale to expect in each channel, in finest steps."""
        super().__init__()
        channels = len(typical)
        spread = torch.linspace(-1.5, 1.5, COMPONENTS)
        self.weights = nn.Parameter(torch.zeros(channels, COMPONENTS))
        self.means = nn.Parameter(torch.zeros(channels, COMPONENTS))
        self.log_scales = nn.Parameter((typical.log()[:, None] + spread) / SPEED)

    def bits(self, symbols: Tensor, log2_ratios: Tensor) -> Tensor:
        """symbols (N, C, H, W), integers or with uniform noise added, and log2_ratios (N, C, 1, 1), the logarithms of
        the steps in finest steps -> bits of each symbol. In log space throughout: an outlier keeps its gradient."""
        ratio = torch.exp2(log2_ratios)
        weights = F.log_softmax(self.weights * SPEED, 1)
        logarithms = []
        for k in range(COMPONENTS):
            scale = torch.exp(self.log_scales[:, k] * SPEED).view(-1, 1, 1)
            rate = (ratio / scale).clamp(1e-4, 1e3)
            distance = (symbols - self.means[:, k].view(-1, 1, 1) * (SPEED * scale) / ratio).abs()
            inside = F.logsigmoid((0.5 - distance) * rate) + F.logsigmoid((0.5 + distance) * rate)
            logarithms.append(inside + torch.log(-torch.expm1(-rate)) + weights[:, k].view(-1, 1, 1))
        return torch.logsumexp(torch.stack(logarithms), 0) * (-1 / math.log(2))

    def cumulatives(self) -> Tensor:
        """The cumulative of each channel at KNOTS, (C, len(KNOTS)) int32, 1 being 2**PRECISION."""
        weights, means, log_scales = (p.detach().cpu().double() * SPEED for p in self.parameters())
        knots = torch.from_numpy(KNOTS / RATIO_UNIT)[:, None]
        sigmoids = torch.sigmoid(knots / log_scales.exp()[:, None] - means[:, None])  # (C, knots, COMPONENTS)
        cumulative = (sigmoids * weights.softmax(1)[:, None]).sum(2)
        return (cumulative * 2**PRECISION).round().int()


def tables(cumulatives: NDArray[np.int32], ratios: NDArray[np.int64]) -> list[Table]:
    """A table for each channel: cumulatives (C, len(KNOTS)) and steps (C,) in 1 / RATIO_UNIT finest steps."""
    out = []
    for cumulative, ratio in zip(cumulatives.astype(np.int64), ratios.tolist(), strict=True):
        low, high = np.searchsorted(cumulative, [_TAIL, 2**PRECISION - _TAIL]) - (1, 0)
        first = max(-_REACH, min(0, int(KNOTS[max(low, 0)]) // ratio))
        last = min(_REACH, max(0, -(-int(KNOTS[min(high, len(KNOTS) - 1)]) // ratio)))
        edges = ((2 * np.arange(first, last + 2) - 1) * ratio // 2).clip(KNOTS[0], KNOTS[-1])
        at = np.searchsorted(KNOTS, edges, "right").clip(1, len(KNOTS) - 1)
        (left, right), (below, above) = (KNOTS[at - 1], KNOTS[at]), (cumulative[at - 1], cumulative[at])
        mass = np.diff(below + (above - below) * (edges - left) // (right - left))
        frequencies = 1 + (mass * (2**PRECISION - len(mass) - 1) >> PRECISION)
        out.append(Table(first, np.insert(frequencies, 0, 2**PRECISION - frequencies.sum())))
    return out


def encode(encoder: Encoder, symbols: NDArray[np.int32], family: list[Table]) -> None:
    """symbols (C, H, W), a table for each channel."""
    for plane, table in zip(symbols, family, strict=True):
        encoder.encode_shared(plane.ravel(), table)


def decode(decoder: Decoder, size: tuple[int, int], family: list[Table], truncated: bool = False) -> NDArray[np.int32]:
    """The inverse; where the data is cut off, channels that are missing are zero."""
    symbols = np.zeros((len(family), size[0] * size[1]), np.int32)
    try:
        for plane, table in zip(symbols, family, strict=True):
            plane[:] = decoder.decode_shared(len(plane), table)
    except FormatError:
        if not truncated:
            raise
    return symbols.reshape(-1, *size)
