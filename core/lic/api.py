"""encode and decode: pixels -> planes -> model -> container, and back."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lic import container, registry
from lic.codec import ModelCard, PlaneShape, Settings, Streams
from lic.container import Frame, Info
from lic.errors import FormatError, LicError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lic.picture import Picture, Pixels

DEFAULT_QUALITY = 75
DEFAULT_EFFORT = 5
MAX_PIXELS = 2**28  # what decode accepts unless the caller says otherwise

Source = bytes | bytearray | memoryview | str | os.PathLike | BinaryIO


def encode(
    pixels: Pixels | Sequence[Pixels],
    *,
    quality: float = DEFAULT_QUALITY,
    model: str = "wavelet",
    lossless: bool = False,
    effort: int | None = None,
    device: str | torch.device | None = None,
    exif: bytes | None = None,
    icc_profile: bytes | None = None,
    xmp: bytes | None = None,
    durations: Sequence[int] | None = None,
    loop: int = 0,
) -> bytes:
    """A .lic file of the pixels.

    pixels: uint8 or uint16, (H, W) or (H, W, C) with C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; a list of
        such arrays of one shape makes an animation.
    quality: 0 to 100, continuous; size and PSNR rise with it. Alpha is always lossless.
    lossless: bit for bit, whatever the quality.
    effort: 0 to 9, how hard the encoder searches; decoding is the same.
    device: "auto" (CUDA, then MPS, then CPU), or a torch device; the default is $LIC_DEVICE, then "auto".
    exif, icc_profile, xmp: kept byte for byte.
    durations: milliseconds, one a frame; loop: how often to play, 0 for ever.

    Raises TypeError, and LicError (a ValueError) where a value is out of range; ModelError for an unknown model.
    """
    from lic import alpha, picture

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
    if durations is None:
        durations = [100] * len(frames) if len(frames) > 1 else []
    elif len(durations) != len(frames) or min(durations) < 0:
        raise LicError(f"durations must be {len(frames)} numbers of milliseconds, not {list(durations)}")
    for name, payload in (("exif", exif), ("icc_profile", icc_profile), ("xmp", xmp)):
        if payload is not None and not isinstance(payload, bytes):
            raise TypeError(f"{name} must be bytes, not {type(payload).__name__}")

    codec = registry.load(model, choose_device(device))
    height, width, channels = frames[0].shape
    info = Info(
        width, height, channels, frames[0].dtype.itemsize * 8, model, codec.weights, len(frames),
        tuple(map(int, durations)), int(loop), exif, icc_profile, xmp,
    )  # fmt: skip
    settings = Settings(float(quality), lossless, effort)
    coded = []
    for frame in frames:
        planes, opacity = picture.to_planes(frame)
        with _inference():
            streams = codec.compress(planes, _shape(info), settings)
        coded.append(Frame(_join(streams, card), b"" if opacity is None else alpha.encode(opacity)))
    return container.write(info, coded)


def decode(
    source: Source,
    *,
    frame: int = 0,
    device: str | torch.device | None = None,
    max_pixels: int | None = None,
    truncated: bool = False,
) -> Picture:
    """The pixels of one frame, with what the file says of itself.

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
        planes = codec.decompress(streams, _shape(info), truncated and not coded.complete)
    opacity = None
    if info.has_alpha:
        import numpy as np

        if coded.complete:
            opacity = alpha.decode(coded.alpha, info.height, info.width, info.bit_depth)
        else:
            opaque = 2**info.bit_depth - 1
            opacity = np.full((info.height, info.width), opaque, np.uint16 if info.bit_depth == 16 else np.uint8)
    return picture.Picture(picture.from_planes(planes, opacity, info), info)


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
