"""Where errors are seen: what files that are tuned for the look do about it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lic
from lic.errors import FormatError
from lic.layers.band_prior import STEP_UNIT
from lic.layers.lifting import FRACTION
from lic.layers.visibility import finer
from lic.models import wavelet
from tests.lic.conftest import natural


def decoded(luma: torch.Tensor, step: int, level: int) -> torch.Tensor:
    """Grey pictures (N, 1, H, W) of pixel values less 128, as a decoder has them so many levels up."""
    return (luma * (3**0.5 * 2**level * STEP_UNIT / step * 2**FRACTION)).round().int().repeat(1, 3, 1, 1)


@pytest.mark.parametrize("level", [1, 3, 6])
@pytest.mark.parametrize("step", [STEP_UNIT, 20 * STEP_UNIT, 200 * STEP_UNIT])
def test_steps_follow_what_structural_similarity_says(level, step):
    """A quarter of an octave for each halving of 2 * variance + C2."""
    luma = 40 * torch.randn(1, 1, 30, 40, generator=torch.Generator().manual_seed(level))
    luma *= torch.linspace(0, 1, 40)
    around = F.pad(luma.double(), [1] * 4, mode="replicate")
    mean, square = (F.avg_pool2d(x, 3, 1) for x in (around, around.square()))
    expected = torch.log2(200 / (2 * (square - mean.square()) + (0.03 * 255) ** 2)).clamp(-4, 2)
    got = finer(decoded(luma, step, level), step, level)
    assert got.shape == luma.shape
    assert got.unique().tolist() == [-4, -3, -2, -1, 0, 1, 2]
    assert (got - expected).abs().max() < 0.75  # rounded, of rounded values


@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (3, 2)])
def test_nothing_hides_errors_in_flat_pictures(sides):
    assert (finer(torch.full((1, 3, *sides), 1000, dtype=torch.int32), 2000, 3) == 2).all()


def test_a_visual_file_spends_its_bits_where_it_is_smooth():
    """As many bits, and the smooth half better, the busy half worse."""
    smooth = natural(128, 128, 3)
    busy = np.random.default_rng(0).integers(0, 256, smooth.shape, np.uint8)
    pixels = np.concatenate([smooth, busy], 1)

    def errors(**options) -> list[float]:
        decoded = lic.decode(lic.encode(pixels, **options)).pixels.astype(float)
        return [float(((decoded - pixels)[:, half] ** 2).mean()) for half in (slice(0, 112), slice(144, 256))]

    data = lic.encode(pixels, quality=50)
    equal, visual = errors(quality=50), errors(target_size=len(data), tune="visual")
    assert visual[0] < equal[0]
    assert visual[1] > equal[1]


def test_a_visual_file_has_its_errors_in_blue():
    pixels = np.random.default_rng(1).integers(96, 160, (96, 96, 3), np.uint8)
    errors = {}
    for tune in ("psnr", "visual"):
        decoded = lic.decode(lic.encode(pixels, target_psnr=32, tune=tune)).pixels.astype(float)
        errors[tune] = ((decoded - pixels) ** 2).mean((0, 1))
    red, green, blue = errors["visual"] / errors["psnr"]
    assert green < red < blue


@pytest.mark.parametrize("header", [b"\0\0\0", b"\1\0\x10", b"\1\0\1\0\0\0\0\0\x11", b"\1\0\4\x80\x80\x3f"])
def test_a_damaged_header_is_told(header):
    with pytest.raises(FormatError):
        wavelet._Header.read(header + b"\0")
