"""encode and decode: pixels -> planes -> model -> container, and back."""

from __future__ import annotations

import io
import math
import operator
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lic import container, registry
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.container import Frame, Info
from lic.errors import FormatError, LicError, LimitError
from lic.search import SLOPE, quality_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lic.picture import Picture, Pixels

DEFAULT_QUALITY = 75
DEFAULT_EFFORT = 5
SMALLEST_SCALE = 6  # halvings
MAX_PIXELS = 2**28  # what decode accepts unless the caller says otherwise
_ROUGHLY = 1.5  # times what a file may take, an estimate of it may say

Source = bytes | bytearray | memoryview | str | os.PathLike | BinaryIO


def encode(
    pixels: Pixels | Sequence[Pixels],
    *,
    quality: float = DEFAULT_QUALITY,
    model: str = "wavelet",
    lossless: bool = False,
    effort: int | None = None,
    tune: str = "psnr",
    context: str = "parallel",
    device: str | torch.device | None = None,
    exif: bytes | None = None,
    icc_profile: bytes | None = None,
    xmp: bytes | None = None,
    durations: Sequence[int] | None = None,
    loop: int = 0,
    target_size: int | None = None,
    target_bpp: float | None = None,
    target_psnr: float | None = None,
) -> bytes:
    """A .lic file of the pixels.

    pixels: uint8 or uint16, (H, W) or (H, W, C) with C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; a list of
        such arrays of one shape makes an animation.
    quality: 0 to 100, continuous; size and PSNR rise with it. Alpha is always lossless.
    lossless: bit for bit, whatever the quality. Screenshots, drawings, and pictures that were JPEG files come so, too,
        where that is smaller.
    effort: 0 to 9, how hard the encoder searches; decoding is the same.
    tune: "psnr", the least squared error; or, of models that can, "visual": the smallest file of the same look.
    context: "parallel", or, of `hybrid`, "serial": latents in the order of its paper, slower. Files name which it was.
    device: "auto" (CUDA, then MPS, then CPU), or a torch device; the default is $LIC_DEVICE, then "auto".
    exif, icc_profile, xmp: kept byte for byte.
    durations: milliseconds, one a frame; loop: how often to play, 0 for ever.
    target_size, target_bpp, target_psnr: one of them instead of quality. Bytes of the file, never more and at most 1 %
        less; bits per pixel, likewise; decibels over all channels but alpha, within 0.05. Small pictures move in larger
        jumps. Where quality 100 falls short, that is what comes; a size too small for quality 0 is refused.

    Raises TypeError, and LicError (a ValueError) where a value is out of range; ModelError for an unknown model.
    """
    from lic import alpha, picture
    from lic.layers import jpeg_trace, repeats

    frames = picture.frames_of(pixels)
    if not isinstance(quality, Real):
        raise TypeError(f"quality must be a number from 0 to 100, not {quality!r}")
    if not 0 <= quality <= 100:
        raise LicError(f"quality must lie in 0 to 100, not {quality}")
    effort = DEFAULT_EFFORT if effort is None else effort
    if effort not in range(10):
        raise LicError(f"effort must be an integer from 0 to 9, not {effort}")
    card = registry.model_class(model).card
    if not (card.lossless if lossless else card.lossy):
        able = [n for n, c in registry.cards().items() if (c.lossless if lossless else c.lossy)]
        kind = "lossless" if lossless else "lossy"
        raise LicError(f"model {model!r} is not {kind}; {kind} models installed: {', '.join(able) or 'none'}")
    if context == "serial" and card.serial_by:
        model, card = card.serial_by, registry.model_class(card.serial_by).card
    elif context != "parallel":
        able = [n for n, c in registry.cards().items() if c.serial_by]
        advice = f"leave context out, or choose {' or '.join(able)} with 'serial'"
        raise LicError(f"model {model!r} has no {context!r} context; {advice}")
    if tune not in card.tunes:
        raise LicError(f"model {model!r} can be tuned for {' or '.join(card.tunes)}, not for {tune!r}")
    if durations is None:
        durations = [100] * len(frames) if len(frames) > 1 else []
    elif len(durations) != len(frames) or min(durations) < 0:
        raise LicError(f"durations must be {len(frames)} numbers of milliseconds, not {list(durations)}")
    for name, payload in (("exif", exif), ("icc_profile", icc_profile), ("xmp", xmp)):
        if payload is not None and not isinstance(payload, bytes):
            raise TypeError(f"{name} must be bytes, not {type(payload).__name__}")

    targets = [t for t in (target_size, target_bpp, target_psnr) if t is not None]
    if targets and (len(targets) > 1 or lossless or not targets[0] > 0):
        raise LicError("target_size, target_bpp and target_psnr are positive and exclude one another and lossless")
    if lossless and card.lossless_by:
        model, card = card.lossless_by, registry.model_class(card.lossless_by).card
    codec = registry.load(model, choose_device(device))
    height, width, channels = frames[0].shape
    info = Info(
        width, height, channels, frames[0].dtype.itemsize * 8, model, codec.weights, len(frames),
        tuple(map(int, durations)), int(loop), exif, icc_profile, xmp,
    )  # fmt: skip
    parts = [picture.to_planes(frame) for frame in frames]
    opacities = [b"" if opacity is None else alpha.encode(opacity) for _, opacity in parts]
    tried: dict[float, list[Streams]] = {}

    def compress(quality: float) -> list[Streams]:
        if quality not in tried:
            settings = Settings(quality, lossless, effort, tune)
            with _inference():
                tried[quality] = [codec.compress(planes, _shape(info), settings) for planes, _ in parts]
        return tried[quality]

    def write(quality: float) -> bytes:
        pairs = zip(compress(quality), opacities, strict=True)
        return container.write(info, [Frame(_join(streams, card), opacity) for streams, opacity in pairs])

    def psnr(quality: float) -> float:
        with _inference():
            decoded = [codec.decompress(streams, _shape(info), View()) for streams in compress(quality)]
        errors = [(d.cpu() - p).double().square().mean() for d, (p, _) in zip(decoded, parts, strict=True)]
        mean = float(sum(errors)) / len(errors)
        return 20 * math.log10((2**info.bit_depth - 1) / math.sqrt(mean)) if mean else math.inf

    if target_psnr is not None:
        found = quality_for(psnr, target_psnr + 0.05, 0.1, 8 * SLOPE)
        return write(0.0 if found is None else found)

    def exact(limit: int) -> bytes | None:
        """The file of the very pixels, if that is no larger."""
        first = parts[0][0]
        if lossless or not card.lossless_by:
            return None
        if not repeats.likely(first.numpy()):
            bits = jpeg_trace.bits(first) if info.bit_depth == 8 else math.inf
            if bits * width * height * len(frames) > _ROUGHLY * 8 * limit:
                return None
        coded = encode(
            frames, model=model, lossless=True, effort=effort, device=device, exif=exif, icc_profile=icc_profile,
            xmp=xmp, durations=durations or None, loop=loop,
        )  # fmt: skip
        return coded if len(coded) <= limit else None

    if not targets:
        lossy = write(float(quality))
        return exact(len(lossy)) or lossy
    limit = target_size or int(targets[0] * width * height * len(frames) / 8)
    if coded := exact(limit):
        return coded
    found = quality_for(lambda quality: math.log(len(write(quality))), math.log(limit), 0.01, SLOPE)
    if found is None:
        raise LicError(f"the picture takes {len(write(0))} bytes at quality 0: more than {limit}")
    return write(found)


def decode(
    source: Source,
    *,
    frame: int = 0,
    scale: float = 1,
    region: tuple[int, int, int, int] | None = None,
    device: str | torch.device | None = None,
    max_pixels: int | None = None,
    truncated: bool = False,
) -> Picture:
    """The pixels of one frame, with what the file says of itself.

    scale: 1, 1/2, 1/4, ... 1/64 of the resolution; region: (left, top, right, bottom) in pixels of the whole picture.
        Sides are rounded up. Of models that can, only what is needed is decoded.
    source: the file's bytes, its path, or a binary file object. device: as in `encode`.
    max_pixels: the largest picture to accept (default: MAX_PIXELS), checked before anything is allocated.
    truncated: make what can be made of a file that was cut off.

    Raises FormatError for anything that is not a whole .lic file, LimitError, ModelError, and IndexError for a frame
    that isn't there.
    """
    from lic import alpha, picture

    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with _open(source) as file:
        info = container.read_info(file)
        view = _view(info, scale, region)
        if info.width * info.height > limit:
            raise LimitError(f"the picture has {info.width}×{info.height} pixels; the limit is {limit}")
        if not 0 <= frame < info.frames:
            raise IndexError(f"there is no frame {frame}; the file has {info.frames}")
        coded = next(islice(container.read_frames(file, info, truncated), frame, None), None)
    if coded is None:
        raise FormatError(f"the file ends before frame {frame}")
    codec = registry.load(info.model, choose_device(device), info.weights)
    streams = _split(coded.planes, codec.card)
    with _inference():
        view = replace(view, truncated=truncated and not coded.complete)
        planes = codec.decompress(streams, _shape(info), view)
    opacity = None
    if info.has_alpha:
        import numpy as np
        import torch

        if coded.complete:
            opacity = alpha.decode(coded.alpha, info.height, info.width, info.bit_depth)
        else:
            opaque = 2**info.bit_depth - 1
            opacity = np.full((info.height, info.width), opaque, np.uint16 if info.bit_depth == 16 else np.uint8)
        opacity = view.of(torch.from_numpy(opacity.astype(np.int32))[None], _shape(info))[0].numpy()
    return picture.Picture(picture.from_planes(planes, opacity, info), info)


def _view(info: Info, scale: float, region: tuple[int, int, int, int] | None) -> View:
    halvings = round(-math.log2(scale)) if 0 < scale <= 1 else -1
    if not 0 <= halvings <= SMALLEST_SCALE or scale != 2.0**-halvings:
        raise LicError(f"scale must be 1, 1/2, 1/4, ... or 1/{2**SMALLEST_SCALE}, not {scale}")
    if region is not None:
        left, top, right, bottom = map(operator.index, region)
        if not (0 <= left < right <= info.width and 0 <= top < bottom <= info.height):
            raise LicError(f"region {tuple(region)} must lie within the picture's {info.width}×{info.height} pixels")
        region = left, top, right, bottom
    return View(region, halvings)


def read_info(source: Source) -> Info:
    """What a file says of itself, from its first bytes. Raises FormatError."""
    with _open(source) as file:
        return container.read_info(file)


def verify(source: Source) -> None:
    """Read the whole file and check its checksums, decoding nothing. Raises FormatError."""
    with _open(source) as file:
        info = container.read_info(file)
        for _ in container.read_frames(file, info):
            pass


def models() -> dict[str, ModelCard]:
    """The card of each model that is installed."""
    return registry.cards()


def stream_sizes(source: Source) -> list[dict[str, int]]:
    """For each frame, the bytes of each of its streams, by name."""
    with _open(source) as file:
        info = container.read_info(file)
        card = registry.model_class(info.model).card
        out = []
        for frame in container.read_frames(file, info):
            sizes = {name: len(data) for name, data in _split(frame.planes, card).items()}
            out.append(sizes | ({"alpha": len(frame.alpha)} if info.has_alpha else {}))
        return out


@contextmanager
def _open(source: Source) -> Iterator[BinaryIO]:
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            yield file
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        yield source
    else:
        raise TypeError(f"a .lic file must come as bytes, a path or a binary file, not {type(source).__name__}")


@contextmanager
def _inference() -> Iterator[Any]:
    import torch

    with torch.inference_mode():
        yield


def choose_device(device: str | torch.device | None) -> torch.device:
    """The torch device that "auto", a name or nothing ($LIC_DEVICE, then "auto") stands for. Raises LicError."""
    import torch

    name = device or os.environ.get("LIC_DEVICE") or "auto"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise LicError(f"device {str(name)!r} can't be used here: {str(error).splitlines()[0]}") from None


def _shape(info: Info) -> PlaneShape:
    return PlaneShape(info.planes, info.height, info.width, info.bit_depth)


def _join(streams: Streams, card: ModelCard) -> bytes:
    """The streams in the card's order, the lengths of all but the last before them."""
    parts = [streams[name] for name in card.streams]
    return b"".join(container.write_varint(len(part)) for part in parts[:-1]) + b"".join(parts)


def _split(payload: bytes, card: ModelCard) -> Streams:
    file = io.BytesIO(payload)
    reader = container.Reader(file)
    lengths = [reader.varint(len(payload)) for _ in card.streams[:-1]]
    parts = [reader.take(length) for length in lengths]
    return dict(zip(card.streams, [*parts, file.read()], strict=True))
