"""Generalised divisive normalisation, GDN, and its approximate inverse, IGDN (arXiv 1611.01704, equations 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GDN(nn.Module):
    """y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2); the inverse multiplies instead.

    The parameters are kept as square roots, so that beta and gamma stay positive; they start near the identity.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta_root = nn.Parameter(torch.ones(channels))
        self.gamma_root = nn.Parameter(torch.full((channels, channels), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        gamma, beta = self.gamma_root.square()[..., None, None], self.beta_root.square() + 1e-6
        norm = F.conv2d(x.square(), gamma, beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())
