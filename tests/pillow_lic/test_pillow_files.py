"""Opening, saving, metadata, frames and threads, through Pillow alone."""

import copy
import gc
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, ImageSequence

import lic

EXIF, ICC, XMP = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", b"a colour profile", b"<x:xmpmeta/>"


def picture(shade: int = 90) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((48, 32))
    return Image.merge("RGB", [ramp, ramp.transpose(Image.Transpose.ROTATE_180), Image.new("L", ramp.size, shade)])


def saved(image: Image.Image, **options) -> Image.Image:
    file = BytesIO()
    image.save(file, "LIC", effort=0, **options)
    return Image.open(file)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


@pytest.fixture
def path(tmp_path: Path) -> Path:
    picture().save(tmp_path / "x.lic", effort=0, exif=EXIF, icc_profile=ICC, xmp=XMP)
    return tmp_path / "x.lic"


@pytest.fixture(scope="module")
def animation() -> bytes:
    file = BytesIO()
    frames = [picture(shade) for shade in (0, 100, 200)]
    frames[0].save(file, "LIC", effort=0, save_all=True, append_images=frames[1:], duration=[10, 20, 30], loop=2)
    return file.getvalue()


def shade(image: Image.Image) -> int:
    """Which of the animation's frames it is."""
    return round(np.asarray(image)[..., 2].mean() / 100) * 100


def test_opens_by_name_content_and_format(path: Path):
    for source in (path, str(path), BytesIO(path.read_bytes()), path.open("rb")):
        for formats in (None, ["LIC"]):
            with Image.open(source, formats=formats) as image:
                assert (image.format, image.mode, image.size) == ("LIC", "RGB", (48, 32))
                assert image.get_format_mimetype() == "image/x-lic"
                image.load()
    assert Image.registered_extensions()[".lic"] == "LIC"


def test_opening_decodes_nothing(path: Path):
    script = f"""
import sys
from PIL import Image
image = Image.open({str(path)!r})
assert image.size == (48, 32) and image.info["xmp"] and not image.getexif() and image.n_frames == 1
image.verify()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_file_is_closed_after_loading(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        Image.open(path).load()
        Image.open(path).verify()
        gc.collect()


def test_pixels_are_those_of_lic(path: Path):
    assert np.array_equal(np.asarray(Image.open(path)), lic.decode(path).pixels)


def test_copies_and_pickles(path: Path):
    image = Image.open(path)
    for other in (image.copy(), copy.deepcopy(image), pickle.loads(pickle.dumps(image))):
        assert other.tobytes() == image.tobytes()
        assert saved(other, save_all=True).size == image.size


def test_metadata_is_kept_byte_for_byte(path: Path):
    info = Image.open(path).info
    assert (info["exif"], info["icc_profile"], info["xmp"]) == (EXIF, ICC, XMP)
    assert saved(picture()).info == {}


def test_metadata_as_objects():
    exif = orientation(6)
    opened = saved(picture(), exif=exif, xmp=XMP.decode())
    assert dict(opened.getexif()) == {ExifTags.Base.Orientation: 6} == dict(exif)
    assert opened.info["xmp"] == XMP


def test_saving_again_keeps_the_colour_profile(path: Path):
    image = Image.open(path)
    assert saved(image).info == {"icc_profile": ICC}
    assert saved(image, icc_profile=None).info == {}
    assert saved(image, exif=image.info["exif"]).info == {"icc_profile": ICC, "exif": EXIF}
    assert saved(image, icc_profile=b"another").info == {"icc_profile": b"another"}


def test_a_profile_of_inks_does_not_follow_into_rgb():
    image = picture().convert("CMYK")
    image.info["icc_profile"] = ICC
    assert saved(image).info == {}


def test_orientation_is_left_to_the_caller():
    opened = saved(picture(), exif=orientation(6))
    assert opened.size == (48, 32)
    upright = ImageOps.exif_transpose(opened)
    assert upright.size == (32, 48)
    assert ExifTags.Base.Orientation not in upright.getexif()


def test_options_reach_the_codec():
    sizes = [len(saved(picture(), quality=quality).fp.getvalue()) for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))
    assert len(saved(picture(), quality=50, model="wavelet", device="cpu").fp.getvalue()) == sizes[1]


def test_a_serial_context():
    file = saved(picture(), model="hybrid", context="serial").fp
    assert lic.read_info(file.getvalue()).model == "hybrid_serial"


def test_options_of_other_formats_are_ignored():
    assert saved(picture(), subsampling=0, optimize=True).size == (48, 32)


def test_lossless():
    models = [name for name, card in lic.models().items() if card.lossless]
    if not models:
        pytest.skip("no lossless model is installed")
    assert saved(picture(), model=models[0], lossless=True).tobytes() == picture().tobytes()


def test_frames(animation: bytes):
    image = Image.open(BytesIO(animation))
    assert (image.n_frames, image.is_animated, image.tell(), image.info["loop"]) == (3, True, 0, 2)
    for frame in (2, 0, 1):
        image.seek(frame)
        assert (image.tell(), shade(image), image.info["duration"]) == (frame, 100 * frame, 10 * (frame + 1))
    for frame in (-1, 3):
        with pytest.raises(EOFError):
            image.seek(frame)
    assert image.tell() == 1
    assert [shade(frame) for frame in ImageSequence.Iterator(image)] == [0, 100, 200]


def test_a_still_picture_has_one_frame(path: Path):
    image = Image.open(path)
    assert (image.n_frames, image.is_animated, image.tell()) == (1, False, 0)
    with pytest.raises(EOFError):
        image.seek(1)


def test_saving_frames(animation: bytes):
    image = Image.open(BytesIO(animation))
    image.seek(1)
    assert shade(saved(image)) == 100  # without save_all, the current frame
    again = saved(image, save_all=True)
    assert image.tell() == 1
    assert (again.n_frames, again.info["loop"], again.info["duration"]) == (3, 2, 10)
    again.seek(2)
    assert again.info["duration"] == 30
    appended = saved(picture(), save_all=True, append_images=iter([image, picture()]), duration=7.6)
    assert (appended.n_frames, appended.info["duration"]) == (5, 8)


def test_saving_over_the_file_that_is_open(tmp_path: Path, animation: bytes):
    path = tmp_path / "x.lic"
    path.write_bytes(animation)
    Image.open(path).save(path, save_all=True, effort=0)
    with Image.open(path) as image:
        assert [shade(frame) for frame in ImageSequence.Iterator(image)] == [0, 100, 200]


def test_gif_becomes_lic(tmp_path: Path):
    path = tmp_path / "x.gif"
    picture(0).save(path, save_all=True, append_images=[picture(200).convert("L")], duration=[40, 50], loop=0)
    with Image.open(path) as gif:
        opened = saved(gif, save_all=True)
    assert (opened.n_frames, opened.info["duration"], opened.info["loop"]) == (2, 40, 0)


def test_threads(animation: bytes):
    def turn(frame: int) -> tuple[bytes, bytes]:
        image = Image.open(BytesIO(animation))
        image.seek(frame)
        return image.tobytes(), saved(image).fp.getvalue()

    frames = [0, 1, 2] * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(turn, frames)) == list(map(turn, frames))


def test_everyday_operations(path: Path):
    image = Image.open(path)
    image.thumbnail((24, 24))
    assert image.size == (24, 16)
    image = Image.open(path)
    image.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert Image.open(path).convert("L").crop((0, 0, 8, 8)).size == (8, 8)


def test_thumbnails_decode_only_what_they_need(path, monkeypatch):
    with Image.open(path) as image:
        whole = image.convert("RGB")
    scales = []
    inner = lic.decode
    monkeypatch.setattr(lic, "decode", lambda *args, **kw: scales.append(kw["scale"]) or inner(*args, **kw))
    with Image.open(path) as image:
        image.thumbnail((8, 8))
    whole.thumbnail((8, 8))
    assert scales == [0.5]
    assert image.size == whole.size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(whole)).mean() < 6


def test_draft(path):
    with Image.open(path) as image:
        width, height = image.size
        assert image.draft(None, (width, height)) is None
        mode, box = image.draft("L", (width // 5, height // 5))
        assert (mode, box) == ("RGB", (0, 0, width / 4, height / 4))
        assert image.size == (-(-width // 4), -(-height // 4))
        image.load()
        assert image.draft(None, (1, 1)) is None
        assert np.asarray(image).shape[:2] == image.size[::-1]
