"""The survey's models with the weights they start from: a wavelet packet that nothing has trained."""

import contextlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lic
from lic import cli
from lic.codec import Codec, PlaneShape, Settings, View
from lic.entropy import Table
from lic.layers import gaussian, mixture
from lic.layers.integer import Int8Conv2d, PortableConv2d
from lic.models import context3d, factorized, hybrid, hybrid_serial, hyperprior, softvq
from lic.training import data, loop
from tests.lic.conftest import natural

CLASSES: dict[str, type[Codec]] = {
    "factorized": factorized.FactorizedCodec,
    "hyperprior": hyperprior.HyperpriorCodec,
    "hybrid": hybrid.HybridCodec,
    "hybrid_serial": hybrid_serial.HybridSerialCodec,
    "softvq": softvq.SoftvqCodec,
    "context3d": context3d.Context3dCodec,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid_serial, "__file__", str(folder / "model.py"))  # it goes on from `hybrid`
        for name, cls in CLASSES.items():
            torch.manual_seed(0)
            shipped = cls.trainable().shipped([natural(90, 70, 3, seed=s) for s in range(3)])
            save_file({k: v.contiguous() for k, v in shipped.items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(params=CLASSES)
def model(request, folder, monkeypatch) -> str:
    """The name of a model that lic.encode and lic.decode now find, with its first weights."""
    name = request.param
    monkeypatch.setattr(sys.modules[CLASSES[name].__module__], "__file__", str(folder / "model.py"))
    codec = CLASSES[name](CPU)
    monkeypatch.setattr("lic.registry.model_class", CLASSES.__getitem__)
    monkeypatch.setattr("lic.registry.load", lambda *_: codec)
    return name


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(float) - b) ** 2).mean()
    return 10 * np.log10(np.iinfo(a.dtype).max ** 2 / max(error, 1e-9))


def test_weights_are_small(model, folder):
    assert (folder / f"{model}.safetensors").stat().st_size < 6_000_000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 2), (64, 64), (65, 127)])
def test_every_shape_and_dtype_comes_back(model, size, channels, dtype):
    pixels = natural(*size, channels, dtype)
    picture = lic.decode(lic.encode(pixels, model=model, quality=90))
    assert picture.pixels.shape == pixels.shape
    assert picture.pixels.dtype == dtype
    assert psnr(pixels, picture.pixels) > (22 if model == "softvq" else 36)  # codebooks end somewhere
    if channels == 4:
        assert np.array_equal(picture.pixels[..., -1], pixels[..., -1])


def test_size_and_psnr_rise_with_quality(model):
    photo = natural(160, 192, 3)
    coded = [lic.encode(photo, model=model, quality=q) for q in (0, 12.5, 25, 37.5, 50, 62.5, 75, 87.5, 100)]
    sizes = [len(c) for c in coded]
    quality = [psnr(photo, lic.decode(c).pixels) for c in coded]
    assert sizes == sorted(set(sizes))
    assert quality == sorted(quality)
    assert quality[-1] > (33 if model == "softvq" else 48)


def test_a_target_size_is_met(model):
    target = 2000 if model == "softvq" else 6000
    size = len(lic.encode(natural(200, 180, 3), model=model, target_size=target))
    assert target * 0.99 <= size <= target


def test_regions_and_scales(model, photo):
    coded = lic.encode(photo, model=model)
    whole = lic.decode(coded).pixels
    assert np.array_equal(lic.decode(coded, region=(10, 20, 71, 33)).pixels, whole[20:33, 10:71])
    halved = lic.decode(coded, scale=1 / 2).pixels
    assert np.abs(halved - whole.reshape(48, 2, 64, 2, 3).mean((1, 3))).max() <= 0.5


def test_what_is_left_of_a_truncated_file(model, photo):
    coded = lic.encode(photo, model=model, quality=80)
    whole = lic.decode(coded).pixels
    lengths = int(len(coded) * 0.6), int(len(coded) * 0.95)
    errors = [psnr(whole, lic.decode(coded[:length], truncated=True).pixels) for length in lengths]
    assert 10 < errors[0] <= errors[1]


def test_arbitrary_streams_raise_format_errors_alone(model):
    codec = lic.registry.load(model, CPU)
    shape, rng = PlaneShape(3, 40, 40, 8), np.random.default_rng(0)
    for length in (0, 1, 2, 3, 50, 300):
        for start in (b"", b"\0\3"):
            streams = {name: start + rng.bytes(length) for name in codec.card.streams}
            with contextlib.suppress(lic.FormatError), torch.inference_mode():
                assert codec.decompress(streams, shape, View()).shape == (3, 40, 40)


def symbols_of(codec: Codec, streams: dict[str, bytes], shape: PlaneShape, monkeypatch) -> torch.Tensor:
    """What the entropy decoder hands to the synthesis."""
    kept = []
    gains = codec.autoencoder.gains
    with monkeypatch.context() as patch, torch.inference_mode():
        inner = gains.dequantise
        patch.setattr(gains, "dequantise", lambda symbols, position: kept.append(symbols) or inner(symbols, position))
        codec.decompress(streams, shape, View())
    return kept[0]


@pytest.mark.skipif(not Int8Conv2d.available(), reason="this torch lacks the int8 kernel")
@pytest.mark.parametrize("size", [(96, 128), (61, 147), (5, 1)])
@pytest.mark.parametrize("name", ["hyperprior", "hybrid", "hybrid_serial", "context3d"])
def test_all_kernels_and_thread_counts_decode_the_same_symbols(folder, monkeypatch, name, size):
    module = sys.modules[CLASSES[name].__module__]
    monkeypatch.setattr(module, "__file__", str(folder / "model.py"))
    codecs = []
    for kernel in (Int8Conv2d, PortableConv2d):
        monkeypatch.setattr(module, "kernel_for", lambda device, kernel=kernel: kernel)
        codecs.append(CLASSES[name](CPU))
    shape = PlaneShape(3, *size, 8)
    planes = torch.from_numpy(natural(*size, 3).astype(np.int32)).permute(2, 0, 1)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        streams = codecs[0].compress(planes, shape, Settings(60, False, 5))
        if name != "context3d":
            hyper = torch.randint(-70, 71, (hyperprior.HYPERLATENTS, 5, 4))  # some saturate
            tables = [codec.networks.tables(hyper, 700, (18, 16)) for codec in codecs]
            assert torch.equal(*tables)
            assert len(tables[0].unique()) > 5
    try:
        results = []
        for codec in codecs:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(symbols_of(codec, streams, shape, monkeypatch))
    finally:
        torch.set_num_threads(threads)
    assert results[0].any()
    assert all(torch.equal(results[0], result) for result in results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CLASSES)
def test_cuda_decodes_the_same_symbols(folder, monkeypatch, name, photo):
    monkeypatch.setattr(sys.modules[CLASSES[name].__module__], "__file__", str(folder / "model.py"))
    codecs = [CLASSES[name](torch.device(device)) for device in ("cpu", "cuda")]
    shape = PlaneShape(3, *photo.shape[:2], 8)
    planes = torch.from_numpy(photo.astype(np.int32)).permute(2, 0, 1)
    for encoder in codecs:
        with torch.inference_mode():
            streams = encoder.compress(planes, shape, Settings(60, False, 5))
        first, second = (symbols_of(codec, streams, shape, monkeypatch).cpu() for codec in codecs)
        assert torch.allclose(first.float(), second.float(), atol=1e-3)  # `softvq` has centres there


@pytest.mark.parametrize("name", CLASSES)
def test_what_training_counts_is_what_files_take(folder, name, monkeypatch):
    """The loss without training, bit for bit against a file: the same networks, rounded, in integers."""
    monkeypatch.setattr(sys.modules[CLASSES[name].__module__], "__file__", str(folder / "model.py"))
    codec, networks = CLASSES[name](CPU), CLASSES[name].trainable().eval()
    networks.start_from(load_file(folder / f"{name}.safetensors"))
    if name == "hyperprior":  # undo the calibration, which trusts pictures at other positions
        codec.family = [Table(-gaussian.REACH, row) for row in gaussian.gaussian_frequencies()]
    position = 1000
    monkeypatch.setattr("lic.layers.gain.positions", lambda count, _: torch.full((count,), position / 256))
    monkeypatch.setattr("lic.layers.gain.quality_position", lambda _: position)
    monkeypatch.setattr(softvq, "quality_position", lambda _: position)
    pixels = natural(128, 192, 3)
    planes = torch.from_numpy(pixels.astype(np.int32)).permute(2, 0, 1)
    with torch.inference_mode():
        losses = networks(planes[None].float(), torch.Generator())
        streams = codec.compress(planes, PlaneShape(3, 128, 192, 8), Settings(50, False, 5))
        decoded = codec.decompress(streams, PlaneShape(3, 128, 192, 8), View())
    bits = 8 * sum(map(len, streams.values()))
    assert abs(bits / (128 * 192) / float(losses["bits_per_pixel"]) - 1) < 0.03
    if "psnr" in losses:
        assert abs(psnr(pixels, decoded.permute(1, 2, 0).numpy()) - float(losses["psnr"])) < 0.05


@pytest.mark.parametrize("name", CLASSES)
def test_three_steps_of_training(name, tmp_path):
    pictures = data.Pictures([natural(80, 96, 3, seed=s) for s in range(3)], [natural(80, 96, 3, seed=9)])
    networks = CLASSES[name].trainable()
    before = {key: value.clone() for key, value in networks.state_dict().items()}
    options = loop.Options(steps=3, batch=2, side=64)
    run = loop.train(networks, pictures, tmp_path / "run", options, CPU)
    unmoved = [
        key for key, value in run.networks.named_parameters() if value.requires_grad and torch.equal(value, before[key])
    ]
    assert not unmoved
    assert all(torch.isfinite(value).all() for value in run.networks.state_dict().values())
    assert np.isfinite(list(run.validate(pictures.validation).values())).all()
    shipped = run.averaged().shipped(pictures.training[:1])
    again = CLASSES[name].trainable()
    again.start_from(shipped)
    for key, value in again.shipped(pictures.training[:1]).items():
        if key.endswith(".bits"):  # `softvq`: an assignment goes by the histograms that it makes
            assert (value.float() - shipped[key].float()).abs().mean() < 1, key
        else:
            assert torch.equal(value, shipped[key]), key


@pytest.mark.parametrize("name", CLASSES)
def test_the_command_trains_them(name, folder, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr("lic.registry.model_class", CLASSES.__getitem__)
    monkeypatch.setattr(sys.modules[CLASSES[name].__module__], "__file__", str(tmp_path / "model.py"))
    shutil.copy(folder / "hybrid.safetensors", tmp_path)  # what `hybrid_serial` goes on from
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        Image.fromarray(natural(70, 70, 3, seed=seed)).save(tmp_path / "pictures" / f"{seed}.png")
    exported = tmp_path / f"{name}.safetensors"
    arguments = ["train", name, "--data", str(tmp_path / "pictures"), "--folder", str(tmp_path / "run"), "--steps", "1"]
    assert cli.main([*arguments, "--batch", "1", "--side", "64", "--device", "cpu", "--export", str(exported)]) == 0
    CLASSES[name](CPU)


def test_hybrid_goes_on_from_hyperprior(folder):
    """Transforms and hyperlatents are the same, the first rate about that of the hyperprior."""
    tensors = load_file(folder / "hyperprior.safetensors")
    tensors["usual_log2_scales"] += 0.25 / 32
    networks = hyperprior.HyperpriorCodec.trainable().eval(), hybrid.HybridCodec.trainable().eval()
    for network in networks:
        network.start_from(tensors)
    pixels = torch.from_numpy(natural(128, 192, 3)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        before, after = (network(pixels, torch.Generator().manual_seed(0)) for network in networks)
    assert abs(after["psnr"] - before["psnr"]) < 1e-3
    assert after["gain_db"] == 0
    assert abs(after["bits_per_pixel"] / before["bits_per_pixel"] - 1) < 0.05


def test_hybrid_learns(folder):
    """A few steps on one picture lower the loss; the enhancement gains something, and can be left out."""
    torch.manual_seed(0)
    networks = hybrid.HybridCodec.trainable()
    networks.start_from(load_file(folder / "hybrid.safetensors"))
    pixels = torch.from_numpy(natural(64, 64, 3)).permute(2, 0, 1)[None].float()
    optimiser = torch.optim.Adam(networks.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        out = networks(pixels, torch.Generator().manual_seed(1))
        out["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(out["loss"].detach()))
    assert losses[-1] < losses[0] - 0.1
    assert out["gain_db"] > 0


def test_hybrid_without_its_enhancement(folder, monkeypatch, photo):
    monkeypatch.setattr(hybrid, "__file__", str(folder / "model.py"))
    codec, shape = hybrid.HybridCodec(CPU), PlaneShape(3, *photo.shape[:2], 8)
    torch.nn.init.constant_(codec.networks.enhancement.out.bias, 0.2)
    planes = torch.from_numpy(photo.astype(np.int32)).permute(2, 0, 1)
    with torch.inference_mode():
        streams = codec.compress(planes, shape, Settings(60, False, 5))
        enhanced = codec.decompress(streams, shape, View())
        codec.enhances = False
        assert (codec.decompress(streams, shape, View()) != enhanced).any()


@pytest.mark.parametrize("size", [(6, 9), (2, 7), (9, 2)])
def test_a_wavefront_has_the_mixtures_that_all_positions_at_once_have(folder, monkeypatch, size):
    """What a decoder computes of the latents decoded so far, against a convolution over the whole picture."""
    monkeypatch.setattr(hybrid_serial, "__file__", str(folder / "model.py"))
    codec, rng = hybrid_serial.HybridSerialCodec(CPU), np.random.default_rng(0)
    networks, expected = codec.networks, []

    def code(place, mixtures):
        expected.append((place, mixtures))
        return rng.integers(-9, 10, mixtures.means.shape[1])

    hyper = torch.randint(-20, 21, (hyperprior.HYPERLATENTS, -(-size[0] // 4), -(-size[1] // 4)))
    with torch.inference_mode():
        latents = networks.walk(hyper, 700, size, codec.cumulative, code)[None].long()
        at = torch.tensor([700])
        trunk = networks.hyper_synthesis.features(networks.hyper_inputs(hyper, 700))
        real = networks.hyper_synthesis.out(trunk)
        scales = hybrid.to_grids(networks.integer_log2_scales(real, 700, size)[None])
        known = [
            mixture.relative(*grids).clamp(-63, 63) for grids in zip(hybrid.to_grids(latents), scales, strict=True)
        ]
        trunk = trunk[..., : size[0], : size[1]]
        trunks = trunk, networks.finer(trunk, known[0], at)
        parameters = [networks.serial_of(grid).whole(trunks[grid], known[grid], at).flatten(2)[0] for grid in range(2)]
    for place, mixtures in expected:
        there = parameters[place.grid][:, place.positions]
        again = mixture.Mixtures.of(there, place.of(scales), codec.cumulative)
        assert all(np.array_equal(*fields) for fields in zip(again, mixtures, strict=True))
    assert len(expected) == sum(len(hybrid_serial.wavefronts(*(n * k for n in size))) for k in (1, 2))
    assert len({tuple(mixtures.means[:, 0]) for _, mixtures in expected}) > 3


@pytest.mark.parametrize("name", ["hyperprior", "hybrid"])
def test_latents_beyond_every_table_come_back(folder, monkeypatch, name):
    """Weights that expect next to nothing, and a picture of black and white squares: escapes everywhere."""
    tensors = load_file(folder / f"{name}.safetensors")
    tensors["usual_log2_scales"] -= 12 / 32
    monkeypatch.setattr("lic.weights.load", lambda *_: (dict(tensors), "0" * 16))
    codec, shape = CLASSES[name](CPU), PlaneShape(3, 48, 48, 8)
    blocks = torch.randint(0, 2, (3, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    planes = 255 * blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    kept = []
    quantise = codec.autoencoder.gains.quantise
    monkeypatch.setattr(codec.autoencoder.gains, "quantise", lambda *given: kept.append(quantise(*given)) or kept[-1])
    with torch.inference_mode():
        streams = codec.compress(planes, shape, Settings(100, False, 5))
    assert kept[0].abs().max() > 1000
    assert torch.equal(symbols_of(codec, streams, shape, monkeypatch), kept[0])
