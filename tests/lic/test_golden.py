"""Files written earlier decode to the pixels they decoded to then, on every machine.

`python -m tests.lic.test_golden NAME...` writes them anew: after the shipped weights were replaced, or for another
version of the format; never to make a failing test pass. Without names it writes those that aren't there.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import lic
from tests.lic.conftest import chart, natural, screenshot, sunset
from tests.lic.test_jpeg import opened, textured
from tests.lic.test_ycbcr import decoded_from, video

FOLDER = Path(__file__).parents[1] / "golden"
METADATA = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "icc_profile": b"profile", "xmp": b"<x:xmpmeta/>"}

# Models whose synthesis is in floating point.
INEXACT = "factorized", "hyperprior", "hybrid", "hybrid_serial", "context3d", "softvq"


def pictures() -> dict[str, bytes]:
    """Of each kind one, small."""
    frames = [natural(40, 52, 3, seed=seed) for seed in range(3)]
    return {
        "rgb.lic": lic.encode(natural(61, 83, 3), quality=60),
        "rgba-metadata.lic": lic.encode(natural(48, 37, 4), quality=40, **METADATA),
        "rgb-16-bit.lic": lic.encode(natural(33, 50, 3, np.uint16), quality=90),
        "grey.lic": lic.encode(natural(50, 71, 1), quality=75),
        "grey-alpha-16-bit.lic": lic.encode(natural(29, 30, 2, np.uint16), quality=80),
        "one-pixel.lic": lic.encode(natural(1, 1, 3)),
        "animation.lic": lic.encode(frames, quality=50, durations=[10, 20, 30], loop=2),
        "tiles.lic": lic.encode(natural(40, 1700, 3), quality=30),
        "visual.lic": lic.encode(natural(61, 83, 3), quality=60, tune="visual"),
        "lossless.lic": lic.encode(natural(40, 51, 3), lossless=True),
        "lossless-grey-16-bit.lic": lic.encode(natural(29, 30, 1, np.uint16), lossless=True),
        "lossless-few-values.lic": lic.encode(natural(40, 51, 3).astype(np.uint16) * 257, lossless=True),
        "lossless-jpeg.lic": lic.encode(opened(textured(133, 150, 3), quality=80)[0], lossless=True),
        "lossless-ycbcr.lic": lic.encode(decoded_from("JPEG", 133, 150), lossless=True),
        "lossless-video.lic": lic.encode(video(), lossless=True),
        "screenshot.lic": lic.encode(screenshot(3), lossless=True),
        "chart.lic": lic.encode(chart(3), lossless=True),
        "colours.lic": lic.encode(sunset(), quality=70),
        **{f"{model}.lic": lic.encode(natural(61, 83, 3), model=model, quality=60) for model in INEXACT},
    }


def described(data: bytes) -> dict[str, object]:
    """What the file says of itself, and the hash of each frame's pixels."""
    info = lic.read_info(data)
    frames = [lic.decode(data, frame=frame).pixels for frame in range(info.frames)]
    return {
        "pixels": [hashlib.sha256(pixels.astype("<u2").tobytes()).hexdigest() for pixels in frames],
        "means": [round(float(pixels.mean()), 2) for pixels in frames],
        "shape": list(frames[0].shape),
        "dtype": str(frames[0].dtype),
        "durations": list(info.durations),
        "loop": info.loop,
        "metadata": [len(getattr(info, name) or b"") for name in METADATA],
    }


EXPECTED = json.loads((FOLDER / "expected.json").read_text()) if (FOLDER / "expected.json").exists() else {}


def test_there_are_golden_files_of_each_kind():
    assert set(EXPECTED) == set(pictures()) == {path.name for path in FOLDER.glob("*.lic")}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_golden_file_decodes_as_it_always_did(name):
    found, expected = described((FOLDER / name).read_bytes()), EXPECTED[name]
    if name.removesuffix(".lic") in INEXACT:
        del found["pixels"], expected["pixels"]
        assert np.allclose(found.pop("means"), expected.pop("means"), atol=0.1)
    assert found == expected


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    coded = pictures()
    for name in sys.argv[1:] or set(coded) - set(EXPECTED):
        (FOLDER / name).write_bytes(coded[name])
    expected = {name: described((FOLDER / name).read_bytes()) for name in coded}
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
