"""Files written earlier decode to the pixels they decoded to then, on every machine.

`python -m tests.lic.test_golden` writes them anew: after the shipped weights were replaced, or for a new version of the
format; never to make a failing test pass.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import lic
from tests.lic.conftest import natural

FOLDER = Path(__file__).parents[1] / "golden"
METADATA = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "icc_profile": b"profile", "xmp": b"<x:xmpmeta/>"}


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
    }


def described(data: bytes) -> dict[str, object]:
    """What the file says of itself, and the hash of each frame's pixels."""
    info = lic.read_info(data)
    frames = [lic.decode(data, frame=frame).pixels for frame in range(info.frames)]
    return {
        "pixels": [hashlib.sha256(pixels.astype("<u2").tobytes()).hexdigest() for pixels in frames],
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
    assert described((FOLDER / name).read_bytes()) == EXPECTED[name]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    coded = pictures()
    for name, data in coded.items():
        (FOLDER / name).write_bytes(data)
    (FOLDER / "expected.json").write_text(json.dumps({n: described(d) for n, d in coded.items()}, indent=1) + "\n")
