"""The codec through its public API: every kind of array, monotone quality, damage, exactness, threads."""

import contextlib
import dataclasses
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import lic
from lic import container
from lic.layers.band_prior import STEP_UNIT
from lic.models.wavelet import LAGRANGIAN, quality_step
from tests.lic.conftest import natural


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(float) - b) ** 2).mean()
    return 10 * np.log10(np.iinfo(a.dtype).max ** 2 / max(error, 1e-9))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3), (64, 64), (65, 127), (33, 130)])
def test_every_shape_and_dtype_comes_back(size, channels, dtype):
    pixels = natural(*size, channels, dtype)
    picture = lic.decode(lic.encode(pixels, quality=90))
    assert picture.pixels.shape == pixels.shape
    assert picture.pixels.dtype == pixels.dtype
    assert psnr(pixels, picture.pixels) > 33
    if channels in (2, 4):
        assert np.array_equal(picture.pixels[..., -1], pixels[..., -1])


def test_size_and_psnr_rise_with_quality(photo):
    coded = [lic.encode(photo, quality=q) for q in (0, 12.5, 25, 37.5, 50, 62.5, 75, 87.5, 100)]
    sizes = [len(data) for data in coded]
    quality = [psnr(photo, lic.decode(data).pixels) for data in coded]
    assert sizes == sorted(set(sizes))
    assert quality == sorted(quality)
    assert quality[-1] > 46


def test_effort_makes_files_smaller_at_the_same_price():
    photo = natural(400, 400, 3)

    def cost(effort: int) -> float:
        data = lic.encode(photo, quality=60, effort=effort)
        error = np.square((photo - lic.decode(data).pixels.astype(float)) * STEP_UNIT / quality_step(60)).sum()
        return error + LAGRANGIAN["psnr"] * 8 * len(data)

    costs = [cost(effort) for effort in (8, 5, 0)]
    assert costs == sorted(costs)


def test_metadata_comes_back_byte_for_byte(photo):
    metadata = {"exif": b"Exif\0\0MM\0*", "icc_profile": bytes(range(256)), "xmp": b"<x:xmpmeta/>"}
    data = lic.encode(photo, **metadata)
    picture = lic.decode(data)
    for name, payload in metadata.items():
        assert getattr(picture, name) == getattr(lic.read_info(data), name) == payload
    assert lic.read_info(data).weights == lic.decode(data).info.weights


def test_frames_follow_one_another():
    frames = [natural(20, 30, 4, seed=i) for i in range(3)]
    data = lic.encode(frames, quality=95, durations=[10, 20, 30], loop=2)
    info = lic.read_info(data)
    assert (info.frames, info.durations, info.loop) == (3, (10, 20, 30), 2)
    for i, frame in enumerate(frames):
        assert psnr(frame, lic.decode(data, frame=i).pixels) > 35
    with pytest.raises(IndexError, match="3"):
        lic.decode(data, frame=3)


def test_sources_may_be_bytes_paths_and_files(photo, tmp_path):
    data = lic.encode(photo)
    path = tmp_path / "x.lic"
    path.write_bytes(data)
    expected = lic.decode(data).pixels
    for source in (bytearray(data), memoryview(data), path, str(path), io.BytesIO(data)):
        assert np.array_equal(lic.decode(source).pixels, expected)
    with pytest.raises(TypeError, match="int"):
        lic.decode(5)


def test_the_context_is_chosen_at_encoding_and_named_in_the_file(photo):
    parallel, serial = (lic.encode(photo, model="hybrid", context=context) for context in ("parallel", "serial"))
    assert [lic.read_info(data).model for data in (parallel, serial)] == ["hybrid", "hybrid_serial"]
    assert np.array_equal(lic.decode(parallel).pixels, lic.decode(serial).pixels)  # the same latents
    assert lic.encode(photo, model="hybrid") == parallel
    assert lic.encode(photo, model="hybrid_serial") == serial


BAD = {
    "floats": (np.zeros((4, 4)), {}, TypeError, "float64"),
    "no array": ([[1, 2]], {}, TypeError, "list"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), {}, ValueError, "channels"),
    "one dimension": (np.zeros(4, np.uint8), {}, ValueError, "H, W"),
    "empty": (np.zeros((0, 4), np.uint8), {}, ValueError, "sides"),
    "no frames": ([], {}, ValueError, "no frames"),
    "frames of two sizes": ([np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)], {}, ValueError, "one shape"),
    "quality 101": (np.zeros((4, 4), np.uint8), {"quality": 101}, ValueError, "0 to 100"),
    "quality nan": (np.zeros((4, 4), np.uint8), {"quality": float("nan")}, ValueError, "0 to 100"),
    "effort 10": (np.zeros((4, 4), np.uint8), {"effort": 10}, ValueError, "0 to 9"),
    "unknown model": (np.zeros((4, 4), np.uint8), {"model": "no-such"}, lic.ModelError, "installed are"),
    "lossless": (np.zeros((4, 4), np.uint8), {"lossless": True, "model": "factorized"}, ValueError, "not lossless"),
    "tune": (np.zeros((4, 4), np.uint8), {"tune": "ears"}, ValueError, "psnr or visual"),
    "context": (np.zeros((4, 4), np.uint8), {"context": "serial"}, ValueError, "choose hybrid"),
    "unknown context": (
        np.zeros((4, 4), np.uint8),
        {"context": "no", "model": "hybrid"},
        ValueError,
        "no 'no' context",
    ),
    "lossy": (np.zeros((4, 4), np.uint8), {"model": "wavelet_lossless"}, ValueError, "not lossy"),
    "device": (np.zeros((4, 4), np.uint8), {"device": "abacus"}, ValueError, "abacus"),
    "exif as text": (np.zeros((4, 4), np.uint8), {"exif": "no"}, TypeError, "bytes"),
    "durations": (np.zeros((4, 4), np.uint8), {"durations": [1, 2]}, ValueError, "durations"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_with_a_reason(case):
    pixels, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        lic.encode(pixels, **options)


def test_damage_is_noticed_before_anything_is_decoded(photo):
    data = lic.encode(photo, quality=30, exif=b"Exif")
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.integers(8)
        with pytest.raises(lic.FormatError):
            lic.decode(bytes(damaged))
    for length in range(0, len(data), 7):
        with pytest.raises(lic.FormatError):
            lic.decode(data[:length])
        with pytest.raises(lic.FormatError):
            lic.verify(data[:length])
    lic.verify(data)


def test_a_truncated_file_gives_what_it_holds_when_asked(photo):
    data = lic.encode(photo, quality=80)
    whole = lic.decode(data).pixels
    errors = [psnr(whole, lic.decode(data[:length], truncated=True).pixels) for length in (60, len(data) // 2)]
    assert 10 < errors[0] <= errors[1]


def rewritten(data: bytes, **changes: str) -> bytes:
    file = io.BytesIO(data)
    info = container.read_info(file)
    return container.write(dataclasses.replace(info, **changes), list(container.read_frames(file, info)))


def test_a_file_of_another_model_or_other_weights_says_so(photo):
    data = lic.encode(photo)
    with pytest.raises(lic.ModelError, match="no model 'sketch'"):
        lic.decode(rewritten(data, model="sketch"))
    with pytest.raises(lic.ModelError, match="weights 00112233"):
        lic.decode(rewritten(data, weights="0011223344556677"))


def test_hostile_streams_with_right_checksums_raise_format_errors_alone():
    info = lic.read_info(lic.encode(natural(40, 40, 4)))
    rng = np.random.default_rng(0)
    for length in (0, 1, 4, 5, 6, 9, 50, 300):
        frame = container.Frame(rng.bytes(length), rng.bytes(length))
        with contextlib.suppress(lic.FormatError):
            lic.decode(container.write(info, [frame]))


def test_files_are_equal_whatever_the_threads(photo):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            data = lic.encode(photo)
            results.append((data, lic.decode(data).pixels.tobytes()))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]


def test_the_portable_kernel_decodes_to_the_same_pixels(photo, monkeypatch):
    from lic.layers.integer import PortableConv2d
    from lic.models import wavelet

    odd = natural(61, 97, 3)
    for pixels, tune in ((photo, "psnr"), (odd, "visual"), (natural(50, 40, 1), "psnr")):
        data = lic.encode(pixels, quality=60, tune=tune)
        expected = lic.decode(data).pixels
        with monkeypatch.context() as patch:
            patch.setattr(wavelet, "kernel_for", lambda device: PortableConv2d)
            portable = wavelet.WaveletCodec(torch.device("cpu"))
            patch.setattr("lic.registry.load", lambda *_, portable=portable: portable)
            assert np.array_equal(lic.decode(data).pixels, expected)
            assert lic.encode(pixels, quality=60, tune=tune) == data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tune", ["psnr", "visual"])
def test_cuda_decodes_to_the_same_pixels(photo, tune):
    for encoder in ("cpu", "cuda"):
        data = lic.encode(photo, tune=tune, device=encoder)
        assert np.array_equal(lic.decode(data, device="cpu").pixels, lic.decode(data, device="cuda").pixels)


def test_threads_do_not_disturb_one_another():
    pictures = [natural(40 + 8 * i, 64, 3, seed=i) for i in range(4)]
    expected = [lic.decode(lic.encode(p)).pixels for p in pictures]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        results[i] = lic.decode(lic.encode(pictures[i])).pixels

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(results[i], expected[i]) for i in range(4))


def test_headers_are_read_without_torch(photo, tmp_path):
    (tmp_path / "x.lic").write_bytes(lic.encode(photo))
    script = "import sys, lic; lic.read_info(sys.argv[1]); lic.verify(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, tmp_path / "x.lic"], check=True)


@pytest.mark.parametrize("target", [600, 1500, 4000, 6000])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_target_size_is_met_and_never_exceeded(target, channels):
    pixels = natural(200, 190, channels)
    if channels == 4:
        pixels[..., 3] = 255
    size = len(lic.encode(pixels, target_size=target))
    assert 0.99 * target - 1 <= size <= target


def test_visual_tuning_keeps_coarse_details_for_fine_ones():
    pixels = natural(256, 256, 3)
    pixels = np.clip(pixels + np.random.default_rng(0).normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    errors = []
    for tune in ("psnr", "visual"):
        decoded = lic.decode(lic.encode(pixels, target_size=12_000, tune=tune)).pixels
        difference = decoded.astype(float) - pixels
        coarse = difference.reshape(32, 8, 32, 8, 3).mean((1, 3))
        errors.append((np.square(difference).mean(), np.square(coarse).mean()))
    assert errors[1][0] > errors[0][0]
    assert errors[1][1] < 0.8 * errors[0][1]


def test_a_target_in_bits_per_pixel_counts_all_frames(photo):
    frames = [photo, photo[::-1].copy()]
    data = lic.encode(frames, target_bpp=1.0)
    assert 0.99 <= 8 * len(data) / (2 * photo.shape[0] * photo.shape[1]) <= 1


@pytest.mark.parametrize(("target", "dtype"), [(36.0, np.uint8), (41.0, np.uint8), (35.0, np.uint16)])
def test_a_target_psnr_is_met(target, dtype):
    pixels = natural(256, 256, 3, dtype)
    reached = psnr(pixels, lic.decode(lic.encode(pixels, target_psnr=target)).pixels)
    assert abs(reached - target) < 0.051


def test_targets_out_of_reach(photo):
    assert lic.encode(photo, target_size=10**7) == lic.encode(photo, quality=100)
    assert lic.encode(photo, target_psnr=3.0) == lic.encode(photo, quality=0)
    with pytest.raises(lic.LicError, match="at quality 0"):
        lic.encode(photo, target_size=50)


@pytest.mark.parametrize(
    "options", [{"target_size": 0}, {"target_bpp": -1.0}, {"target_psnr": 30.0, "target_size": 500}]
)
def test_targets_that_make_no_sense(photo, options):
    with pytest.raises(lic.LicError, match="exclude one another"):
        lic.encode(photo, **options)
