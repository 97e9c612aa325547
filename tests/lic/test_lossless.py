"""`lossless=True`: what was saved comes back bit for bit, whatever it is."""

import io
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lic
from lic import registry
from lic.codec import Codec, PlaneShape, Settings, View
from lic.layers import reversible
from lic.layers.integer import PortableConv2d
from tests.lic.conftest import chart, natural, screenshot
from tests.lic.test_ycbcr import decoded_from, video


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 6), st.integers(0, 2**31))
def test_the_transforms_lose_nothing_and_keep_their_range(height, width, levels, seed):
    rng = np.random.default_rng(seed)
    extremes = rng.integers(0, 2, (1, 3, height, width)) * 65535 - 32768
    for x in (torch.from_numpy(extremes).int(), torch.from_numpy(rng.integers(-128, 128, extremes.shape)).int()):
        planes = reversible.to_rct(x)
        low, bands = reversible.analyse(planes, levels)
        assert low.abs().max() < 2**20
        sizes = [(height, width), *(band.shape[2:] for band in bands)]
        for level in range(levels, 0, -1):
            low = reversible.synthesise(low, bands[level - 1], *sizes[level - 1])
        assert torch.equal(low, planes)
        assert torch.equal(reversible.from_rct(low), x)


def test_a_level_of_the_wavelet_is_the_real_one_rounded_once():
    """Near what (4, 2) lifting makes of real numbers, rows first: nearer than rounding once for each axis allows."""

    def lifted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # along the last axis
        even, odd = x[..., ::2], x[..., 1::2]
        e = np.pad(even, [(0, 0), (1, 2)], mode="edge")
        odd = odd - (9 * (e[:, 1:-2] + e[:, 2:-1]) - e[:, :-3] - e[:, 3:]) / 16
        o = np.pad(odd, [(0, 0), (1, 0)], mode="edge")
        return even + (o[:, :-1] + o[:, 1:]) / 4, odd

    picture = np.random.default_rng(0).integers(0, 256, (40, 52)).astype(float)
    low, high = lifted(picture)
    parts = [part.T for half in (low, high) for part in lifted(half.T)]  # LL, LH, HL, HH
    ll, bands = reversible.analyse(torch.from_numpy(picture).int()[None, None], 1)
    hl, lh, hh = bands[0][0].numpy()
    for found, expected, limit in zip((ll[0, 0].numpy(), lh, hl, hh), parts, (0.95, 0.95, 0.95, 0.5), strict=True):
        assert np.abs(found - expected).max() <= limit


def kinds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "photograph": natural(61, 83, 3),
        "grey": natural(40, 33, 1),
        "alpha": natural(30, 41, 4),
        "grey and alpha": natural(30, 41, 2),
        "16 bits": natural(45, 60, 3, np.uint16),
        "16 bits, grey and alpha": natural(20, 27, 2, np.uint16),
        "8 bits as 16": natural(45, 60, 3).astype(np.uint16) * 257,
        "12 bits as 16": (natural(45, 60, 1, np.uint16) >> 4) * 16,
        "noise": rng.integers(0, 256, (50, 47, 3), np.uint8),
        "noise of 16 bits": rng.integers(0, 65536, (50, 47, 3), np.uint16),
        "extremes of 16 bits": (rng.integers(0, 2, (50, 47, 3)) * 65535).astype(np.uint16),
        "two colours": rng.integers(0, 2, (64, 64, 1), np.uint8).repeat(3, 2) * 200 + 13,
        "text": screenshot(1)[..., 0] // 128 * 255,
        "three colours": screenshot(3) // 100 * 100,
        "channels of few values": natural(40, 51, 3) // np.array([1, 7, 60], np.uint8) * np.array([1, 7, 60], np.uint8),
        "a channel of one value": natural(40, 51, 3) * np.array([1, 0, 1], np.uint8) + np.array([0, 9, 0], np.uint8),
        "sixteen colours of 16 bits": (np.arange(97) // 6 * 4000).astype(np.uint16)[:, None].repeat(41, 1),
        "black": np.zeros((100, 80, 3), np.uint8),
        "one pixel": np.array([[[255, 0, 7]]], np.uint8),
        "a row": natural(1, 300, 3),
        "a column": natural(300, 1, 1),
        "screenshot": screenshot(3),
        "grey screenshot": screenshot(1)[..., 0],
        "screenshot of 16 bits": screenshot(3, np.uint16),
        "chart": chart(3),
        "grey chart": chart(1)[..., 0],
        "chart of 16 bits": chart(3, np.uint16),
        "several tiles": natural(20, 1700, 3),
        "regressions": natural(131, 140, 3),
        "regressions, grey": natural(140, 131, 1),
        "regressions, 16 bits": natural(129, 140, 3, np.uint16),
    }


@pytest.mark.parametrize("kind", kinds())
def test_pixels_come_back_bit_for_bit(kind):
    pixels = kinds()[kind]
    picture = lic.decode(lic.encode(pixels, lossless=True))
    assert picture.pixels.dtype == pixels.dtype
    assert np.array_equal(picture.pixels.reshape(pixels.shape), pixels)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4]), st.sampled_from([8, 16]),
    st.integers(1, 16), st.integers(0, 2**31),
)  # fmt: skip
def test_pixels_of_any_shape_and_range_come_back(height, width, channels, depth, bits, seed):
    rng = np.random.default_rng(seed)
    top = 2 ** min(bits, depth)
    pixels = rng.integers(0, top, (height, width, channels)).astype(np.uint8 if depth == 8 else np.uint16)
    assert np.array_equal(lic.decode(lic.encode(pixels, lossless=True)).pixels.reshape(pixels.shape), pixels)


def test_both_plugins_save_losslessly(tmp_path):
    pixels = natural(50, 61, 4)
    Image.fromarray(pixels).save(tmp_path / "pillow.lic", lossless=True)
    iio.imwrite(tmp_path / "imageio.lic", pixels, lossless=True)
    for name in ("pillow.lic", "imageio.lic"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), pixels)
        assert np.array_equal(iio.imread(tmp_path / name), pixels)
    assert lic.read_info(tmp_path / "pillow.lic").model == "wavelet_lossless"


def test_lossless_frames():
    frames = [natural(20, 30, 3, seed=seed) for seed in range(3)]
    data = lic.encode(frames, lossless=True)
    for i, frame in enumerate(frames):
        assert np.array_equal(lic.decode(data, frame=i).pixels, frame)


def test_few_values_cost_few_bits():
    wide = natural(96, 96, 1, np.uint16)
    stretched = (wide >> 8) * 257
    assert (
        len(lic.encode(stretched, lossless=True))
        < 1.02 * len(lic.encode((wide >> 8).astype(np.uint8), lossless=True)) + 60
    )


def test_a_stretched_contrast_costs_little():
    """As editors stretch it: each channel on its own, with gaps between its values."""
    pixels = (natural(96, 112, 3) * [0.5, 0.6, 0.7] + 40).astype(np.uint8)
    lowest, highest = pixels.min((0, 1)).astype(float), pixels.max((0, 1))
    stretched = np.round((pixels - lowest) * 255 / (highest - lowest)).astype(np.uint8)
    coded = lic.encode(stretched, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, stretched)
    assert len(coded) < 1.05 * len(lic.encode(pixels, lossless=True)) + 60


def test_regions_are_exact_and_halves_are_alike():
    pixels = natural(90, 1600, 3)
    data = lic.encode(pixels, lossless=True)
    left, top, right, bottom = region = (1000, 11, 1081, 70)
    assert np.array_equal(lic.decode(data, region=region).pixels, pixels[top:bottom, left:right])
    half = np.asarray(Image.fromarray(pixels).resize((800, 45), Image.Resampling.BOX)).astype(int)
    assert np.abs(lic.decode(data, scale=1 / 2).pixels - half).mean() < 6


def test_a_prefix_opens_at_a_lower_resolution():
    pixels = natural(200, 1600, 3)
    data = lic.encode(pixels, lossless=True)
    cut = lic.decode(data[: len(data) // 2], truncated=True).pixels.astype(int)
    assert np.abs(cut - pixels).mean() < 20
    with pytest.raises(lic.FormatError):
        lic.decode(data[: len(data) // 2])


def survives_damage(codec: Codec, stream: bytes, shape: PlaneShape, reach: int, rng: np.random.Generator) -> None:
    """Three of the first bytes are changed: what comes is FormatError or a picture."""
    damaged = bytearray(stream)
    for at in rng.integers(0, min(len(damaged), reach), 3):
        damaged[at] = rng.integers(256)
    try:
        out = codec.decompress({"coefficients": bytes(damaged)}, shape, View())
    except lic.FormatError:
        return
    assert out.shape == (shape.channels, shape.height, shape.width)
    assert 0 <= out.min() <= out.max() < 2**shape.bit_depth


def test_damage_is_an_error_or_a_picture(monkeypatch):
    """Streams whose checksums are right but whose contents are not."""
    codec = registry.load("wavelet_lossless", torch.device("cpu"))
    shape = PlaneShape(3, 40, 50, 16)
    planes = torch.from_numpy(natural(40, 50, 3, np.uint16).astype(np.int32)).permute(2, 0, 1)
    stream = codec.compress(planes, shape, Settings(75, True, 5))["coefficients"]
    text = torch.from_numpy(screenshot(3)[:40, :50].astype(np.int32) // 100).permute(2, 0, 1)
    packed = codec.compress(text, shape, Settings(75, True, 5))["coefficients"]
    assert packed[0] == 11
    drawing = torch.from_numpy(chart(3, np.uint16)[50:90, 10:60].astype(np.int32)).permute(2, 0, 1)
    listed = codec.compress(drawing, shape, Settings(75, True, 5))["coefficients"]
    assert listed[0] == 12
    rng = np.random.default_rng(0)
    for i in range(150):
        survives_damage(codec, (stream, packed, listed)[i % 3], shape, 400, rng)


def agrees_and_survives_damage(pixels: np.ndarray, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels of other devices, and damaged; first is the first byte of what the pixels make."""
    height, width, channels = pixels.shape
    pixels[5, 7:9] = [[0, 255, 3], [255, 0, 9]]
    shape = PlaneShape(channels, height, width, 8)
    planes = torch.from_numpy(pixels.astype(np.int32)).permute(2, 0, 1)
    codec = registry.load("wavelet_lossless", torch.device("cpu"))
    stream = codec.compress(planes, shape, Settings(75, True, 5))
    assert stream["coefficients"][0] == first
    monkeypatch.setattr(sys.modules[type(codec).__module__], "kernel_for", lambda _: PortableConv2d)
    other = type(codec)(torch.device("cpu"))
    assert other.compress(planes, shape, Settings(75, True, 5)) == stream
    assert torch.equal(other.decompress(stream, shape, View()), planes)
    rng = np.random.default_rng(0)
    for i in range(45):
        survives_damage(codec, stream["coefficients"], shape, (60, 400, 2**20)[i % 3], rng)


@pytest.mark.parametrize(("picture", "first"), [("regressions", 0), ("YCbCr", 16), ("video", 48)])
def test_kernels_agree_and_damage_is_an_error_or_a_picture(picture, first, monkeypatch):
    """Where a file has regressions, or exceptional pixels."""
    pixels = {"regressions": natural(133, 150, 3), "YCbCr": decoded_from("JPEG", 133, 150)}.get(picture)
    pixels = video(False, 134, 150)[:133] if pixels is None else pixels
    agrees_and_survives_damage(pixels, first, monkeypatch)


def test_screenshots_are_smaller_than_as_png():
    pixels = screenshot(3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    assert len(lic.encode(pixels, lossless=True)) < 0.8 * file.tell()


def test_a_screenshot_is_lossless_where_that_is_smaller():
    pixels = screenshot(3)
    exact = lic.encode(pixels, lossless=True)
    assert lic.encode(pixels, quality=90) == exact
    assert len(lic.encode(pixels, quality=0)) < len(exact)
    assert lic.encode(pixels, target_size=len(exact) + 10) == exact
    assert len(lic.encode(pixels, target_size=len(exact) - 10)) < len(exact)
