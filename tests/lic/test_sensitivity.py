"""Errors count where they are seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lic
from lic.layers import lifting, perceptual, sensitivity, tiles
from lic.models import wavelet
from tests.lic.conftest import natural

PICTURE = Path(__file__).parents[2] / "docs" / "kodim23.png"
STEP = 10 * 128
WEIGHTING = wavelet.WEIGHTING["visual"]


def noisy(height, width, seed=0):
    original = torch.from_numpy(natural(height, width, 3, seed=seed)).permute(2, 0, 1)[None].float()
    return original, original + 4 * torch.randn(original.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (97, 130)])
def test_weights_of_any_size(sides):
    original, decoded = noisy(*sides)
    slopes = sensitivity.gradient(original, decoded)
    got = sensitivity.weights(slopes, (decoded - original) / 10, decoded / 10, STEP, WEIGHTING)
    _, bands = lifting.analyse(original, len(WEIGHTING))
    assert [x.shape for x in got] == [x.shape for x in bands]
    assert all(bool(((x > 0.3) & (x < 3.1)).all()) for x in got)


def test_all_count_alike_where_nothing_is_wrong():
    original, _ = noisy(64, 80)
    slopes = sensitivity.gradient(original, original)
    assert slopes.isfinite().all()
    for x in sensitivity.weights(slopes, torch.zeros_like(original), original / 10, STEP, WEIGHTING):
        assert bool((x == 1).all())


def test_errors_count_more_where_the_gradient_is_larger():
    original, decoded = noisy(128, 128)
    error = (decoded - original) / 10
    slopes = error * torch.linspace(0.5, 2, 128)
    left, right = sensitivity.weights(slopes, error, decoded / 10, STEP, [0] * 6)[0].chunk(2, 3)
    assert float(left.mean()) < 0.9 < 1.1 < float(right.mean())


def test_squares_are_looked_at_each_for_itself(monkeypatch):
    original, decoded = noisy(64, 96)
    monkeypatch.setattr(tiles, "TILE", 64)
    got = sensitivity.gradient(original, decoded)
    for part in (slice(0, 64), slice(64, 96)):
        alone = sensitivity.gradient(original[..., part], decoded[..., part])
        assert torch.allclose(got[..., part], alone, rtol=1e-4, atol=1e-6)


def test_files_are_better_for_it(monkeypatch):
    pixels = np.asarray(Image.open(PICTURE).convert("RGB"))[:256, :256]
    original = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()

    def cost():
        """Of which a per cent of the bits is a hundredth."""
        data = lic.encode(pixels, quality=60, tune="visual")
        decoded = torch.from_numpy(lic.decode(data).pixels.copy()).permute(2, 0, 1)[None].float()
        seen = 2 * torch.log(101 - perceptual.ssimulacra2(original, decoded))
        return float(seen + torch.log(1 - perceptual.ms_ssim(original, decoded))) / 2 + np.log(len(data))

    with_weights = cost()
    monkeypatch.setattr(wavelet.WaveletCodec, "_error_weights", lambda *_: None)
    assert with_weights < cost() - 0.005
