"""What the bench measures: formats that Pillow writes, and this package's models. A new peer is one entry of PEERS."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import PIL
from PIL import features

Settings = dict[str, Any]  # keywords of Image.save


@dataclass(frozen=True)
class Peer:
    """A format with a grid of settings, one for each point of its curve, by rising rate.

    library: the feature of Pillow that writes it, or the distribution whose module `plugin` does, once imported.
    """

    name: str
    label: str
    format: str
    library: str
    grid: tuple[Settings, ...]
    plugin: str | None = None
    model: str | None = None
    lossless: bool = False
    quick: bool = False  # part of a quick bench

    def missing(self) -> str | None:
        """Why it can't be measured here; None if it can."""
        if self.plugin:
            absent = util.find_spec(self.plugin.partition(".")[0]) is None
            return f"{self.library} is not installed" if absent else None
        return None if features.check(self.library) else f"this Pillow has no {self.library}"

    def register(self) -> None:
        """Make Pillow know the format."""
        if self.plugin:
            importlib.import_module(self.plugin)

    def versions(self) -> dict[str, str | None]:
        """All that its files depend on beside the settings."""
        if self.model:
            return {"pillow": PIL.__version__, **_model_versions(self.model)}
        version = metadata.version(self.library) if self.plugin else features.version(self.library)
        return {"pillow": PIL.__version__, self.library: version}


def _grid(keyword: str, values: Iterable[Any], **fixed: Any) -> tuple[Settings, ...]:
    return tuple({keyword: value, **fixed} for value in values)


_JPEG: Settings = {"optimize": True, "progressive": True}
_AVIF: Settings = {"subsampling": "4:4:4"}
_JPEG_QUALITIES = (5, 10, 20, 35, 50, 70, 85, 92)
_AVIF_QUALITIES = (8, 18, 30, 42, 54, 66, 78, 88)
_JXL_QUALITIES = (0, 20, 35, 50, 65, 80, 88, 93)
_MODEL_QUALITIES = (10, 25, 40, 50, 60, 70, 80, 90)
_JXL = "pillow-jxl-plugin"

PEERS = (
    Peer("jpeg", "JPEG", "JPEG", "jpg", _grid("quality", _JPEG_QUALITIES, **_JPEG), quick=True),
    Peer("jpeg-444", "JPEG 4:4:4", "JPEG", "jpg", _grid("quality", _JPEG_QUALITIES, subsampling="4:4:4", **_JPEG)),
    Peer(
        "jpeg2000", "JPEG 2000", "JPEG2000", "jpg_2000",
        _grid(
            "quality_layers", ([24 / bpp] for bpp in (0.1, 0.15, 0.25, 0.4, 0.6, 1, 1.5, 2.4)),
            irreversible=True, mct=1,
        ),
    ),
    Peer("webp", "WebP", "WEBP", "webp", _grid("quality", (0, 5, 15, 30, 50, 70, 85, 92), method=6), quick=True),
    Peer(
        "avif-s6", "AVIF 4:4:4, speed 6", "AVIF", "avif", _grid("quality", _AVIF_QUALITIES, speed=6, **_AVIF),
        quick=True,
    ),
    Peer("avif-s3", "AVIF 4:4:4, speed 3", "AVIF", "avif", _grid("quality", _AVIF_QUALITIES, speed=3, **_AVIF)),
    Peer(
        "avif-s3-psnr", "AVIF 4:4:4, speed 3, tune PSNR", "AVIF", "avif",
        _grid("quality", (4, 10, 20, 32, 44, 56, 68, 80), speed=3, advanced={"tune": "psnr"}, **_AVIF),
    ),
    Peer(
        "heic", "HEIC 4:4:4", "HEIF", "pillow-heif", _grid("quality", (10, 18, 26, 34, 42, 50, 57, 63), chroma=444),
        plugin="pillow_heif.HeifImagePlugin",
    ),
    Peer(
        "jxl-e7", "JPEG XL, effort 7", "JXL", _JXL, _grid("quality", _JXL_QUALITIES, effort=7), plugin="pillow_jxl",
        quick=True,
    ),
    Peer("jxl-e9", "JPEG XL, effort 9", "JXL", _JXL, _grid("quality", _JXL_QUALITIES, effort=9), plugin="pillow_jxl"),
    Peer("png", "PNG", "PNG", "zlib", ({"optimize": True},), lossless=True, quick=True),
    Peer(
        "webp-lossless", "WebP lossless", "WEBP", "webp", ({"lossless": True, "quality": 100, "method": 6},),
        lossless=True,
    ),
    Peer(
        "jxl-lossless-e7", "JPEG XL lossless, effort 7", "JXL", _JXL, ({"lossless": True, "effort": 7},),
        plugin="pillow_jxl", lossless=True,
    ),
    Peer(
        "jxl-lossless-e9", "JPEG XL lossless, effort 9", "JXL", _JXL, ({"lossless": True, "effort": 9},),
        plugin="pillow_jxl", lossless=True,
    ),
)  # fmt: skip


def model_peers(specification: str) -> list[Peer]:
    """The lossy and the lossless peer that a model makes.

    specification: a model's name, and keywords of Image.save if wanted: "wavelet", "wavelet:effort=7,device='cuda'".
    """
    from lic import registry

    model, _, keywords = specification.partition(":")
    call = ast.parse(f"save({keywords})", mode="eval").body
    fixed: Settings = {k.arg: ast.literal_eval(k.value) for k in call.keywords}  # type: ignore[attr-defined]
    card = registry.model_class(model).card
    common: dict[str, Any] = {"format": "LIC", "library": "lic-codec", "plugin": "pillow_lic", "model": model}
    label = f"{model} ({keywords.replace(',', ', ')})" if keywords else model
    peers = []
    if card.lossy:
        grid = _grid("quality", _MODEL_QUALITIES, model=model, **fixed)
        peers.append(Peer(specification, label, grid=grid, quick=True, **common))
    if card.lossless:
        grid = ({"lossless": True, "model": model, **fixed},)
        common["model"] = card.lossless_by or model
        peers.append(Peer(f"{specification}-lossless", f"{label} lossless", grid=grid, lossless=True, **common))
    return peers


def _model_versions(model: str) -> dict[str, str | None]:
    import torch

    import lic
    from lic import registry

    package = Path(lic.__file__).parent
    files = set(package.glob("*.py")) | _imported(Path(inspect.getfile(registry.model_class(model))), package)
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files)))
    weights = registry.load(model, torch.device("cpu")).weights
    return {"lic": lic.__version__, "torch": torch.__version__, "code": code.hexdigest()[:16], "weights": weights}


def _imported(file: Path, package: Path) -> set[Path]:
    """A file, and what it imports from the package, directly or not."""
    found, left = set(), [file]
    while left:
        found.add(file := left.pop())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package.name:
                at = package.parent.joinpath(*node.module.split("."))
                modules = [at.with_suffix(".py"), *(at / f"{alias.name}.py" for alias in node.names)]
                left += [module for module in modules if module.exists() and module not in found]
    return found
