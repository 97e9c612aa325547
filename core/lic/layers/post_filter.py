"""The post-filter: a network, in integers, that adds to a decoded picture what coding took away; and what trains it.

It works on squares of 2x2 pixels, folded into channels, and makes several corrections, of which each picture needs
other amounts (lic.layers.amounts).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lic.layers.amounts import CORRECTIONS, least_squares, unfolded
from lic.layers.band_prior import FEATURE, Residual, step_features, to_multiple
from lic.layers.integer import Convolution, rectified, signed

_STREAM, _HIDDEN = signed(6), rectified(5)
ALIGNED = 2  # what the corner of a picture's part has to be a multiple of, to be filtered alike


class PostFilter(nn.Module):
    """The picture folded into channels, and the step -> residual blocks -> corrections, in units of the step."""

    def __init__(self, conv: type[Convolution], channels: int = 64, blocks: int = 3, corrections: int = CORRECTIONS):
        super().__init__()
        self.form = conv.form
        self.reach = 2 * (2 * blocks + 2)  # how far from a pixel what decides on it lies
        self.input = conv(2 * 12 + 1, channels, 3, FEATURE, _STREAM)
        self.blocks = nn.Sequential(*[Residual(conv, channels, channels, _STREAM, _HIDDEN) for _ in range(blocks)])
        self.out = conv(channels, corrections * 12, 3, _STREAM, None)

    def forward(self, picture: Tensor, step: Tensor) -> Tensor:
        """picture (N, 3, H, W) int32 in 1 / 2**FRACTION steps, step (N,) int64 in 1 / STEP_UNIT
        -> (N, corrections, 12, H/2, W/2) float32, in steps, sides rounded up, as `unfolded` takes them. The first
        correction is what most pictures need."""
        picture = to_multiple(picture, 2)
        halves = (picture * step.int().view(-1, 1, 1, 1) + (1 << 12)) >> 13  # of an 8-bit pixel value
        squares = F.pixel_unshuffle(halves.clamp(-1024, 1023).short(), 2)
        n, _, h, w = squares.shape
        logarithms = (step_features(step) >> 2).expand(n, 1, h, w)
        features = torch.cat([squares >> 4, logarithms, squares & 15], 1)
        x = self.blocks(self.input(self.form(features, FEATURE)))
        return self.out(x).unflatten(1, (-1, 12))


class Decoded(NamedTuple):
    """Pictures before the post-filter (N, 3, H, W) int32, the originals less them in steps, and the steps (N,): see
    `PostFilter`. Or one picture, without the N."""

    picture: Tensor
    error: Tensor
    step: Tensor


class Replay:
    """The last decoded pictures of a training, all of one size: each is worth to be seen more than once, as it costs
    more to code it than to filter it. Checkpoints don't have them: a run that goes on begins to collect anew."""

    _LIMIT = 1000
    _WINDOWS, _SIDE = 8, 192  # how many windows are drawn at once, and their sides in pixels

    def __init__(self) -> None:
        self._kept: list[Decoded] = []

    def add(self, decoded: Decoded) -> None:
        for picture, error, step in zip(*decoded, strict=True):
            self._kept.append(Decoded(picture.cpu(), error.half().cpu(), step.cpu()))
        del self._kept[: -self._LIMIT]

    def suffices(self, generator: torch.Generator) -> bool:
        """Whether there is no need to add one now."""
        return len(self._kept) > self._LIMIT // 4 and float(torch.rand(1, generator=generator)) < 0.75

    def draw(self, generator: torch.Generator) -> Decoded:
        """Windows of them, rows and columns exchanged at random, on the CPU.

        Nothing is mirrored: even and odd samples have other errors, and the filter knows which they are.
        """
        drawn = []
        for i in torch.randint(len(self._kept), (self._WINDOWS,), generator=generator).tolist():
            picture, error, step = self._kept[i]
            height, width = picture.shape[1:]
            free = (max(side - self._SIDE, 0) // ALIGNED + 1 for side in (height, width))
            top, left = (ALIGNED * int(torch.randint(count, (1,), generator=generator)) for count in free)
            exchanged = float(torch.rand(1, generator=generator)) < 0.5
            window = (..., slice(top, top + self._SIDE), slice(left, left + self._SIDE))
            pair = picture[window], error[window].float()
            drawn.append((*(x.transpose(1, 2) if exchanged else x for x in pair), step))
        return Decoded(*(torch.stack(x) for x in zip(*drawn, strict=True)))


def remaining(post_filter: PostFilter, decoded: Decoded) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors (N,), in squared steps: before the filter, after its first correction, and after as much of each
    as is best. A margin does not count: the filter would have seen farther than the picture goes."""
    height, width = decoded.error.shape[2:]
    margin = min(16, height // 4, width // 4)
    inside = (..., slice(margin, height - margin), slice(margin, width - margin))
    corrections, error = unfolded(post_filter(decoded.picture, decoded.step))[inside], decoded.error[inside]
    with torch.autocast(error.device.type, enabled=False):
        corrections = corrections.float()
        best = (least_squares(corrections, error) * corrections).sum(1)
        return tuple(x.square().mean((1, 2, 3)) for x in (error, error - corrections[:, 0], error - best))  # type: ignore[return-value]
