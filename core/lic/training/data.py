"""Training pictures: from a folder or a packed file, split, as random crops."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lic.errors import LicError

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
VALIDATION = 16  # every sixteenth picture is held back
PACK_BYTES = 40_000_000
_PACK_SIDE = 512
_GREY = 0.04  # of the crops


@dataclass(frozen=True)
class Pictures:
    """training and validation: pictures (H, W, 3) uint8, in the order of their names."""

    training: list[Pixels]
    validation: list[Pixels]


def load(path: Path, side: int) -> Pictures:
    """All pictures of a folder, or of a file that `pack` made, whose sides are at least `side`."""
    with ThreadPoolExecutor() as pool:
        decoded = list(tqdm(pool.map(_decode, _contents(path)), desc="reading pictures", unit="", disable=None))
    pictures = [p for p in decoded if p is not None and min(p.shape[:2]) >= side]
    if len(pictures) < 2:
        raise LicError(f"{path} has {len(pictures)} pictures of {side}×{side} pixels or more; training needs two")
    split = Pictures([], [])
    for i, picture in enumerate(pictures):
        (split.training if i % VALIDATION else split.validation).append(picture)
    return split


def _contents(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as pack:
            for name in sorted(pack.namelist()):
                yield pack.read(name)
    else:
        raise LicError(f"{path} is neither a folder of pictures nor a file that `lic train --pack` made")


def _decode(data: bytes) -> Pixels | None:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (UnidentifiedImageError, OSError):
        return None  # a text file among the pictures, say


def pack(source: Path, target: Path, limit: int = PACK_BYTES) -> int:
    """Write crops of the folder's pictures, well compressed, into one file of at most `limit` bytes; their number."""
    rng = np.random.default_rng(0)
    spent = count = 0
    temporary = target.with_name(target.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for picture in map(_decode, tqdm(_contents(source), desc="packing", unit="", disable=None)):
            if picture is None:
                continue
            file = io.BytesIO()
            Image.fromarray(_crop(picture, rng, _PACK_SIDE)).save(file, "WEBP", quality=95, method=6)
            spent += file.tell() + 256  # and the archive's entry
            if spent > limit:
                break
            archive.writestr(f"{count:06}.webp", file.getvalue())
            count += 1
    temporary.replace(target)
    return count


def _crop(picture: Pixels, rng: np.random.Generator, side: int) -> Pixels:
    """A random crop, smaller where the picture is."""
    height, width = picture.shape[:2]
    y, x = rng.integers(max(height - side, 0) + 1), rng.integers(max(width - side, 0) + 1)
    return picture[y : y + side, x : x + side]


def chances(pictures: list[Pixels]) -> NDArray[np.float64]:
    """How often each picture is drawn: with the square root of its pixels (at most 800 000) as weight."""
    weights = np.array([min(p.size / 3, 8e5) ** 0.5 for p in pictures])
    return weights / weights.sum()


def crop(picture: Pixels, rng: np.random.Generator, side: int, shrunk: float) -> Pixels:
    """A random crop (side, side, 3), turned, mirrored, perhaps shrunk, rarely grey; shrunk is how likely that is.

    Shrinking, 1.2 to 2.4 times where the picture is large enough, takes away what an earlier compression left.
    """
    largest = min(picture.shape[:2]) / side
    shrink = min(rng.uniform(1.2, 2.4), largest) if rng.random() < shrunk else 1.0
    crop = _crop(picture, rng, int(side * shrink))
    if shrink > 1:
        crop = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.LANCZOS))
    crop = np.rot90(crop, int(rng.integers(4)))
    if rng.random() < _GREY:
        crop = crop[..., 1:2].repeat(3, 2)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def crops(pictures: list[Pixels], rng: np.random.Generator, count: int, side: int, shrunk: float = 0.5) -> torch.Tensor:
    """Random crops, each as `crop` has it: (count, 3, side, side) float32, 0..255."""
    drawn = rng.choice(len(pictures), count, p=chances(pictures))
    out = [crop(pictures[i], rng, side, shrunk) for i in drawn]
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float()
