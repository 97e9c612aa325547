"""Pictures that were JPEG files once are coded losslessly as what those files had."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

import lic
from lic.layers import cameras, jpeg, jpeg_trace, ycbcr
from lic.layers.jpeg import Component, Jpeg
from tests.lic.conftest import natural
from tests.lic.test_lossless import agrees_and_survives_damage

SAMPLINGS = {0: (1, 1), 1: (1, 2), 2: (2, 2)}  # by Pillow's number


def opened(pixels: np.ndarray, **options: object) -> tuple[np.ndarray, bytes, list[list[int]]]:
    """What Pillow makes of a JPEG file of the pixels, the file, and its quantisation tables, in zigzag order."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    image = Image.open(file)
    tables = [[table[i] for i in jpeg.ZIGZAG] for table in image.quantization.values()]
    return np.array(image), file.getvalue(), tables


def textured(height: int, width: int, channels: int) -> np.ndarray:
    """With detail of all frequencies."""
    noise = np.random.default_rng(1).normal(0, 12, (height, width, channels))
    picture = natural(height, width, channels).reshape(height, width, channels) * 0.7 + 30 + noise
    return picture.clip(0, 255).astype(np.uint8).squeeze()


def found(pixels: np.ndarray) -> Jpeg | None:
    samples = torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.int32))
    if len(samples) == 1:
        return jpeg_trace.found(samples)
    origin = ycbcr.traced(samples)
    return origin and jpeg_trace.found(samples, origin)


def wrong(jpeg_file: Jpeg, pixels: np.ndarray) -> float:
    """The share of the pixels that it isn't."""
    planes = jpeg_file.planes(*pixels.shape[:2])
    made = ycbcr.Conversion(ycbcr.JPEG).rgb(planes).permute(1, 2, 0) if len(planes) == 3 else planes[0] + 128
    different = made.numpy() != pixels
    return float((different.any(2) if pixels.ndim == 3 else different).mean())


@pytest.mark.parametrize("quality", [30, 75, 90, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2, None])
def test_a_file_is_found_in_its_pixels(quality, subsampling):
    pixels = textured(160, 192, 1 if subsampling is None else 3)
    options = {} if subsampling is None else {"subsampling": subsampling}
    pixels, _, tables = opened(pixels, quality=quality, **options)
    there = found(pixels)
    assert there is not None
    assert there.sampling == SAMPLINGS[subsampling or 0]
    for component, table in zip(there.components, [tables[0]] + 2 * tables[1:], strict=True):
        used = component.table > 0
        assert used.any()
        assert torch.equal(component.table[used], torch.tensor(table)[used].int())
    assert wrong(there, pixels) < 0.002


@pytest.mark.parametrize("sides", [(157, 181), (163, 170), (8, 300), (300, 11)])
def test_pictures_may_end_within_a_block(sides):
    pixels, data, _ = opened(textured(*sides, 3), quality=80, subsampling=2)
    coded = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, pixels)
    if min(sides) > 100:
        assert 64 <= stream(coded)[0] < 69
        assert len(coded) < 1.1 * len(data)


def stream(coded: bytes) -> bytes:
    from lic import container

    file = io.BytesIO(coded)
    info = container.read_info(file)
    return next(container.read_frames(file, info)).planes


@pytest.mark.parametrize("kind", ["colour", "grey", "grey as colour", "alpha", "white and black", "other steps"])
def test_such_pictures_take_fewer_bytes_than_the_file(kind):
    pixels = textured(160, 192, 1 if kind in ("grey", "grey as colour", "white and black") else 3)
    if kind == "white and black":
        pixels = (pixels.astype(int) * 2 - 110).clip(0, 255).astype(np.uint8)
    steps = [[min(255, 3 + i) for i in range(64)], [min(255, 5 + 2 * i) for i in range(64)]]
    options = {"qtables": steps} if kind == "other steps" else {"quality": 85}
    pixels, data, _ = opened(pixels, optimize=True, **options)
    if kind == "grey as colour":
        pixels = pixels[..., None].repeat(3, 2)
    if kind == "alpha":
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    coded = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, pixels)
    assert len(coded) < 0.95 * len(data)


def test_pillow_needs_not_be_told(tmp_path):
    _, data, _ = opened(textured(120, 130, 3), quality=75)
    (tmp_path / "x.jpg").write_bytes(data)
    with Image.open(tmp_path / "x.jpg") as image:
        assert JpegImagePlugin.get_sampling(image) == 2
        image.save(tmp_path / "x.lic", lossless=True)
        with Image.open(tmp_path / "x.lic") as again:
            assert np.array_equal(np.array(again), np.array(image))
    assert (tmp_path / "x.lic").stat().st_size < 0.9 * len(data)


def test_some_pixels_may_be_something_else():
    pixels, data, _ = opened(textured(160, 192, 3), quality=80)
    rng = np.random.default_rng(0)
    for y, x in zip(rng.integers(0, 160, 20), rng.integers(0, 192, 20), strict=True):
        pixels[y, x] = rng.integers(0, 256, 3)
    coded = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, pixels)
    assert len(coded) < 1.2 * len(data)
    left, top, right, bottom = region = (17, 30, 112, 90)
    assert np.array_equal(lic.decode(coded, region=region).pixels, pixels[top:bottom, left:right])
    half = np.asarray(Image.fromarray(pixels).resize((96, 80), Image.Resampling.BOX)).astype(int)
    assert np.abs(lic.decode(coded, scale=1 / 2).pixels - half).max() <= 1


def test_other_pictures_are_not():
    assert found(natural(160, 192, 1)) is None
    assert found(np.random.default_rng(0).integers(0, 256, (160, 192), np.uint8)) is None
    assert found(np.full((160, 192), 200, np.uint8)) is None
    pixels, _, _ = opened(textured(160, 192, 3), quality=100)
    assert found(pixels) is None
    for crop in (pixels[3:, 5:], pixels[:, 1:], opened(textured(160, 192, 1), quality=75)[0][4:]):
        assert found(crop) is None
    smaller = np.asarray(Image.fromarray(opened(textured(160, 192, 1), quality=75)[0]).resize((150, 131)))
    assert found(smaller) is None


@pytest.mark.parametrize("turn", range(8))
def test_turned_pictures_are_found_too(turn):
    pixels, data, _ = opened(textured(117, 160, 3), quality=80)
    turned = jpeg.turned(torch.from_numpy(pixels).permute(2, 0, 1), turn)
    assert torch.equal(jpeg.turned(turned, turn, back=True), torch.from_numpy(pixels).permute(2, 0, 1))
    there = turned.permute(1, 2, 0).contiguous().numpy()
    coded = lic.encode(there, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, there)
    assert len(coded) < 1.1 * len(data)


def test_what_is_found_is_found_in_large_pictures():
    """Whose middle is looked at first."""
    pixels, _, _ = opened(textured(530, 1100, 3), quality=85)
    there = found(pixels)
    assert there is not None
    assert there.sampling == (2, 2)
    assert wrong(there, pixels) < 0.006


def test_samples_are_those_of_an_exact_transform_rounded():
    rng = np.random.default_rng(0)
    coefficients, table = torch.from_numpy(rng.integers(-9, 10, (64, 5, 7))).int(), torch.arange(1, 65).int() // 4 + 1
    x = jpeg.samples(coefficients, table, 2**12)
    back = jpeg.transformed(x.double())
    assert torch.equal((back / table.view(-1, 1, 1)).round()[8:], coefficients[8:])
    assert (back - coefficients * table.view(-1, 1, 1)).abs().max() < 4
    assert jpeg.samples(coefficients, table).abs().max() <= 128


def test_upsampling_is_a_triangle_filter():
    x = torch.from_numpy(np.random.default_rng(0).integers(-128, 128, (6, 9))).int()
    for rows, columns in (1, 1), (1, 2), (2, 1), (2, 2):
        up = jpeg.upsampled(x, rows, columns)
        exact = torch.nn.functional.interpolate(
            x[None, None].double(), scale_factor=(rows, columns), mode="bilinear", align_corners=False
        )
        assert (up - exact[0, 0]).abs().max() <= 0.5


def test_kernels_agree_and_damage_is_an_error_or_a_picture(monkeypatch):
    agrees_and_survives_damage(opened(textured(128, 160, 3), quality=85)[0], 64 + 3, monkeypatch)


@pytest.mark.parametrize("sides", [(2, 1100), (1100, 1), (3, 1030), (7, 9), (1, 1), (530, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_thin_pictures_come_back(sides, channels):
    pixels, _, _ = opened(
        textured(*sides, channels).reshape(*sides, channels).squeeze(2 if channels == 1 else ()), quality=85
    )
    assert np.array_equal(lic.decode(lic.encode(pixels, lossless=True)).pixels, pixels)


def test_a_prefix_opens():
    pixels, _, _ = opened(textured(160, 192, 3), quality=85)
    data = lic.encode(pixels, lossless=True)
    assert stream(data)[0] == 64 + 3
    errors = []
    for share in (0.3, 0.6, 0.9):
        cut = data[: int(share * len(data))]
        errors.append(np.abs(lic.decode(cut, truncated=True).pixels.astype(int) - pixels).mean())
        with pytest.raises(lic.FormatError):
            lic.decode(cut)
    assert 25 > errors[0] > errors[1] > errors[2]


def test_training_sees_files_as_they_are():
    pictures = torch.from_numpy(textured(64, 96, 3)).permute(2, 0, 1)[None].float()
    sizes = set()
    for seed in range(6):
        components = cameras.compressed(pictures, torch.Generator().manual_seed(seed))
        (luma, table), (chroma, _), _ = components
        assert luma.shape == (1, 64, 8, 12)
        sizes.add(tuple(chroma.shape[2:]))
        assert ((luma == 0).flatten(2).all(2) == (table == 0)).all()
        samples = Component(luma[0], table[0]).plane((1, 1), 64, 96)
        grey = pictures[0].mul(torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0) - 128
        assert (samples - grey).abs().mean() < 8
    assert sizes == {(8, 12), (4, 6)}


def test_a_file_is_kept_as_it_is_where_that_is_smaller():
    pixels, data, _ = opened(textured(160, 192, 3), quality=75)
    exact = lic.encode(pixels, lossless=True)
    assert lic.encode(pixels, quality=95) == exact
    assert len(lic.encode(pixels, quality=20)) < len(exact)
    assert lic.encode(pixels, target_size=len(data)) == exact
    bits = 8 * len(exact) / pixels[..., 0].size
    assert bits / 2 < jpeg_trace.bits(torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.int32))) < bits * 2
    other = torch.from_numpy(textured(160, 192, 3).transpose(2, 0, 1).astype(np.int32))
    assert jpeg_trace.bits(other) == np.inf
