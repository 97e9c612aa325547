"""The .lic file: signature, header, boxes, checksums. docs/format.md is its specification."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from lic.errors import FormatError, TruncatedError

SIGNATURE = b"\x89LIC\r\n\x1a\n"
VERSION = 1
MAX_SIDE = 2**24
MAX_FRAMES = 2**16
_PIECE = 2**24  # bytes read at a time
# Models that the header names with one byte; every other one is spelled out.
MODEL_CODES = {
    "wavelet": 1,
    "factorized": 2,
    "hyperprior": 3,
    "hybrid": 4,
    "context3d": 5,
    "softvq": 6,
    "generative": 7,
    "extreme": 8,
    "pixelcnn": 9,
    "l3c": 10,
    "wavelet_lossless": 11,
    "hybrid_serial": 12,
}
_MODEL_NAMES = {code: name for name, code in MODEL_CODES.items()}

FRAME, ALPHA, ANIMATION, EXIF, ICC_PROFILE, XMP = b"F", b"A", b"N", b"e", b"i", b"x"
_METADATA = {EXIF: "exif", ICC_PROFILE: "icc_profile", XMP: "xmp"}


@dataclass(frozen=True)
class Info:
    """What a file says of itself, without its pixels.

    channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha. bit_depth: 8 or 16. weights: the first 8 bytes of the
    SHA-256 of the model's weights, as 16 hexadecimal digits. durations: milliseconds, one a frame, or none for a still
    picture. loop: how often an animation plays, 0 for ever.
    """

    width: int
    height: int
    channels: int
    bit_depth: int
    model: str
    weights: str
    frames: int = 1
    durations: tuple[int, ...] = ()
    loop: int = 0
    exif: bytes | None = None
    icc_profile: bytes | None = None
    xmp: bytes | None = None

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)

    @property
    def planes(self) -> int:
        """Channels that the model codes: 1 or 3."""
        return self.channels - self.has_alpha


@dataclass(frozen=True)
class Frame:
    """One frame's coded planes and, where there is one, its coded alpha. complete: its checksums were right."""

    planes: bytes
    alpha: bytes = b""
    complete: bool = True


def write_varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the high bit set on all but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Bytes taken one after another from a binary file."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def take(self, count: int) -> bytes:
        data = b""
        while more := self.file.read(min(count - len(data), _PIECE)):  # a hostile length allocates nothing
            data += more
        if len(data) < count:
            raise TruncatedError(f"the file ends {count - len(data)} bytes too early")
        return data

    def varint(self, maximum: int) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if value > maximum:
                raise FormatError(f"a number is larger than {maximum}, the most that is allowed there")
            if byte < 128:
                return value
            if shift > 63:
                raise FormatError("a number is longer than 9 bytes")


class _Checked(Reader):
    """A reader that keeps a CRC-32 of what it took."""

    crc = 0

    def take(self, count: int) -> bytes:
        data = super().take(count)
        self.crc = zlib.crc32(data, self.crc)
        return data

    def check(self, what: str) -> None:
        expected = self.crc
        if struct.pack(">I", expected) != super().take(4):
            raise FormatError(f"the {what} is damaged: its checksum does not match")


def _box(kind: bytes, payload: bytes, last: bool = False) -> bytes:
    head = kind + write_varint(0 if last else len(payload) + 1)
    return head + payload + struct.pack(">I", zlib.crc32(head + payload))


def write(info: Info, frames: list[Frame]) -> bytes:
    """The whole file."""
    code = MODEL_CODES.get(info.model, 0)
    name = info.model.encode()
    header = bytes([VERSION, code << 3 | (info.bit_depth == 16) << 2 | info.channels - 1])
    header += b"" if code else bytes([len(name)]) + name
    header += bytes.fromhex(info.weights) + write_varint(info.width) + write_varint(info.height)
    boxes = []
    for kind, field in _METADATA.items():
        if (payload := getattr(info, field)) is not None:
            boxes.append((kind, payload))
    if info.durations:
        numbers = (info.loop, info.frames, *info.durations)
        boxes.append((ANIMATION, b"".join(map(write_varint, numbers))))
    for frame in frames:
        boxes.append((FRAME, frame.planes))
        if info.has_alpha:
            boxes.append((ALPHA, frame.alpha))
    out = [SIGNATURE, header, struct.pack(">I", zlib.crc32(header))]
    out += [_box(*box, last=i == len(boxes) - 1) for i, box in enumerate(boxes)]
    return b"".join(out)


def read_info(file: BinaryIO) -> Info:
    """Header, metadata and animation boxes; the file is left where the first frame begins.

    Raises FormatError where the bytes are not a .lic file, are damaged, or need a newer version.
    """
    if (start := file.read(len(SIGNATURE))) != SIGNATURE:
        if start and SIGNATURE.startswith(start):
            raise TruncatedError("the file ends within its signature")
        raise FormatError("this is not a .lic file: it does not begin with the signature")
    reader = _Checked(file)
    if (version := reader.take(1)[0]) != VERSION:
        raise FormatError(f"the file needs version {version} of the format; this reader knows version {VERSION}")
    bits = reader.take(1)[0]
    if code := bits >> 3:
        name = _MODEL_NAMES.get(code, f"number {code}")
    else:
        raw = reader.take(reader.take(1)[0])
        name = raw.decode("ascii", "replace")
    weights = reader.take(8).hex()
    width, height = reader.varint(MAX_SIDE), reader.varint(MAX_SIDE)
    reader.check("header")
    if not (width and height):
        raise FormatError(f"the header claims a picture of {width}×{height} pixels")
    info = Info(width, height, (bits & 3) + 1, 16 if bits & 4 else 8, name, weights)
    while True:
        position = file.tell()
        kind, length, box = _open_box(file)
        if kind == FRAME:
            file.seek(position)
            return info
        payload = _payload(box, kind, length)
        if kind in _METADATA:
            info = replace(info, **{_METADATA[kind]: payload})  # type: ignore[arg-type]
        elif kind == ANIMATION:
            info = _with_animation(info, payload)


def _with_animation(info: Info, payload: bytes) -> Info:
    import io

    numbers = Reader(io.BytesIO(payload))
    loop, frames = numbers.varint(2**32), numbers.varint(MAX_FRAMES)
    if not frames or frames > len(payload):
        raise FormatError(f"the animation box claims {frames} frames")
    durations = tuple(numbers.varint(2**32) for _ in range(frames))
    return replace(info, frames=frames, durations=durations, loop=loop)


def _open_box(file: BinaryIO) -> tuple[bytes, int | None, _Checked]:
    """Type, length (None: to the end of the file) and the reader that goes on checking."""
    box = _Checked(file)
    kind = box.take(1)
    if not kind.isalpha():
        raise FormatError(f"a box of the unknown type {kind!r}: the file is damaged")
    if kind.isupper() and kind not in (FRAME, ALPHA, ANIMATION):
        raise FormatError(f"the file needs box {kind.decode()!r}, which version {VERSION} of the format lacks")
    length = box.varint(2**40)
    return kind, length - 1 if length else None, box


def _payload(box: _Checked, kind: bytes, length: int | None) -> bytes:
    if length is None:
        rest = box.file.read()
        if len(rest) < 4:
            raise TruncatedError("the file ends within its last box")
        payload, crc = rest[:-4], rest[-4:]
        if struct.pack(">I", zlib.crc32(payload, box.crc)) != crc:
            raise FormatError(f"box {kind.decode()!r} is damaged or cut off: its checksum does not match")
        return payload
    payload = box.take(length)
    box.check(f"box {kind.decode()!r}")
    return payload


def read_frames(file: BinaryIO, info: Info, truncated: bool = False) -> Iterator[Frame]:
    """The frames that follow the header. truncated: take what a file that was cut off still holds."""
    count = 0
    planes: bytes | None = None
    while count < info.frames:
        position = file.tell()
        try:
            kind, length, box = _open_box(file)
            payload = _payload(box, kind, length)
        except FormatError:
            if not truncated:
                raise
            yield _rest(file, position, planes, info)
            return
        if kind == FRAME:
            if planes is not None:
                raise FormatError("a frame lacks its alpha box")
            planes = payload
        elif kind == ALPHA and planes is None:
            raise FormatError("an alpha box stands before its frame")
        if planes is not None and (kind == ALPHA or not info.has_alpha):
            yield Frame(planes, payload if kind == ALPHA else b"")
            planes, count = None, count + 1
    if file.read(1):
        raise FormatError("there is something behind the last frame")


def _rest(file: BinaryIO, position: int, planes: bytes | None, info: Info) -> Frame:
    """What is left of a frame whose box is cut off."""
    if planes is not None:  # the planes are whole, the alpha is not
        return Frame(planes, complete=False)
    file.seek(position)
    box = Reader(file)
    if box.take(1) != FRAME:
        raise TruncatedError("the file ends before the frame's coded planes")
    box.varint(2**40)
    return Frame(file.read(), complete=False)
