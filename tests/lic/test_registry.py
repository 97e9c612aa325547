"""Models come from entry points: one in another installed package is found, named in files, and used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lic
from lic import registry
from lic.models import wavelet

MODEL = """
import torch
from lic.codec import ModelCard

class Raw:
    card = ModelCard("raw", "none", "a test", lossy=True, lossless=True, streams=("size", "samples"))
    weights = "00" * 8

    def __init__(self, device, weights=None):
        pass

    def compress(self, planes, shape, settings):
        raw = planes.cpu().numpy().astype("<u2").tobytes()
        return {"size": b"%d" % len(raw), "samples": raw}

    def decompress(self, streams, shape, truncated=False):
        import numpy as np
        assert int(streams["size"]) == len(streams["samples"])
        samples = np.frombuffer(streams["samples"], "<u2").astype("int32")
        return torch.from_numpy(samples).view(shape.channels, shape.height, shape.width)
"""
SCRIPT = """
import lic, numpy as np
pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
data = lic.encode(pixels, model="raw", lossless=True)
assert lic.read_info(data).model == "raw"
assert b"raw" in data
assert (lic.decode(data).pixels == pixels).all()
assert {"raw", "wavelet"} <= set(lic.models())
"""


def test_a_model_from_another_package(tmp_path, monkeypatch):
    (tmp_path / "raw_model.py").write_text(MODEL)
    metadata = tmp_path / "raw_model-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: raw-model\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lic.models]\nraw = raw_model:Raw\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


@pytest.mark.parametrize("points", [None, torch.zeros(3)])
def test_weights_of_another_shape_are_told(tmp_path, monkeypatch, points):
    tensors = load_file(Path(wavelet.__file__).with_name("wavelet.safetensors"))
    tensors |= {"points": points} if points is not None else {"other": tensors.pop("points")}
    save_file(tensors, tmp_path / "wavelet.safetensors")
    monkeypatch.setattr(wavelet, "__file__", str(tmp_path / "wavelet.py"))
    registry._load.cache_clear()
    with pytest.raises(lic.ModelError, match="model 'wavelet' can't use its weights"):
        registry.load("wavelet", torch.device("cpu"))


def test_the_default_model_has_a_card():
    card = lic.models()["wavelet"]
    assert card.name == "wavelet"
    assert card.lossy
