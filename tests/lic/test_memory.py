"""Memory stays within 400 bytes a pixel, at 50 megapixels too."""

import subprocess
import sys

import pytest

SCRIPT = """
import io, resource, sys
import numpy as np
from PIL import Image
import lic

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

what, megapixels, kind, path = sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]
lossless, tune = kind.startswith(("lossless", "from")), "visual" if kind == "visual" else "psnr"
height = round((megapixels * 1e6 * 2 / 3) ** 0.5)
width = round(height * 1.5)
small = lic.encode(np.zeros((64, 64, 3), np.uint8), lossless=lossless)
lic.decode(small)
if what == "encode":
    pixels = np.empty((height, width, 3), np.uint8)
    x = np.arange(width)[:, None] + np.arange(3) * 50
    for y in range(height):
        pixels[y] = (y + x * x // 97 + (x * y >> 7)) % 251
    if kind == "from JPEG":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        pixels = np.asarray(Image.open(file))
        lic.decode(lic.encode(pixels[:512, :512], lossless=True))
    before = peak()
    data = lic.encode(pixels, quality=20, effort=5, lossless=lossless, tune=tune)
    open(path, "wb").write(data)
else:
    data = open(path, "rb").read()
    before = peak()
    assert lic.decode(data).pixels.shape == (height, width, 3)
print((peak() - before) / (height * width))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no peak of memory to ask for")
@pytest.mark.parametrize(("megapixels", "kind"), [(50, "lossy"), (12, "visual"), (12, "lossless"), (12, "from JPEG")])
def test_memory_is_bounded(megapixels, kind, tmp_path):
    for what in ("encode", "decode"):
        command = [sys.executable, "-c", SCRIPT, what, str(megapixels), kind, str(tmp_path / "large.lic")]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        assert float(run.stdout) < 400, what
