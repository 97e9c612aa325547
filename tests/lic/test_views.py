"""Regions and scales: the same pixels as out of the whole picture, from less work; pictures of many tiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lic
from lic import entropy
from lic.layers import tiles
from tests.lic.conftest import natural


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 64)


@pytest.fixture(scope="module", params=["psnr", "visual"])
def coded(request) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", 64)
        return lic.encode(natural(301, 227, 3), quality=70, tune=request.param)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_region_is_what_the_whole_picture_has_there(coded, data):
    left, right = sorted(data.draw(st.lists(st.integers(0, 227), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, 301), min_size=2, max_size=2, unique=True)))
    scale = data.draw(st.sampled_from([1, 1 / 2, 1 / 4, 1 / 16, 1 / 64]))
    whole = lic.decode(coded, scale=scale).pixels
    part = lic.decode(coded, region=(left, top, right, bottom), scale=scale).pixels
    halvings = round(-np.log2(scale))
    rows = slice(top >> halvings, -(-bottom >> halvings))
    columns = slice(left >> halvings, -(-right >> halvings))
    assert np.array_equal(part, whole[rows, columns])


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (97, 200), (129, 31), (300, 33)])
@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_many_tiles(shape, channels):
    pixels = natural(*shape, channels)
    decoded = lic.decode(lic.encode(pixels, quality=90)).pixels
    error = decoded.astype(float) - pixels
    assert np.sqrt((error**2).mean()) < 3
    if channels == 4:
        assert np.array_equal(decoded[..., 3], pixels[..., 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_scale_is_the_picture_made_smaller(dtype, channels):
    pixels = natural(256, 192, channels, dtype)
    data = lic.encode(pixels, quality=90)
    for scale in (1 / 2, 1 / 4):
        side = round(1 / scale)
        small = lic.decode(data, scale=scale).pixels
        expected = pixels.reshape(256 // side, side, 192 // side, side, -1).mean((1, 3))
        error = small.reshape(expected.shape) - expected
        assert small.dtype == dtype
        assert np.sqrt((error**2).mean()) < 0.02 * np.iinfo(dtype).max
        assert abs(error.mean()) < 0.002 * np.iinfo(dtype).max


def test_sides_are_rounded_up(coded):
    for k in range(7):
        assert lic.decode(coded, scale=2**-k).pixels.shape == (-(-301 >> k), -(-227 >> k), 3)


def test_less_is_decoded_for_less(coded, monkeypatch):
    decoded = 0

    def counting(inner):
        def count(self, each, *rest):
            nonlocal decoded
            decoded += len(each)
            return inner(self, each, *rest)

        return count

    for name in ("decode", "entries"):
        monkeypatch.setattr(entropy.Decoder, name, counting(getattr(entropy.Decoder, name)))

    def symbols(**view):
        nonlocal decoded
        decoded = 0
        lic.decode(coded, **view)
        return decoded

    whole = symbols()
    assert 301 * 227 * 3 <= whole < 1.001 * 301 * 227 * 3  # and the amounts
    assert symbols(scale=1 / 2) < 0.3 * whole
    assert symbols(scale=1 / 4) < 0.1 * whole
    assert symbols(region=(0, 0, 10, 10)) < 0.4 * whole


@pytest.mark.parametrize("scale", [0, 0.3, 2, 1 / 128, -1, float("nan")])
def test_bad_scales(coded, scale):
    with pytest.raises(lic.LicError, match="scale"):
        lic.decode(coded, scale=scale)


@pytest.mark.parametrize("region", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 228, 10), (5, 5, 4, 9)])
def test_bad_regions(coded, region):
    with pytest.raises(lic.LicError, match="region"):
        lic.decode(coded, region=region)


def test_what_is_left_of_a_file_of_many_tiles(coded):
    whole = lic.decode(coded).pixels.astype(float)
    errors = []
    for share in (0.3, 0.6, 0.9):
        part = lic.decode(coded[: int(share * len(coded))], truncated=True).pixels
        errors.append(np.abs(part - whole).mean())
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] < 20
