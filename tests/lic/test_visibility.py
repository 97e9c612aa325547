"""Where errors are seen: what an encoder that is tuned for the look is told."""

import numpy as np
import pytest
import torch

import lic
from lic.errors import FormatError
from lic.layers.tiles import size
from lic.layers.visibility import prices_of_bits
from lic.models import wavelet
from tests.lic.conftest import natural


@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (3, 2), (97, 130)])
def test_every_position_of_every_level_has_a_price(sides):
    prices = prices_of_bits(torch.rand(1, 1, *sides) * 255, 6)
    assert [tuple(x.shape[2:]) for x in prices] == [size(*sides, level) for level in range(1, 7)]
    assert all(bool(((x >= 0.25) & (x <= 4)).all()) for x in prices)


def test_errors_are_dearer_where_nothing_hides_them():
    luma = torch.zeros(1, 1, 128, 128)
    luma[..., 64:] = 60 * torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    for x in prices_of_bits(luma, 3):
        assert x[..., : x.shape[3] // 4].max() < 1 < x[..., -x.shape[3] // 4 :].min()


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


@pytest.mark.parametrize("header", [b"\0\0\0", b"\1\0\x08", b"\1\0\1\0\0\0\0\0\x11", b"\1\0\4\x80\x80\x3f"])
def test_a_damaged_header_is_told(header):
    with pytest.raises(FormatError):
        wavelet._Header.read(header + b"\0")
