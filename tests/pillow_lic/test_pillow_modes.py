"""Each mode of docs/modes.md: kept, converted or refused, as the page says."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lic

PAGE = (Path(__file__).parents[2] / "docs" / "modes.md").read_text("utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \| `?([^`|]+?)`? \|", PAGE.split("## imageio")[0], re.MULTILINE)


def picture(mode: str) -> Image.Image:
    """48×32 pixels, smooth, in any mode."""
    ramp = Image.linear_gradient("L").resize((48, 32))
    colour = Image.merge("RGBA", [ramp, ramp.transpose(Image.Transpose.ROTATE_180), Image.new("L", (48, 32), 90), ramp])
    if mode.startswith("I;16"):
        grey = np.asarray(ramp).astype("<u2") * 256
        return Image.frombytes(mode, ramp.size, grey.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode in ("PA", "La"):
        return colour.convert("LA").convert(mode)
    if mode == "LAB":
        return Image.new(mode, (48, 32))
    return colour.convert(mode if mode in ("RGBA", "RGBa", "LA") else "RGB").convert(mode)


def saved(image: Image.Image, **options) -> Image.Image:
    file = BytesIO()
    image.save(file, "LIC", effort=0, **options)
    return Image.open(file)


def worst_mean_error(image: Image.Image, expected: Image.Image) -> float:
    difference = np.abs(np.asarray(image, np.float64) - np.asarray(expected, np.float64))
    return float(difference.mean(axis=(0, 1)).max())


def test_page_has_every_mode():
    modes = {
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
    }  # Image.MODES, before Pillow's extras
    assert modes | {"LA", "PA", "RGBX", "RGBa", "La", "I;16"} == {mode for mode, _ in ROWS}


@pytest.mark.parametrize(("mode", "back"), [row for row in ROWS if row[1] != "refused"])
def test_comes_back(mode: str, back: str):
    image = picture(mode)
    opened = saved(image, quality=95)
    assert (opened.mode, opened.size, opened.format) == (back, image.size, "LIC")
    expected = image.convert("RGBA").convert(back) if mode == "PA" else image.convert(back)
    assert worst_mean_error(opened, expected) < (1000 if back == "I;16" else 4)
    if back.endswith("A"):
        assert opened.getchannel("A").tobytes() == expected.getchannel("A").tobytes()


@pytest.mark.parametrize("mode", [mode for mode, back in ROWS if back == "refused"])
def test_refused(mode: str):
    file = BytesIO()
    with pytest.raises(OSError, match=f"cannot write mode {mode} as LIC"):
        picture(mode).save(file, "LIC")
    assert file.getvalue() == b""


@pytest.mark.parametrize("mode", ["I;16L", "I;16B", "I;16N"])
def test_16_bit_grey_in_any_byte_order(mode: str):
    assert saved(picture(mode), quality=95).tobytes() == saved(picture("I;16"), quality=95).tobytes()


@pytest.mark.parametrize(("mode", "transparency", "back"), [
    ("P", 0, "RGBA"), ("P", bytes(range(256)), "RGBA"), ("L", 100, "LA"), ("1", 0, "LA"), ("RGB", (1, 2, 3), "RGBA"),
])  # fmt: skip
def test_transparency_becomes_alpha(mode: str, transparency: object, back: str):
    image = picture(mode)
    image.info["transparency"] = transparency
    opened = saved(image)
    assert opened.mode == back
    assert opened.getchannel("A").tobytes() == image.convert(back).getchannel("A").tobytes()


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_16_bit_colour_opens_with_8_bits(channels: int, mode: str):
    pixels = np.random.default_rng(1).integers(0, 2**16, (32, 48, channels), np.uint16)
    data = lic.encode(pixels, effort=0)
    opened = Image.open(BytesIO(data))
    assert opened.mode == mode
    assert np.array_equal(np.asarray(opened), np.round(lic.decode(data).pixels / 65535 * 255))


def test_frames_of_different_modes_share_one():
    opened = saved(picture("L"), save_all=True, append_images=[picture("P"), picture("LA")])
    assert (opened.mode, opened.n_frames) == ("RGBA", 3)
    opened.seek(2)
    assert opened.getchannel("A").tobytes() == picture("LA").getchannel("A").tobytes()
