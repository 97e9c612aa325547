"""Scalar quantisation to learned centres, soft-to-hard (arXiv 1801.04260, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POSITIVE = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8.5, 10.5, 13, 16.5, 21, 28, 38, 52, 72])  # where centres start
REACH = len(_POSITIVE)  # symbols, a centre's number each, are -REACH..REACH
CENTRES = 2 * REACH + 1
_SPEED = 4  # parameters are this much smaller than what they stand for: they learn so much faster


class Centres(nn.Module):
    """Centres that all latents share: zero, and others on both sides of it, further apart the further out.

    They are kept as the logarithms of the gaps between them, so that their order stays. The first ones are -1 and 1:
    their unit is the business of the gains.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_gaps = nn.Parameter(_POSITIVE.diff().log() / _SPEED)

    def centres(self) -> Tensor:
        """(CENTRES,), ascending."""
        positive = F.pad((self.log_gaps * _SPEED).exp(), (1, 0), value=1.0).cumsum(0)
        return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z, any real numbers -> the numbers of the nearest centres, float32, and the centres; in training, gradients
        are those of the mean of all centres under the shares."""
        symbols = self.symbols(z)
        values = self.values(symbols)
        if self.training:
            soft = self.shares(z) @ self.centres()
            values = soft + (values - soft).detach()
        return symbols.float(), values

    def shares(self, z: Tensor) -> Tensor:
        """How much each centre is meant, (*z.shape, CENTRES): a softmax of squared distances, which we
        take in units of the gap around z. Gradients are for z alone: centres that the rate pulls move outwards, and all
        becomes coarser."""
        centres = self.centres().detach()
        gaps = F.pad(centres.diff()[None], (1, 1), mode="replicate")[0]
        widths = (gaps[1:] + gaps[:-1]) / 2
        return torch.softmax(-((z[..., None] - centres) / widths[self.symbols(z) + REACH, None]).square(), -1)

    def symbols(self, z: Tensor) -> Tensor:
        """The numbers of the nearest centres, int64."""
        centres = self.centres().detach()
        return torch.bucketize(z.detach().contiguous(), (centres[1:] + centres[:-1]) / 2) - REACH

    def values(self, symbols: Tensor) -> Tensor:
        """The centres of that number, float32."""
        return self.centres()[symbols.long() + REACH]


def first_logarithms(log2_scales: Tensor) -> Tensor:
    """Logarithms to base 2 of the first centres' probabilities under Laplacians, whose scales have those logarithms
    (S,): (S, CENTRES)."""
    centres = torch.cat([-_POSITIVE.flip(0), torch.zeros(1), _POSITIVE])
    edges = ((centres[1:] + centres[:-1]) / 2).double() * 2**0.5 / torch.exp2(log2_scales.double())[:, None]
    cumulative = torch.where(edges < 0, edges.exp() / 2, 1 - (-edges).exp() / 2)
    inside = F.pad(cumulative, (1, 1))
    inside[:, -1] = 1
    return inside.diff(dim=1).clamp(min=2.0**-14).log2().float()
