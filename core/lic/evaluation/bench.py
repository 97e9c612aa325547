"""`lic bench`: measure peers on a folder of pictures, and report curves, BD-rates and costs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from lic.evaluation import worker
from lic.evaluation.bjontegaard import bd_rate
from lic.evaluation.metrics import METRICS, SMALLEST_SIDE
from lic.evaluation.peers import PEERS, Peer, Settings, model_peers
from lic.evaluation.profile import profile

Record = dict[str, float]  # of one file: "bpp", "exact", and metrics
Curve = dict[str, Any]  # "label", "kind", and lists with one value for each setting: "bpp", and metrics

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lic" / "bench"
TIMED_BPP = 0.75  # costs are measured at the setting nearest to it
PROFILED_QUALITY = 70
KODAK = [f"kodim{number:02d}" for number in range(1, 25)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", type=Path, required=True, metavar="DIR", help="folder of pictures")
    add(
        "--models", nargs="*", metavar="MODEL",
        help="models, with keywords of save() if wanted: wavelet wavelet:effort=9 (default: all that are installed)",
    )  # fmt: skip
    add("--peers", nargs="*", metavar="PEER", choices=[p.name for p in PEERS], help="of %(choices)s (default: all)")
    add("--out", type=Path, default=Path("bench"), metavar="DIR", help="where the report goes (default: %(default)s)")
    add("--quick", action="store_true", help="3 pictures, half the points, the main peers")
    add("--limit", type=int, metavar="N", help="measure N of the pictures, evenly spread")
    add("--jobs", type=int, default=os.cpu_count(), metavar="N", help="files to measure at once (default: %(default)s)")
    add("--timed", type=int, metavar="N", help="pictures to time each peer on (default: 3, quick 1; 0: no timing)")
    add("--threads", type=int, default=1, metavar="N", help="cores for a codec that is timed (default: %(default)s)")
    add("--profile", action="store_true", help="only show where each model's time goes, on the first picture")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help="earlier measurements (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """What `lic bench` does with the arguments above."""
    from lic import registry

    try:
        from lic.evaluation import report
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install 'lic-codec[bench]'") from None
    models = registry.names() if args.models is None else args.models
    if args.profile:
        print(profile(find_pictures(args.dataset)[0], models, PROFILED_QUALITY))
        return 0
    peers = [peer for model in models for peer in model_peers(model)]
    peers += [p for p in PEERS if (p.quick or not args.quick if args.peers is None else p.name in args.peers)]
    if args.quick:
        peers = [replace(peer, grid=peer.grid[::2]) for peer in peers]
    results = run(
        find_pictures(args.dataset, args.limit or (3 if args.quick else None)),
        peers,
        cache=args.cache,
        jobs=args.jobs,
        timed=(1 if args.quick else 3) if args.timed is None else args.timed,
        threads=args.threads,
    )
    report.write(results, args.out)
    print(report.bd_rate_table(results))
    print(f"The report is {args.out / 'report.md'}")
    return 0


def find_pictures(folder: Path, limit: int | None = None) -> list[Path]:
    """The folder's pictures by name, or `limit` of them, evenly spread. Those too small to be judged are left out."""
    pictures = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            with Image.open(path) as image:
                if min(image.size) >= SMALLEST_SIDE:
                    pictures.append(path)
                else:
                    print(f"{path.name} skipped: a side is shorter than {SMALLEST_SIDE} pixels")
    if not pictures:
        raise ValueError(f"there are no pictures to measure in {folder}")
    chosen = np.linspace(0, len(pictures) - 1, min(limit or len(pictures), len(pictures))).round().astype(int)
    return [pictures[index] for index in chosen]


def run(
    pictures: Sequence[Path],
    peers: Sequence[Peer],
    *,
    cache: Path = CACHE,
    jobs: int = 1,
    timed: int = 0,
    threads: int = 1,
) -> dict[str, Any]:
    """All that a report says, as plain values.

    cache: folder of measurements made before, by content; those in it are not made again.
    jobs: files to measure at once; timed: pictures to time each peer on; threads: cores for a codec that is timed.
    """
    for peer in peers:
        if reason := peer.missing():
            print(f"{peer.label} skipped: {reason}")
    peers = [peer for peer in peers if not peer.missing()]
    metrics = {}
    for metric in METRICS.values():
        if version := metric.version():
            metrics[metric.name] = version
        else:
            print(f"{metric.label} skipped: {metric.distribution} is not installed")

    versions = {peer.name: peer.versions() for peer in peers}
    work = _plan(pictures, peers, versions, metrics, cache)
    measured = _measure([job for job in work if not job.cached.exists()], jobs)
    points = [
        {"peer": job.peer.name, "settings": job.settings, "picture": job.picture.name, **job.record()} for job in work
    ]
    curves = {peer.name: _curve(peer, points) for peer in peers}
    costs = _costs(peers, curves, pictures[:timed], threads) if timed else {}
    if [picture.stem for picture in pictures] == KODAK:
        curves |= _published()
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "python": platform.python_version(),
        "versions": versions,  # of what the files of each peer depend on
        "metrics": metrics,  # and the versions of their libraries
        "pictures": [picture.name for picture in pictures],
        "measured": measured,  # files; the others' figures come from the cache
        "curves": curves,
        "bd_rates": {metric: _bd_rates(curves, metric) for metric in metrics},  # per cent; [metric][curve][reference]
        "costs": costs,  # of each peer: seconds a megapixel, peak MiB
        "timed": {"pictures": timed, "threads": threads, "bpp": TIMED_BPP},
        "points": points,  # one for each file
    }


@dataclass(frozen=True)
class _Job:
    """One file to write, decode and judge."""

    peer: Peer
    settings: Settings
    picture: Path
    metrics: tuple[str, ...]
    cached: Path

    def record(self) -> Record:
        return json.loads(self.cached.read_text())


def _plan(
    pictures: Sequence[Path],
    peers: Sequence[Peer],
    versions: dict[str, Any],
    metrics: dict[str, str],
    cache: Path,
) -> list[_Job]:
    """The jobs, each with a place in the cache that is named after all that its figures depend on."""
    work = []
    for picture in pictures:
        content = hashlib.sha256(picture.read_bytes()).hexdigest()
        for peer in peers:
            wanted = {} if peer.lossless else metrics
            for settings in peer.grid:
                identity = [content, peer.format, settings, versions[peer.name], wanted]
                key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
                work.append(_Job(peer, settings, picture, tuple(wanted), cache / f"{key}.json"))
    return work


def _workers(count: int, threads: int, pinned: bool = False) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, get_context("spawn"), worker.use_threads, (threads, pinned))


def _measure(work: Sequence[_Job], jobs: int) -> int:
    """Fill the cache; how many files that took. Files are written by one set of processes and decoded by another."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (
        TemporaryDirectory() as folder,
        _workers(jobs, threads) as encoders,
        _workers(jobs, threads) as decoders,
        ThreadPoolExecutor(jobs) as pool,
    ):

        def measure(job: _Job) -> None:
            coded = Path(folder, job.cached.stem)
            encoders.submit(worker.encode, job.peer, job.settings, job.picture, coded).result()
            record = decoders.submit(worker.judge, job.peer, job.picture, coded, job.metrics).result()
            coded.unlink()
            job.cached.parent.mkdir(parents=True, exist_ok=True)
            part = job.cached.with_suffix(".part")
            part.write_text(json.dumps(record))
            part.replace(job.cached)

        for _ in tqdm(pool.map(measure, work), "measuring", len(work), unit="file", disable=not work):
            pass
    return len(work)


def _curve(peer: Peer, points: Sequence[dict[str, Any]]) -> Curve:
    """Means over pictures at each setting."""
    rows = [[p for p in points if p["peer"] == peer.name and p["settings"] == settings] for settings in peer.grid]
    values = [name for name in ("bpp", "exact", *METRICS) if name in rows[0][0]]
    kind = "model" if peer.model else "peer"
    means = {name: [float(np.mean([point[name] for point in row])) for row in rows] for name in values}
    return {"label": peer.label, "kind": kind, "lossless": peer.lossless, "settings": list(peer.grid), **means}


def _published() -> dict[str, Curve]:
    data = json.loads(resources.files(__package__).joinpath("published_kodak.json").read_text("utf-8"))
    return {name: {"label": name, "kind": "published", "lossless": False, **c} for name, c in data["curves"].items()}


def _bd_rates(curves: dict[str, Curve], metric: str) -> dict[str, dict[str, float]]:
    """[curve][reference]: per cent more bits than the reference."""
    axis = METRICS[metric].axis
    lossy = {name: (c["bpp"], axis(np.array(c[metric]))) for name, c in curves.items() if metric in c}
    return {name: {other: bd_rate(*lossy[name], *lossy[other]) for other in lossy} for name in lossy}


def _costs(
    peers: Sequence[Peer], curves: dict[str, Curve], pictures: Sequence[Path], threads: int
) -> dict[str, dict[str, float | None]]:
    """Seconds a megapixel and peak memory, each peer in processes of its own, after a first file that isn't timed."""
    pixels = sum(np.prod(worker.read_rgb(picture).shape[:2]) for picture in pictures)
    costs = {}
    for peer in tqdm(peers, "timing", unit="peer"):
        settings = peer.grid[int(np.argmin(np.abs(np.array(curves[peer.name]["bpp"]) - TIMED_BPP)))]
        with (
            TemporaryDirectory() as folder,
            _workers(1, threads, pinned=True) as encoder,
            _workers(1, threads, pinned=True) as decoder,
        ):
            coded = Path(folder, "coded")
            encoding, decoding = [], []
            for picture in (pictures[0], *pictures):
                encoding.append(encoder.submit(worker.encode, peer, settings, picture, coded).result())
                decoding.append(decoder.submit(worker.decode, peer, coded).result())
        costs[peer.name] = {
            "encode_s_per_mp": sum(seconds for seconds, _ in encoding[1:]) / pixels * 1e6,
            "decode_s_per_mp": sum(seconds for seconds, _ in decoding[1:]) / pixels * 1e6,
            "encode_peak_mib": encoding[-1][1],
            "decode_peak_mib": decoding[-1][1],
        }
    return costs


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="lic bench", description=__doc__)
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
