"""Pictures that were JPEG or WebP files or video once are coded losslessly as what they were converted from."""

import io
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lic
from lic.layers import ycbcr
from lic.layers.tiles import Area
from lic.layers.ycbcr import Exceptions
from tests.lic.conftest import natural


def decoded_from(format: str, height: int = 90, width: int = 112) -> np.ndarray:
    """What Pillow makes of such a file, (H, W, 3), of such quality that nothing of JPEG's coefficients can be found."""
    file = io.BytesIO()
    Image.fromarray(natural(height, width, 3)).save(file, format, quality=100 if format == "JPEG" else 90)
    return np.array(Image.open(file).convert("RGB"))


def traced(pixels: np.ndarray) -> ycbcr.Origin | None:
    return ycbcr.traced(torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.int32)))


@pytest.mark.parametrize(("format", "kind"), [("JPEG", 1), ("WEBP", 2)])
def test_a_decoded_file_is_traced_back_and_takes_fewer_bytes(format, kind, monkeypatch):
    pixels = decoded_from(format)
    origin = traced(pixels)
    assert origin is not None
    assert origin.conversion.kind == kind
    rgb = origin.conversion.rgb(origin.planes)
    different = (rgb != torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.int32))).any(0).flatten().nonzero()[:, 0]
    assert torch.equal(different, origin.exceptions.places)
    coded = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, pixels)
    monkeypatch.setattr(ycbcr, "traced", lambda _: None)
    assert len(coded) < 0.85 * len(lic.encode(pixels, lossless=True))


def video(rounded_terms: bool = False, height: int = 120, width: int = 136) -> np.ndarray:
    """A frame of high-definition video (ITU-R BT.709, video range, chroma subsampled), as programs convert it."""
    rgb = natural(height, width, 3) * 0.8 + 20 + np.random.default_rng(0).normal(0, 3, (height, width, 1))
    luma = rgb @ [0.2126, 0.7152, 0.0722]
    y = np.round(16 + luma * 219 / 255)
    chroma = np.stack([(rgb[..., 2] - luma) / 1.8556, (rgb[..., 0] - luma) / 1.5748], 2) * 224 / 255
    u, v = np.round(chroma[::2, ::2].repeat(2, 0).repeat(2, 1)).transpose(2, 0, 1)
    term = (lambda x: np.round(4 * x) / 4) if rounded_terms else (lambda x: x)
    y = (y - 16) * 255 / 219
    red, blue = y + 1.5748 * v * 255 / 224, y + 1.8556 * u * 255 / 224
    green = y - term(0.1873 * u * 255 / 224) - term(0.4681 * v * 255 / 224)
    return np.round(np.stack([red, green, blue], 2)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("rounded_terms", [False, True])
def test_a_conversion_is_found(rounded_terms, monkeypatch):
    pixels = video(rounded_terms)
    origin = traced(pixels)
    assert origin is not None
    assert origin.conversion.kind == ycbcr.FOUND
    assert len(origin.exceptions.places) < 0.005 * pixels[..., 0].size
    matrix = origin.conversion.found.affine[:, :3] / 2**20
    assert np.allclose(matrix, [[1.1644, 0, 1.7927], [1.1644, -0.2132, -0.5329], [1.1644, 2.1124, 0]], atol=0.01)
    coded = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, pixels)
    assert np.array_equal(lic.decode(coded, region=(9, 20, 70, 99)).pixels, pixels[20:99, 9:70])
    monkeypatch.setattr(ycbcr, "traced", lambda _: None)
    assert len(coded) < 0.9 * len(lic.encode(pixels, lossless=True))


def degenerate() -> dict[str, np.ndarray]:
    """Pictures whose colours make no lattice of three dimensions."""
    rng = np.random.default_rng(0)
    grey, near = rng.integers(40, 200, (64, 64, 1)), rng.integers(0, 5, (64, 64))
    flat = rng.integers(-20, 20, (64, 64, 3)) * [1, 1, 0]
    return {
        "one colour": np.full((64, 64, 3), [3, 50, 99]),
        "tinted grey": np.add(grey, [0, 3, 9]),
        "sepia": np.linspace(30, 250, 64)[:, None, None] * np.ones((1, 64, 1)) * [1, 0.8, 0.6],
        "near colours": rng.integers(90, 95, (5, 3))[near],
        "constant green": rng.integers(40, 200, (64, 64, 3)) * [1, 0, 1] + [0, 77, 0],
        "no luma": np.round(120 + flat @ [[0.5, -1.5, 2.2], [1.8, -0.7, 0.3], [0, 0, 0]]),
        "no chroma": np.round(120 + flat * [2, 0, 0] @ [[1.2, 1.2, 1.2], [0, 0, 0], [0, 0, 0]]),
        "four colours": rng.choice([1, 254], (64, 64, 3)) + rng.integers(0, 2, (64, 64, 1)),
        "steps": rng.integers(0, 40, (64, 64, 3)) * 5 + 20,
    }


@pytest.mark.parametrize("kind", degenerate())
@pytest.mark.filterwarnings("error")
def test_colours_of_fewer_dimensions_are_no_trap(kind):
    pixels = degenerate()[kind].astype(np.uint8)
    assert np.array_equal(lic.decode(lic.encode(pixels, lossless=True)).pixels, pixels)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(1, 60))
def test_few_colours_are_no_trap(seed, count, spread):
    rng = np.random.default_rng(seed)
    colours = (rng.normal(0, spread, (count, 3)) + rng.uniform(0, 255, 3)).clip(1, 254).astype(np.uint8)
    pixels = colours[rng.integers(0, count, (50, 50))]
    origin = traced(pixels)
    if origin:
        rgb = origin.conversion.rgb(origin.planes)
        origin.exceptions.put(rgb, Area(0, 0, 50, 50), 50)
        assert np.array_equal(rgb.numpy(), pixels.transpose(2, 0, 1))


def test_a_found_conversion_comes_back():
    rng = np.random.default_rng(0)
    keys = np.sort(rng.choice(1023**3, 500, replace=False))
    affine, corrections = rng.integers(-(2**31), 2**31, (3, 4)), rng.integers(-(2**15), 2**15, (3, 3, 1023))
    off = rng.integers(-127, 128, (3, 500)).astype(np.int32)
    there = ycbcr.Found(affine.astype(np.int32), corrections.astype(np.int16), keys, off)
    back, rest = ycbcr.Found.read(there.coded() + b"rest")
    assert rest == b"rest"
    for name in ("affine", "corrections", "keys", "off"):
        assert np.array_equal(getattr(back, name), getattr(there, name))
    planes = torch.from_numpy(rng.integers(-511, 512, (3, 999))).int()
    assert 0 <= back.rgb(planes).min() <= back.rgb(planes).max() <= 255
    with pytest.raises(lic.FormatError):
        ycbcr.Found.read(there.coded()[:-8])
    with pytest.raises(lic.FormatError):
        ycbcr.Found.read(zlib.compress(bytes(100)))
    for damaged in (keys[[0, 0]], keys[[0, 1]] + 1023**3):
        twice = ycbcr.Found(affine.astype(np.int32), corrections.astype(np.int16), damaged, off[:, :2])
        with pytest.raises(lic.FormatError):
            ycbcr.Found.read(twice.coded())


def test_a_few_pixels_may_be_something_else():
    pixels = decoded_from("JPEG")
    rng = np.random.default_rng(0)
    for y, x in zip(rng.integers(0, 90, 40), rng.integers(0, 112, 40), strict=True):
        pixels[y, x] = rng.integers(0, 256, 3)
    pixels[0, 0], pixels[-1, -1] = (0, 255, 9), (255, 0, 255)
    origin = traced(pixels)
    assert origin is not None
    assert len(origin.exceptions.places) > 20
    data = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(data).pixels, pixels)
    left, top, right, bottom = region = (17, 30, 112, 90)
    assert np.array_equal(lic.decode(data, region=region).pixels, pixels[top:bottom, left:right])
    half = np.asarray(Image.fromarray(pixels).resize((56, 45), Image.Resampling.BOX)).astype(int)
    assert np.abs(lic.decode(data, scale=1 / 2).pixels - half).mean() < 6


def test_the_likelier_decoder_is_found():
    """Grey pixels come from both, most of them."""
    file = io.BytesIO()
    Image.fromarray(natural(90, 112, 1)).save(file, "WEBP", quality=90)
    origin = traced(np.array(Image.open(file).convert("RGB")))
    assert origin is not None
    assert origin.conversion.kind == 2
    assert not len(origin.exceptions.places)


def test_few_greys_are_numbered_all_the_same():
    dots = np.random.default_rng(0).integers(0, 2, (90, 112), np.uint8) * 200 + 9
    coded = lic.encode(dots[..., None].repeat(3, 2), lossless=True)
    assert len(coded) < 1.1 * len(lic.encode(dots, lossless=True)) + 60


def test_other_pictures_are_not():
    assert traced(natural(90, 112, 3)) is None
    pixels = decoded_from("JPEG")
    pixels[::4, ::4, 0] ^= 1  # of these few still come from somewhere
    assert traced(pixels) is None


@given(st.sets(st.integers(0, 5000), max_size=78), st.integers(0, 2**31))
def test_exceptions_come_back(places, seed):
    colours = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, len(places)))).int()
    there = Exceptions(torch.tensor(sorted(places), dtype=torch.int64), colours)
    back = Exceptions.read(there.coded(), 5001)
    assert torch.equal(back.places, there.places)
    assert torch.equal(back.colours, colours)


TWICE = b"\5\0\0\0abc" + b"\0\0\0\0abc"


DAMAGED = {
    "no stream": b"no stream",
    "outside": zlib.compress(b"\xff" * 7),
    "twice": zlib.compress(TWICE),
    "in part": zlib.compress(TWICE[:9]),
    "cut off": zlib.compress(TWICE[:7])[:-3],
    "many": zlib.compress(b"\1\0\0\0abc" * 20),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_exceptions_are_refused(kind):
    assert len(Exceptions.read(zlib.compress(TWICE[:7]), 1000).places) == 1
    with pytest.raises(lic.FormatError):
        Exceptions.read(DAMAGED[kind], 1000)
