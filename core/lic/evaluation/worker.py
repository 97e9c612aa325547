"""What the bench's worker processes do: one encodes, another decodes the file and judges the pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from lic.evaluation.metrics import METRICS, Pixels
from lic.evaluation.peers import Peer, Settings

Cost = tuple[float, float | None]  # seconds; the process's peak memory in MiB, where the system tells


def use_threads(threads: int, pinned: bool = False) -> None:
    """To be called before torch is imported. pinned: keep the whole process on that many cores (Linux)."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def read_rgb(path: Path) -> Pixels:
    """(H, W, 3), whatever the file's mode; alpha is dropped."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def encode(peer: Peer, settings: Settings, picture: Path, target: Path) -> Cost:
    """Write the picture's RGB pixels, without its metadata."""
    peer.register()
    image = Image.fromarray(read_rgb(picture))
    start = perf_counter()
    image.save(target, peer.format, **settings)
    return perf_counter() - start, _peak_memory()


def decode(peer: Peer, coded: Path) -> Cost:
    peer.register()
    start = perf_counter()
    read_rgb(coded)
    return perf_counter() - start, _peak_memory()


def judge(peer: Peer, picture: Path, coded: Path, metrics: Iterable[str]) -> dict[str, float]:
    """Size in bits per pixel, whether the pixels are the original's, and the metrics asked for."""
    peer.register()
    original, decoded = read_rgb(picture), read_rgb(coded)
    bits = 8 * coded.stat().st_size
    exact = np.array_equal(original, decoded)
    return {
        "bpp": bits / (original.shape[0] * original.shape[1]),
        "exact": exact,
        **{name: METRICS[name].function(original, decoded) for name in metrics},
    }


def _peak_memory() -> float | None:
    """MiB; getrusage won't do, its peak starts with the parent's."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None
