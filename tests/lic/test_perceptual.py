"""What training and encoders go by is what is measured, and can be differentiated."""

import numpy as np
import pytest
import torch

from lic.evaluation import metrics
from lic.layers import perceptual
from tests.lic.conftest import natural


def pair(height, width):
    before = natural(height, width, 3, seed=0)
    after = (before * 0.9 + natural(height, width, 3, seed=1) // 8).round().astype(np.uint8)
    return before, after


def batch(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()


def test_what_is_seen_is_what_is_measured():
    before, after = pair(232, 240)
    a, b = batch(before), batch(after)
    assert float(perceptual.ssimulacra2(a, b)) == pytest.approx(metrics.ssimulacra2(before, after), abs=0.1)
    assert float(perceptual.ms_ssim(a, b)) == pytest.approx(metrics.ms_ssim(before, after), abs=1e-4)


@pytest.mark.parametrize("measure", [perceptual.ssimulacra2, perceptual.ms_ssim])
def test_gradients_say_how_it_changes(measure):
    a, b = (batch(x) for x in pair(96, 112))
    (gradient,) = torch.autograd.grad(measure(a, b.requires_grad_()).sum(), b)
    with torch.no_grad():
        step = 0.02 * (b - a)
        change = float(measure(a, b + step) - measure(a, b - step))
    assert change < 0
    assert change == pytest.approx(2 * float((gradient * step).sum()), rel=0.02)


@pytest.mark.parametrize("sides", [(1, 1), (2, 9), (11, 5), (23, 160)])
def test_small_pictures_and_equal_ones(sides):
    a, b = (batch(x) for x in pair(*sides))
    assert float(perceptual.ssimulacra2(a, a)) > 99.7
    assert float(perceptual.ms_ssim(a, a)) == pytest.approx(1, abs=1e-5)
    b.requires_grad_()
    seen = perceptual.ssimulacra2(a, b).sum() + perceptual.ms_ssim(a, b).sum()
    assert torch.autograd.grad(seen, b)[0].isfinite().all()
