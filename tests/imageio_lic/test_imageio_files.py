"""Every dtype and shape of docs/modes.md, metadata, frames and bad input, through imageio v2 and v3 alone."""

import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO, UnsupportedOperation
from pathlib import Path

import imageio.v2 as iio2
import imageio.v3 as iio
import numpy as np
import pytest

import lic
from lic import container

PAGE = (Path(__file__).parents[2] / "docs" / "modes.md").read_text("utf-8").split("## imageio")[1]
ROWS = re.findall(r"^\| `(\w+)` \| `\(([^`]+)\)` \| `?\(?([^`|]+?)\)?`? \|", PAGE, re.MULTILINE)
SIZES = {"N": 3, "H": 32, "W": 48}
EXIF, ICC, XMP = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", b"a colour profile", b"<x:xmpmeta/>"


def shape(text: str) -> tuple[int, ...]:
    """ "H, W, 3" -> (32, 48, 3)"""
    return tuple(SIZES.get(name) or int(name) for name in text.split(", "))


def picture(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Smooth, in the upper half of 0 to 255 or 65535, every frame and channel a little lighter than the one before."""
    axes = np.indices(shape).astype(float)
    light = sum((axis / max(size, 8) for axis, size in zip(axes, shape, strict=True)), 0.0) / len(shape)
    return (light * 127 + 128).astype(np.uint8) if dtype != "uint16" else (light * 32767 + 32768).astype(np.uint16)


def encoded(pixels: object, **options) -> bytes:
    return iio.imwrite("<bytes>", pixels, extension=".lic", effort=0, **options)


@pytest.fixture(scope="module")
def animation() -> bytes:
    return encoded(picture(3, 32, 48, 3), duration=[10, 20, 30], loop=2)


@pytest.mark.parametrize(("dtype", "written", "read"), [row for row in ROWS if row[2] != "refused"])
def test_comes_back(dtype: str, written: str, read: str):
    pixels = picture(*shape(written), dtype=dtype)
    data = encoded(pixels, quality=95)
    back = iio.imread(data)
    assert (back.shape, back.dtype) == (shape(read), pixels.dtype)
    assert np.abs(back.astype(float) - pixels.reshape(back.shape)).mean() < (500 if dtype == "uint16" else 2)
    properties = iio.improps(data)
    assert (properties.shape, properties.dtype, properties.is_batch) == (back.shape, back.dtype, "N" in read)
    assert properties.n_images == (3 if "N" in read else None)


@pytest.mark.parametrize(("dtype", "written"), [row[:2] for row in ROWS if row[2] == "refused"])
def test_refused(tmp_path: Path, dtype: str, written: str):
    path = tmp_path / "x.lic"
    path.write_bytes(b"what was there before")
    with pytest.raises((TypeError, ValueError), match=r"uint8 or uint16|channels"):
        iio.imwrite(path, np.zeros(shape(written), dtype))
    assert path.read_bytes() == b"what was there before"


def test_every_way_to_name_a_file(tmp_path: Path):
    path = tmp_path / "x.lic"
    pixels = picture(32, 48, 3, dtype="uint16")
    assert iio.imwrite(path, pixels, effort=0) is None
    data = path.read_bytes()
    for source in (path, str(path), path.as_uri(), data, BytesIO(data), path.open("rb")):
        back = iio.imread(source)
        assert (back.shape, back.dtype) == ((32, 48, 3), np.uint16)
    path.rename(tmp_path / "no_extension")
    assert iio.imread(tmp_path / "no_extension").dtype == np.uint16
    assert iio.imread(tmp_path / "no_extension", plugin="lic").dtype == np.uint16
    file = BytesIO()
    iio.imwrite(file, pixels, extension=".lic", effort=0)
    assert file.getvalue() == data
    assert encoded(pixels) == data
    archive = tmp_path / "x.zip" / "inside.lic"
    iio.imwrite(archive, pixels, effort=0)
    assert iio.imread(archive).dtype == np.uint16


def test_v2(tmp_path: Path, animation: bytes):
    path = tmp_path / "x.lic"
    iio2.imwrite(path, picture(32, 48, 3), quality=90)
    assert iio2.imread(path).shape == (32, 48, 3)
    for name in ("lic", "LIC", ".lic"):
        assert iio2.imread(path.read_bytes(), format=name).shape == (32, 48, 3)
        assert iio2.imwrite("<bytes>", picture(32, 48), format=".lic")[:8] == lic.SIGNATURE
    path.write_bytes(animation)
    assert iio2.imread(path).shape == (32, 48, 3)
    assert np.shape(iio2.mimread(path)) == (3, 32, 48, 3)
    iio2.mimwrite(path, list(picture(2, 32, 48)), duration=40)
    assert iio.immeta(path)["duration"] == (40, 40)
    with iio2.get_reader(path) as reader:
        assert len(reader) == 2
        assert reader.get_data(1).meta["duration"] == 40
        assert len(list(reader)) == 2
    with iio2.get_writer(path) as writer:
        for frame in picture(3, 32, 48):
            writer.append_data(frame)
    assert iio.improps(path).shape == (3, 32, 48)


def test_header_is_read_without_torch(tmp_path: Path):
    path = tmp_path / "x.lic"
    path.write_bytes(encoded(picture(32, 48, 3), xmp=XMP))
    script = f"""
import sys
import imageio.v3 as iio
assert iio.improps({str(path)!r}).shape == (32, 48, 3) and iio.immeta({str(path)!r})["xmp"]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_metadata():
    metadata = iio.immeta(encoded(picture(32, 48), exif=EXIF, icc_profile=ICC, xmp=XMP))
    assert len(metadata.pop("weights")) == 16
    assert metadata == {"model": "wavelet", "exif": EXIF, "icc_profile": ICC, "xmp": XMP}


def test_options_reach_the_codec():
    sizes = [len(encoded(picture(32, 48, 3), quality=quality, device="cpu")) for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))
    with pytest.raises(TypeError, match="no_such_option"):
        encoded(picture(32, 48), no_such_option=1)


def test_a_serial_context():
    assert iio.immeta(encoded(picture(32, 48, 3), model="hybrid", context="serial"))["model"] == "hybrid_serial"


def test_frames(animation: bytes):
    frames = iio.imread(animation, index=...)
    assert np.array_equal(iio.imread(animation), frames)
    assert np.array_equal(list(iio.imiter(animation)), frames)
    for index in (0, 1, 2, -1):
        assert np.array_equal(iio.imread(animation, index=index), frames[index])
        assert iio.improps(animation, index=index).shape == (32, 48, 3)
        metadata = iio.immeta(animation, index=index)
        assert (metadata["duration"], metadata["loop"]) == ([10, 20, 30][index], 2)
    assert iio.immeta(animation)["duration"] == iio.immeta(animation, index=...)["duration"] == (10, 20, 30)
    assert iio.imread(encoded(picture(32, 48)), index=...).shape == (1, 32, 48)
    with pytest.raises(IndexError):
        iio.imread(animation, index=3)


@pytest.mark.parametrize("frames", [list(picture(2, 32, 3)), picture(2, 32, 3)])
def test_narrow_frames(frames: object):
    assert iio.imread(encoded(frames, is_batch=True)).shape == (2, 32, 3)


def test_frame_after_frame(tmp_path: Path):
    path = tmp_path / "x.lic"
    with iio.imopen(path, "w") as file:
        for frame in picture(3, 32, 48):
            file.write(frame, duration=40, effort=0)
        assert not path.exists()
    assert iio.immeta(path)["duration"] == (40, 40, 40)


def test_an_exception_between_frames_writes_nothing(tmp_path: Path):
    path = tmp_path / "x.lic"

    def write_half() -> None:
        with iio.imopen(path, "w") as file:
            file.write(picture(32, 48))
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert not path.exists()


class Stream(BytesIO):
    """What comes from a socket: it can't go back."""

    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise UnsupportedOperation("not seekable")

    def tell(self) -> int:
        raise UnsupportedOperation("not seekable")


def test_other_formats_are_left_alone(tmp_path: Path):
    pixels = picture(32, 48, 3)
    png = iio.imwrite("<bytes>", pixels, extension=".png")
    for source in (png, BytesIO(png), Stream(png)):
        assert np.array_equal(iio.imread(source), pixels)
    (tmp_path / "really_a_png.lic").write_bytes(png)
    assert np.array_equal(iio.imread(tmp_path / "really_a_png.lic"), pixels)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", lic.SIGNATURE, lic.SIGNATURE * 9])
def test_not_a_picture(tmp_path: Path, content: bytes):
    path = tmp_path / "x.lic"
    path.write_bytes(content)
    for source in (path, BytesIO(content)):
        with pytest.raises(OSError, match=r"Could not find a backend|the file"):
            iio.imread(source)


def test_damaged():
    data = encoded(picture(32, 48, 3))
    for position in range(8, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        for source in (bytes(damaged), data[:position]):
            with pytest.raises(OSError, match=r"the file|damaged|cut off"):
                iio.imread(source, extension=".lic")


def test_truncated_by_wish():
    data = encoded(picture(32, 48, 3))[:-4]  # without its checksum
    with pytest.raises(OSError, match=r"the file|cut off"):
        iio.imread(data)
    assert iio.imread(data, truncated=True).shape == (32, 48, 3)


def test_too_large():
    info = replace(lic.read_info(encoded(picture(32, 48, 3))), width=2**16, height=2**15)
    data = container.write(info, [container.Frame(b"nothing much")])
    assert iio.improps(data).shape == (2**15, 2**16, 3)
    with pytest.raises(OSError, match="limit"):
        iio.imread(data)
    with pytest.raises(OSError, match="limit"):
        iio.imread(encoded(picture(32, 48, 3)), max_pixels=32 * 48 - 1)


@pytest.mark.parametrize(
    "options", [{"quality": 101}, {"effort": -1}, {"model": "no such model"}, {"duration": [1, 2]}]
)
def test_bad_options(tmp_path: Path, options: dict[str, object]):
    with pytest.raises(lic.LicError):
        iio.imwrite(tmp_path / "x.lic", picture(3, 32, 48), **options)
    assert not list(tmp_path.iterdir())


def test_unwritable(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        iio.imwrite(tmp_path / "missing" / "x.lic", picture(32, 48))
    (tmp_path / "folder.lic").mkdir()
    with pytest.raises(IsADirectoryError):
        iio.imwrite(tmp_path / "folder.lic", picture(32, 48))
    with pytest.raises(FileNotFoundError):
        iio.imread(tmp_path / "missing.lic")
