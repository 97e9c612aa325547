"""`lic bench --profile`: where encoding and decoding spend their time, and what the bits are spent on."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import FrameType

import numpy as np

import lic
from lic import api, entropy
from lic.evaluation.worker import read_rgb

PACKAGE = Path(lic.__file__).parent
REPEATS = 3
SHOWN = 8  # functions, of each direction
SYMBOLS, TABLES = 2**20, 64  # of the entropy coder's benchmark


def profile(picture: Path, models: Sequence[str], quality: float) -> str:
    """A report, as text, on one picture, in this process and on as many threads as torch takes."""
    pixels = read_rgb(picture)
    megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
    parts = [f"{picture.name}, {pixels.shape[1]}×{pixels.shape[0]}, quality {quality:g}; warm, mean of {REPEATS} runs"]
    for model in models:
        data = lic.encode(pixels, quality=quality, model=model)
        lic.decode(data)  # so that nothing is loaded while the clock runs
        parts.append(f"\n{model}: {len(data)} bytes, {8e-6 * len(data) / megapixels:.4f} bits per pixel")
        (sizes,) = api.stream_sizes(data)
        parts += [f"  {100 * size / len(data):5.1f} %  {name}" for name, size in sizes.items()]
        with Sampler() as encoding:
            for _ in range(REPEATS):
                lic.encode(pixels, quality=quality, model=model)
        with Sampler() as decoding:
            for _ in range(REPEATS):
                lic.decode(data)
        for what, sampler in (("encoding", encoding), ("decoding", decoding)):
            parts.append(f"  {what}: {sampler.total() / REPEATS / megapixels:.2f} s a megapixel")
            parts += [f"    {100 * share:5.1f} %  {name}" for name, share in sampler.shares()]
    parts += ["\nentropy coder, nanoseconds a symbol:", *_entropy_coder()]
    return "\n".join(parts)


class Sampler:
    """A context in which every millisecond is charged to the function of this package that is running."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._thread = threading.Thread(target=self._sample, args=(threading.get_ident(),), daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self, observed: int) -> None:
        before = perf_counter()
        while not self._over.wait(0.001):
            where = _innermost(sys._current_frames()[observed])
            now = perf_counter()  # long after the last sample where a call kept the interpreter locked
            self.seconds[where] += now - before
            before = now

    def total(self) -> float:
        return sum(self.seconds.values())

    def shares(self) -> list[tuple[str, float]]:
        """Each file and, indented, its functions; what is small is left out."""
        total = self.total() or 1
        files: defaultdict[str, float] = defaultdict(float)
        for (file, _), seconds in self.seconds.items():
            files[file] += seconds
        large = sorted(self.seconds, key=lambda where: -self.seconds[where])[:SHOWN]
        out = []
        for file in sorted(files, key=lambda file: -files[file]):
            out.append((file, files[file] / total))
            out += [(f"    {where[1]}", self.seconds[where] / total) for where in large if where[0] == file]
        return out


def _innermost(frame: FrameType | None) -> tuple[str, str]:
    while frame:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and path != Path(__file__):
            return path.relative_to(PACKAGE).as_posix(), getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
        frame = frame.f_back
    return "elsewhere", "this benchmark"


def _entropy_coder() -> list[str]:
    """Laplacian symbols of many scales: with a table for each, and all with one."""
    rng = np.random.default_rng(0)
    reach = np.arange(-30, 31)
    family = []
    for scale in np.geomspace(0.1, 10, TABLES):
        weights = np.append(1e-6, np.exp(-np.abs(reach) / scale) + 1e-9)
        family.append(entropy.Table(-30, entropy.integer_frequencies(weights)))
    tables = rng.integers(0, TABLES, SYMBOLS)
    values = rng.laplace(0, np.geomspace(0.1, 10, TABLES)[tables]).round().astype(np.int64)
    out = []
    for name, choice in ((f"{TABLES} tables", tables), ("one table", np.full(SYMBOLS, TABLES // 2))):
        encoder = entropy.Encoder()
        start = perf_counter()
        encoder.encode(values, choice, family)
        between = perf_counter()
        decoded = entropy.Decoder(encoder.bytes()).decode(choice, family)
        end = perf_counter()
        assert np.array_equal(decoded, values)
        encoding, decoding = (1e9 * seconds / SYMBOLS for seconds in (between - start, end - between))
        out.append(f"  {name}: {encoding:.0f} to encode, {decoding:.0f} to decode")
    return out
