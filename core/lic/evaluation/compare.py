"""`lic compare`: a picture under several codecs at equal file size, as a page with a wipe and as a PNG sheet."""

from __future__ import annotations

import argparse
import base64
import io
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import product
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lic.evaluation.metrics import METRICS, SMALLEST_SIDE, Metric, Pixels
from lic.evaluation.peers import PEERS, Peer, Settings, model_peers
from lic.evaluation.worker import read_rgb

Views = dict[str, dict[str, Image.Image]]  # [the whole or a detail][a codec, its error, or the original]

LOSSY = [peer for peer in PEERS if not peer.lossless]
WHOLE = (1600, 1600)  # pixels; a larger picture is shown shrunk to fit, or the page would be too heavy for a browser
MOST_PIXELS = 2**23  # for metrics other than PSNR
DETAIL = (192, 144)
DETAILS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("picture", type=Path, help="of any format that Pillow reads; alpha is dropped")
    add(
        "--models", nargs="*", metavar="MODEL",
        help="models, with keywords of save() if wanted: wavelet wavelet:effort=9 (default: all that are installed)",
    )  # fmt: skip
    add(
        "--peers", nargs="*", metavar="PEER", choices=[peer.name for peer in LOSSY],
        default=[peer.name for peer in LOSSY if peer.quick], help="of %(choices)s (default: %(default)s)",
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--bpp", type=float, help="size of every file in bits per pixel")
    size.add_argument(
        "--quality", type=float, default=40, metavar="Q",
        help="or the size that the first model (or peer) reaches at this quality, 0 to 100 (default: %(default)s)",
    )  # fmt: skip
    add("--out", default="compare", metavar="NAME", help="writes NAME.html and NAME.png (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """What `lic compare` does with the arguments above."""
    from lic import registry

    page, sheet = Path(f"{args.out}.html"), Path(f"{args.out}.png")
    try:
        if sheet.resolve() == args.picture.resolve():
            raise ValueError(f"--out {args.out} would overwrite it")
        if not 0 <= args.quality <= 100:
            raise ValueError(f"quality must lie in 0 to 100, not {args.quality}")
        original = _read(args.picture)
        models = registry.names() if args.models is None else args.models
        peers = [peer for model in models for peer in model_peers(model) if not peer.lossless]
    except (OSError, ValueError) as error:
        print(f"{args.picture}: {error}", file=sys.stderr)
        return 1
    peers += [peer for peer in LOSSY if peer.name in args.peers]
    target = None if args.bpp is None else max(1, round(args.bpp * original[..., 0].size / 8))
    metrics = _metrics(original)
    coded: list[Coded] = []
    for peer in peers:
        if reason := peer.missing():
            print(f"{peer.label} skipped: {reason}")
            continue
        try:
            coded.append(encode(peer, original, target, args.quality, metrics))
        except (OSError, ValueError) as error:
            print(f"{peer.label} skipped: {error}")
            continue
        target = target or coded[0].size
        print("; ".join([coded[-1].label, *coded[-1].facts(target)]))
    if target is None or not coded:
        print(f"{args.picture}: there is no codec to compare", file=sys.stderr)
        return 1

    views, gain = make_views(original, coded)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(make_page(args.picture.name, original, coded, target, views, gain), "utf-8")
    make_sheet(coded, target, views, gain).save(sheet)
    print(f"written: {page}, {sheet}")
    return 0


@dataclass(frozen=True)
class Coded:
    """A codec's file of the picture, and what it decodes to."""

    name: str
    label: str
    setting: str
    size: int  # bytes
    pixels: Pixels
    values: dict[str, float]  # of metrics, on the axes where more is better

    @property
    def bpp(self) -> float:
        return 8 * self.size / self.pixels[..., 0].size

    def facts(self, target: int) -> list[str]:
        return [
            self.setting,
            f"{self.size:,} bytes ({self.size / target - 1:+.1%})",
            f"{self.bpp:.3f} bpp",
            *(f"{METRICS[name].label}: {value:.2f}" for name, value in self.values.items()),
        ]


def _read(path: Path) -> Pixels:
    """Like worker.read_rgb, upright."""
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits a channel, convert it first")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def encode(peer: Peer, original: Pixels, target: int | None, quality: float, metrics: Sequence[Metric]) -> Coded:
    """The file whose size is nearest to the target, or, where there is none, the one of the quality, 0 to 100."""
    peer.register()
    image, scale = Image.fromarray(original), _scale(peer)
    keyword = next(iter(scale[0]))
    with TemporaryDirectory() as folder:
        tried: list[tuple[int, Settings, Path]] = []

        def size(settings: Settings) -> int:
            path = Path(folder, str(len(tried)))
            image.save(path, peer.format, **settings)
            tried.append((path.stat().st_size, settings, path))
            return tried[-1][0]

        if target is None:
            target = size(scale[min(round(quality * len(scale) / 100), len(scale) - 1)])
        else:
            bisect_left(scale, target, key=size)
        nearest, settings, path = min(tried, key=lambda file: abs(file[0] - target))
        decoded = read_rgb(path)
    values = {m.name: float(m.axis(np.array(m.function(original, decoded)))) for m in metrics}
    return Coded(peer.name, peer.label, f"{keyword} {settings[keyword]}", nearest, decoded, values)


def _scale(peer: Peer) -> list[Settings]:
    """All settings that a search may choose from, by rising size: the first keyword of the peer's grid, in fine steps.

    It stops short of a quality of 100, which is lossless in some formats and refused in others.
    """
    values: list[Any] = [step / 10 for step in range(1000)] if peer.model else list(range(100))
    keyword = next(iter(peer.grid[0]))
    if keyword == "quality_layers":  # of JPEG 2000: ratios of compression
        values = [[round(24 / bpp, 2)] for bpp in np.geomspace(0.02, 12, 1000).tolist()]
    return [{**peer.grid[0], keyword: value} for value in values]


def _metrics(original: Pixels) -> list[Metric]:
    """Those to show; a line is printed for each that is left out."""
    chosen = [METRICS["psnr_rgb_db"]]
    for metric in (METRICS["ms_ssim"], METRICS["ssimulacra2"]):
        if not metric.version():
            print(f"{metric.label} skipped: {metric.distribution} is not installed")
        elif min(original.shape[:2]) < SMALLEST_SIDE:
            print(f"{metric.label} skipped: a side is shorter than {SMALLEST_SIDE} pixels")
        elif original[..., 0].size > MOST_PIXELS:
            print(f"{metric.label} skipped: more than {MOST_PIXELS:,} pixels would take gigabytes of memory")
        else:
            chosen.append(metric)
    return chosen


def make_views(original: Pixels, coded: Sequence[Coded]) -> tuple[Views, int]:
    """The pictures to show, and the gain of the errors among them, which are named "CODEC error"."""
    errors = {c.name: np.abs(original.astype(np.int16) - c.pixels).astype(np.uint8) for c in coded}
    gain = int(255 / max(1, *(float(np.percentile(error, 99.5)) for error in errors.values())))
    pictures = {"original": original, **{c.name: c.pixels for c in coded}}
    details = _details(list(pictures.values()))
    for name, error in errors.items():
        pictures[f"{name} error"] = np.minimum(error.astype(np.uint16) * gain, 255).astype(np.uint8)
    images = {name: Image.fromarray(pixels) for name, pixels in pictures.items()}
    views = {"whole picture": {name: image.copy() for name, image in images.items()}}
    for image in views["whole picture"].values():
        image.thumbnail(WHOLE, Image.Resampling.LANCZOS)
    for number, box in enumerate(details, 1):
        views[f"detail {number}"] = {name: image.crop(box) for name, image in images.items()}
    return views, gain


def _details(pictures: Sequence[Pixels]) -> list[tuple[int, int, int, int]]:
    """The boxes (left, top, right, bottom) where the pictures differ the most, without overlap."""
    spread = np.ptp(pictures, axis=0).sum(2, dtype=np.uint16)
    height, width = min(DETAIL[1], spread.shape[0]), min(DETAIL[0], spread.shape[1])
    rows = range(0, spread.shape[0] - height + 1, max(1, height // 4))
    columns = range(0, spread.shape[1] - width + 1, max(1, width // 4))
    sums = {(y, x): int(spread[y : y + height, x : x + width].sum()) for y, x in product(rows, columns)}
    boxes: list[tuple[int, int, int, int]] = []
    while sums and len(boxes) < DETAILS:
        y, x = max(sums, key=lambda place: sums[place])
        boxes.append((x, y, x + width, y + height))
        sums = {(v, u): total for (v, u), total in sums.items() if abs(v - y) >= height or abs(u - x) >= width}
    return boxes


def make_page(title: str, original: Pixels, coded: Sequence[Coded], target: int, views: Views, gain: int) -> str:
    """The page, with all pictures inside."""
    labels = {"original": "original", **{c.name: c.label for c in coded}}
    errors = {f"{c.name} error": f"{c.label}, errors × {gain}" for c in coded}
    captions = labels | errors
    left, right = list(labels)[-2:] if len(coded) == 1 else [coded[0].name, coded[1].name]
    sections = [
        f"<section><h2>{view.capitalize()}</h2>"
        + "".join(
            f'<div class="tiles">{"".join(_figure(view, name, captions[name], images[name]) for name in names)}</div>'
            for names in (labels, errors)
        )
        + "</section>"
        for view, images in views.items()
    ]
    height, width = original.shape[:2]
    shown = views["whole picture"]["original"]
    pixels = f"{width} × {height} pixels"
    if shown.size != (width, height):
        pixels += f" (the whole picture is shown at {shown.width} × {shown.height})"
    template = resources.files(__package__).joinpath("compare.html").read_text("utf-8")
    return Template(template).substitute(
        title=escape(title),
        pixels=pixels,
        target=f"{target:,} bytes ({8 * target / (width * height):.3f} bits per pixel)",
        gain=gain,
        table=_table(coded, target),
        left=_options(captions, left),
        right=_options(captions, right),
        views=_options({view: view for view in views}, "whole picture"),
        sections="\n".join(sections),
    )


def _options(labels: dict[str, str], selected: str) -> str:
    return "".join(
        f'<option value="{escape(name)}"{" selected" * (name == selected)}>{escape(label)}</option>'
        for name, label in labels.items()
    )


def _figure(view: str, name: str, label: str, image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img id="{escape(f"{view}/{name}")}" alt="{escape(f"{view}, {label}")}" '
        f'width="{image.width}" height="{image.height}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escape(label)}</figcaption></figure>"
    )


def _table(coded: Sequence[Coded], target: int) -> str:
    metrics = [METRICS[name] for name in coded[0].values]
    best = {metric.name: max(c.values[metric.name] for c in coded) for metric in metrics}
    header = ["", "setting", "bytes", "off target", "bpp", *(metric.label for metric in metrics)]
    rows = [
        f'<tr><th scope="row">{escape(c.label)}</th><td>{escape(c.setting)}</td><td>{c.size:,}</td>'
        f"<td>{c.size / target - 1:+.1%}</td><td>{c.bpp:.3f}</td>"
        + "".join(f"<td{' class=best' * (v == best[name])}>{v:.2f}</td>" for name, v in c.values.items())
        + "</tr>"
        for c in coded
    ]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def make_sheet(coded: Sequence[Coded], target: int, views: Views, gain: int) -> Image.Image:
    """A column for the original and each codec: its numbers, and each view with its error. Long lines are cut."""
    width, gap = 2 * DETAIL[0], 16
    large, small = ImageFont.load_default(24), ImageFont.load_default(16)  # a font of ASCII only
    facts = {"original": [], **{c.name: c.facts(target) for c in coded}}
    labels = {"original": "original", **{c.name: c.label for c in coded}}
    heading = 48 + 22 * max(map(len, facts.values()))
    heights = [width * images["original"].height // images["original"].width for images in views.values()]
    total = heading + sum(2 * (height + gap) for height in heights)
    sheet = Image.new("RGB", (gap + len(facts) * (width + gap), gap + total), "white")
    for index, (name, lines) in enumerate(facts.items()):
        column = Image.new("RGB", (width, total), "white")
        draw = ImageDraw.Draw(column)
        draw.text((0, 0), labels[name], "black", large)
        draw.multiline_text((0, 36), "\n".join(lines), "#555555", small, spacing=6)
        top = heading
        for images, height in zip(views.values(), heights, strict=True):
            for image in (images[name], images.get(f"{name} error")):
                if image:
                    enlarged = 2 * image.width <= width
                    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
                    column.paste(image.resize((width, height), method), (0, top))
                else:
                    draw.text((width, top + height // 2), f"errors x {gain}", "#555555", small, "rm")
                top += height + gap
        sheet.paste(column, (gap + index * (width + gap), gap))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="lic compare", description=__doc__)
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
