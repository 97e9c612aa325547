"""Bad files and bad requests end in the exceptions that Pillow's users catch."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

import lic
from lic import container

REASON = "cannot identify|the file ends|damaged|cut off|there is something behind"
PICTURE = Image.linear_gradient("L").resize((48, 32))


@pytest.fixture(scope="module")
def data() -> bytes:
    file = BytesIO()
    PICTURE.save(file, "LIC", effort=0, xmp=b"<x:xmpmeta/>")
    return file.getvalue()


def loads(data: bytes) -> None:
    Image.open(BytesIO(data)).load()


def verifies(data: bytes) -> None:
    Image.open(BytesIO(data)).verify()


def claiming(width: int, height: int) -> bytes:
    """A file whose header, with a correct checksum, claims this size."""
    info = lic.Info(width, height, 3, 8, "wavelet", "0" * 16)
    return container.write(info, [container.Frame(b"nothing much")])


@pytest.mark.parametrize("data", [b"", b"hello, this is text", lic.SIGNATURE, lic.SIGNATURE * 9])
def test_not_a_picture(data: bytes):
    with pytest.raises(UnidentifiedImageError):
        loads(data)


@pytest.mark.parametrize("check", [loads, verifies])
def test_truncated(data: bytes, check: Callable[[bytes], None]):
    for length in range(0, len(data), 5):
        with pytest.raises(OSError, match=REASON):  # UnidentifiedImageError is one
            check(data[:length])


def test_truncated_by_wish(data: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for length in range(len(data) - 20, len(data)):
        loads(data[:length])


def test_every_flipped_bit_is_found(data: bytes):
    verifies(data)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(OSError, match=REASON):
            verifies(bytes(damaged))


def test_flipped_bits_do_not_load(data: bytes):
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(OSError, match=REASON):
            loads(bytes(damaged))


def test_lengths_that_a_file_cannot_have(tmp_path: Path):
    path = tmp_path / "x.lic"
    head = claiming(48, 32)
    head = head[: head.rindex(b"F")]
    for kind in (b"e", b"F"):
        path.write_bytes(head + kind + container.write_varint(2**40) + b"short")
        with pytest.raises(OSError, match=REASON):
            Image.open(path).load()


@pytest.mark.parametrize(("width", "height"), [(2**16, 2**15), (2**24, 2**24)])
def test_too_large(width: int, height: int):
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(claiming(width, height)))


def test_rather_large():
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(BytesIO(claiming(10_000, 10_000)))


def test_limit_is_the_users(data: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 32 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        loads(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    loads(data)


def test_another_weights_hash(data: bytes):
    info = replace(lic.read_info(data), weights="0" * 16)
    image = Image.open(BytesIO(container.write(info, [container.Frame(b"nothing much")])))
    with pytest.raises(OSError, match="weights"):
        image.load()


@pytest.mark.parametrize(("error", "options"), [
    (ValueError, {"quality": 101}),
    (ValueError, {"quality": -1}),
    (TypeError, {"quality": "high"}),
    (ValueError, {"effort": 11}),
    (ValueError, {"model": "no such model"}),
    (ValueError, {"device": "no such device"}),
    (TypeError, {"exif": 5}),
    (ValueError, {"save_all": True, "append_images": [PICTURE], "duration": [1, 2, 3]}),
    (ValueError, {"save_all": True, "append_images": [PICTURE.resize((8, 8))]}),
])  # fmt: skip
def test_bad_options(tmp_path: Path, error: type[Exception], options: dict[str, object]):
    path = tmp_path / "x.lic"
    with pytest.raises(error):
        PICTURE.save(path, **options)
    assert not path.exists()
    file = BytesIO()
    with pytest.raises(error):
        PICTURE.save(file, "LIC", **options)
    assert file.getvalue() == b""


def test_empty_picture(tmp_path: Path):
    with pytest.raises(ValueError, match="sides"):
        Image.new("RGB", (0, 5)).save(tmp_path / "x.lic")


def test_unwritable(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        PICTURE.save(tmp_path / "missing" / "x.lic")
    (tmp_path / "folder.lic").mkdir()
    with pytest.raises(IsADirectoryError):
        PICTURE.save(tmp_path / "folder.lic")
