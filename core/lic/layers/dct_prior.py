"""The prior of a JPEG's quantised coefficients: a network, in integers, that predicts each from those known before it.

After Guo et al., "Practical Learned Lossless JPEG Recompression with Multi-Level Cross-Channel Entropy Model in the DCT
Domain" (CVPR 2022), for the order from low frequencies to high ones, component by component.

    DC, other components, quantisation table -> stream --> + -> block -> mean and scale -> entropy coder
                                                 ^                        7 groups of frequencies, 2 passes each,
                                                 +---- what is coded ----+  as a chessboard's black and white

It works on blocks of 8x8 samples. All is known of a group before the next one is coded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lic.layers import cameras
from lic.layers.band_prior import FEATURE, Residual, compress, sums_of_3x3, to_multiple
from lic.layers.coefficients import SCALE_STEPS, Calibration, choose_tables, logistic_bits, prediction
from lic.layers.integer import Convolution, add, learns, rectified, rectify, signed
from lic.layers.jpeg import LARGEST
from lic.layers.lifting import FRACTION

# Coefficients in zigzag order, by diagonals: 1, 2, 3, 4, 5 and 6, 7 and 8, 9 to 14.
GROUPS = [slice(*ends) for ends in ((1, 3), (3, 6), (6, 10), (10, 15), (15, 28), (28, 43), (43, 64))]
SIDE = 2 * len(GROUPS)  # of features of what other components have

_STREAM, _HIDDEN, _CONTEXT = signed(2), rectified(2), rectified(3)
_MIXED, _MEAN_SCALE = rectified(3), rectified(4)


class Pass(NamedTuple):
    """What is coded at once: those coefficients of a group that are used, (N, coefficients) bool, of blocks of one
    colour of the chessboard, 0 (the corner's) or 1."""

    group: slice
    used: Tensor
    colour: int

    def here(self, x: Tensor) -> Tensor:
        """Where they are in (N, coefficients, h, w): bool, of the same shape."""
        return self.used[..., None, None] & (squares(x) == self.colour)

    def take(self, x: Tensor) -> Tensor:
        """Its part (count,) of (N, coefficients, h, w)."""
        return x[self.here(x)]

    def tables(self, mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `choose_tables` says of its part."""
        return choose_tables(*(self.take(x) for x in prediction(mean, log_scale)))

    def put(self, values: Tensor, shape: torch.Size) -> Tensor:
        """The inverse; zero elsewhere."""
        out = values.new_zeros(shape)
        out[self.here(out)] = values
        return out


Code = Callable[[Pass, Tensor, Tensor], Tensor]  # see `DctPrior.forward`


def squares(x: Tensor) -> Tensor:
    """The colours of the blocks of (..., h, w): (h, w) int64."""
    rows, columns = (torch.arange(count, device=x.device) for count in x.shape[-2:])
    return (rows[:, None] + columns) % 2


def amounts(coefficients: Tensor, table: Tensor) -> Tensor:
    """What a component has in each group: the sums of absolute values, dequantised, (N, groups, h, w) int32, of its
    coefficients (N, 64, h, w) int32 and its table (N, 64)."""
    x = coefficients.abs() * table[..., None, None].int()
    return torch.stack([x[:, group].sum(1, dtype=torch.int32) for group in GROUPS], 1)


def beside(before: list[Tensor], dc: Tensor) -> Tensor:
    """The `amounts` of components that come before one with dc (N, 1, h, w), as it sees them: (N, SIDE, h, w) int32, 0
    for those that there aren't. Of each block, their means over what it covers, or those where it lies."""
    zeros = dc.new_zeros(len(dc), SIDE - len(GROUPS) * len(before), *dc.shape[2:])
    return torch.cat([*(_fitted(each, *dc.shape[2:]) for each in before), zeros], 1)


def _fitted(x: Tensor, height: int, width: int) -> Tensor:
    """(N, C, h, w) int32 -> (N, C, height, width), rounded down."""
    rows, columns = (round(have / want) for have, want in zip(x.shape[2:], (height, width), strict=True))
    whole = to_multiple(x, max(rows, columns))[..., : rows * height, : columns * width]
    parts = whole.unflatten(3, (width, columns)).unflatten(2, (height, rows))
    return torch.div(parts.sum((3, 5)), rows * columns, rounding_mode="floor").int()


# Of each step, 8 times its logarithm to base 2, less 28; 0 stands for half a step.
_LOGARITHMS = torch.tensor(
    [round(8 * math.log2(max(step, 0.5))) - 28 for step in range(LARGEST + 1)], dtype=torch.int16
)


class DctPrior(nn.Module):
    """Of one component, given those before it. depth: residual blocks a group."""

    def __init__(self, conv: type[Convolution], depth: int, stream: int = 96, channels: int = 64):
        super().__init__()
        self.form = conv.form
        self.table = conv(64, stream, 1, FEATURE, _STREAM)
        self.inputs, self.blocks, self.contexts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.mix, self.hidden, self.out = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        known = 2 + SIDE
        for group in GROUPS:
            coded = group.stop - group.start
            self.inputs.append(conv(known, stream, 3, FEATURE, _STREAM))
            blocks = [Residual(conv, stream, stream, _STREAM, _HIDDEN) for _ in range(depth)]
            self.blocks.append(nn.Sequential(*blocks))
            self.contexts.append(conv(coded, channels, 3, FEATURE, _CONTEXT))
            self.mix.append(conv(stream + channels, channels, 1, _CONTEXT, _MIXED, biases=2))
            self.hidden.append(conv(channels, channels, 1, _MIXED, _MEAN_SCALE))
            self.out.append(conv(channels, 2 * coded, 1, _MEAN_SCALE, None))
            known = coded

    def features(self, dc: Tensor, table: Tensor, others: Tensor) -> Tensor:
        """dc (N, 1, h, w) int32, table (N, 64) and `amounts` of other components (N, SIDE, h, w) int32 ->
        (N, 2 + SIDE, h, w) integers -64..63."""
        step = table[:, :1, None, None].int()
        around = torch.div(sums_of_3x3(dc), 9, rounding_mode="floor").int()
        eighth = 1 << FRACTION - 3  # of a sample's unit
        relative = compress(((dc - around) * step * eighth).int())
        brightness = (dc * step >> 4).clamp(-64, 63).short()
        return torch.cat([relative, brightness, compress(others << FRACTION - 2)], 1)

    def forward(self, dc: Tensor, table: Tensor, others: Tensor, code: Code) -> Tensor:
        """Code a component, or predict it. dc, table, others: as in `features`, the table 0 where no block has the
        coefficient, or 1..255.

        code(pass, mean, log_scale) is called for each pass, with real numbers (N, coefficients, h, w) for all blocks,
        and gives the coefficients of the pass's blocks, int32, and zeros for others. Returns (N, 64, h, w) int32.
        """
        n, _, h, w = dc.shape
        logarithms = _LOGARITHMS.to(dc.device)[table.long()]
        stream = self.table(self.form(logarithms[..., None, None], FEATURE)).expand(n, -1, h, w)
        known, out = self.features(dc, table, others), [dc]
        layers = (self.inputs, self.blocks, self.contexts, self.mix, self.hidden, self.out)
        for group, into, block, context, mix, hidden, last in zip(GROUPS, *layers, strict=True):
            stream = block(add(stream, into(self.form(known, FEATURE))))
            trunk = rectify(stream)
            values = dc.new_zeros(n, group.stop - group.start, h, w)
            for colour in (0, 1):
                around = context(self.form(compress(values << FRACTION), FEATURE))
                mean, scale = last(hidden(mix(torch.cat([trunk, around], 1), colour))).chunk(2, 1)
                values = values + code(Pass(group, table[:, group] > 0, colour), mean, scale)
            known = compress(values << FRACTION)
            out.append(values)
        return torch.cat(out, 1)


def learn(priors: nn.ModuleList, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A training step of those of the priors that learn: the loss, in nats, and bits a sample of each."""
    losses, out = [], {}
    for prior, part, name in zip(priors, _parts(pixels, generator), _NAMES, strict=True):
        if learns(prior):
            per_sample = _bits(prior, *part)
            losses.append(torch.log(per_sample + _LEAST).mean())
            out["bits_" + name] = per_sample.mean()
    return {"loss": torch.stack(losses).sum()} | out


def _bits(prior: nn.Module, coefficients: Tensor, table: Tensor, others: Tensor) -> Tensor:
    """Bits a sample (N,) of coefficients (N, 64, h, w), but for DC."""
    bits: list[Tensor] = []

    def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
        here = this.here(mean)
        q = coefficients[:, this.group] * here
        bits.append((logistic_bits(q - 0.5, q + 0.5, mean, log_scale) * here).sum((1, 2, 3)))
        return q

    prior(coefficients[:, :1], table, others, code)
    return torch.stack(bits).sum(0) / coefficients[0].numel()


@torch.inference_mode()
def calibrated(priors: nn.ModuleList, pictures: list[np.ndarray]) -> dict[str, Tensor]:
    """Tables from the coefficients that pictures have as JPEG files."""
    counts, generator = Calibration(SCALE_STEPS), torch.Generator().manual_seed(0)
    for pixels in tqdm(pictures, desc="calibrating for JPEG", unit="picture", disable=None):
        picture = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
        for prior, part in zip(priors, _parts(picture, generator), strict=True):
            _count(counts, prior, *part)
    return counts.packed()


def _count(counts: Calibration, prior: nn.Module, coefficients: Tensor, table: Tensor, others: Tensor) -> None:
    def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
        q = this.take(coefficients[:, this.group])
        index, nearest, sign = this.tables(mean, log_scale)
        counts.count(index, sign * (q - nearest))
        return this.put(q, mean.shape)

    prior(coefficients[:, :1], table, others, code)


def _parts(pixels: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pictures as JPEG files: coefficients, tables and `beside` of luma, and of both kinds of chroma."""
    height, width = (side - side % 16 for side in pixels.shape[2:])
    components = cameras.compressed(pixels[..., :height, :width], generator)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    before: list[Tensor] = []
    for coefficients, table in components:
        parts.append((coefficients, table, beside(before, coefficients[:, :1])))
        before.append(amounts(coefficients, table))
    luma, *chroma = parts
    coefficients, table, others = (torch.cat(both) for both in zip(*chroma, strict=True))
    return [luma, (coefficients, table, others)]


_NAMES = "luma", "chroma"
_LEAST = 0.02  # bits a sample, added so that what is nearly empty counts little
