"""Where errors are seen: what files that are tuned for the look do about it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lic
from lic.errors import FormatError
from lic.layers.band_prior import STEP_UNIT
from lic.layers.integer import kernel_for
from lic.layers.lifting import FRACTION
from lic.layers.post_filter import PostFilter
from lic.layers.visibility import finer
from lic.models import wavelet
from tests.lic.conftest import natural


def decoded(luma: torch.Tensor, step: int, level: int) -> torch.Tensor:
    """Grey pictures (N, 1, H, W) of pixel values less 128, as a decoder has them so many levels up."""
    return (luma * (3**0.5 * 2**level * STEP_UNIT / step * 2**FRACTION)).round().int().repeat(1, 3, 1, 1)


@pytest.mark.parametrize(("level", "slope", "coarsest"), [(1, 1.25, -5), (3, 1, -4), (6, 0.8, -3)])
@pytest.mark.parametrize("step", [STEP_UNIT, 20 * STEP_UNIT, 200 * STEP_UNIT])
def test_steps_follow_what_structural_similarity_says(level, slope, coarsest, step):
    """So many quarters of an octave for each halving of 2 * variance + C2; less by one in the diagonal band."""
    luma = 40 * torch.randn(1, 1, 30, 40, generator=torch.Generator().manual_seed(level))
    luma *= torch.linspace(0, 1, 40)
    around = F.pad(luma.double(), [1] * 4, mode="replicate")
    mean, square = (F.avg_pool2d(x, 3, 1) for x in (around, around.square()))
    expected = slope * torch.log2(200 / (2 * (square - mean.square()) + (0.03 * 255) ** 2))
    got, vertical, diagonal = finer(decoded(luma, step, level), step, level).split(1, 1)
    assert torch.equal(got, vertical)
    assert torch.equal(got - 1, diagonal)
    assert got.shape == luma.shape
    assert got.unique().tolist() == list(range(coarsest, round(slope * 1.77) + 1))
    assert (got - expected.clamp(min=coarsest)).abs().max() < 0.75  # rounded, of rounded values


@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (3, 2)])
def test_nothing_hides_errors_in_flat_pictures(sides):
    bands = finer(torch.full((1, 3, *sides), 1000, dtype=torch.int32), 2000, 3)
    assert (bands == torch.tensor([2, 2, 1]).view(1, 3, 1, 1)).all()


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


@pytest.mark.parametrize("effort", [0, 5, 9])
@pytest.mark.parametrize(
    ("sides", "channels", "dtype"), [((1, 1), 3, "uint8"), ((37, 41), 1, "uint8"), ((9, 70), 4, "uint16")]
)
def test_visual_files_of_all_kinds_come_back(sides, channels, dtype, effort):
    pixels = natural(*sides, channels).astype(dtype) * (257 if dtype == "uint16" else 1)
    decoded = lic.decode(lic.encode(pixels, quality=90, tune="visual", effort=effort)).pixels
    assert (decoded.shape, decoded.dtype) == (pixels.shape, pixels.dtype)
    assert np.abs(decoded.astype(float) - pixels).mean() < np.iinfo(dtype).max / 40


def test_visual_files_have_a_filter_of_their_own(monkeypatch):
    pixels = natural(64, 64, 3)
    files = {tune: lic.encode(pixels, quality=40, tune=tune) for tune in ("psnr", "visual")}
    before = {tune: lic.decode(data).pixels for tune, data in files.items()}
    silent = PostFilter(kernel_for(torch.device("cpu")), corrections=1)
    choose = wavelet.WaveletCodec._filter
    monkeypatch.setattr(wavelet.WaveletCodec, "_filter", lambda *args: silent if args[1].masked else choose(*args))
    assert np.array_equal(lic.decode(files["psnr"]).pixels, before["psnr"])
    assert not np.array_equal(lic.decode(files["visual"]).pixels, before["visual"])


@pytest.mark.parametrize("header", [b"\0\0\0", b"\1\0\x10", b"\1\0\1\0\0\0\0\0\x11", b"\1\0\4\x80\x80\x3f"])
def test_a_damaged_header_is_told(header):
    with pytest.raises(FormatError):
        wavelet._Header.read(header + b"\0")
