"""The container: what is written is read, and whatever is damaged is refused."""

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lic
from lic import container
from lic.container import Frame, Info

PLAIN = Info(768, 512, 3, 8, "wavelet", "0123456789abcdef")

infos = st.builds(
    Info,
    width=st.integers(1, container.MAX_SIDE),
    height=st.integers(1, container.MAX_SIDE),
    channels=st.integers(1, 4),
    bit_depth=st.sampled_from((8, 16)),
    model=st.sampled_from((*container.MODEL_CODES, "someone's-own")).map(str),
    weights=st.binary(min_size=8, max_size=8).map(bytes.hex),
    exif=st.none() | st.binary(max_size=300),
    icc_profile=st.none() | st.binary(max_size=300),
    xmp=st.none() | st.binary(max_size=300),
)


def read(data: bytes, truncated: bool = False) -> tuple[Info, list[Frame]]:
    file = io.BytesIO(data)
    info = container.read_info(file)
    return info, list(container.read_frames(file, info, truncated))


def test_a_plain_rgb_picture_costs_32_bytes_over_its_streams():
    assert len(container.write(PLAIN, [Frame(bytes(1000))])) - 1000 == 32


@given(infos, st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=50)), min_size=1, max_size=4), st.data())
def test_everything_written_is_read(info, contents, data):
    if len(contents) > 1 or data.draw(st.booleans()):
        durations = data.draw(st.lists(st.integers(0, 10**6), min_size=len(contents), max_size=len(contents)))
        info = Info(**{**vars(info), "frames": len(contents), "durations": tuple(durations), "loop": 3})
    frames = [Frame(planes, alpha if info.has_alpha else b"") for planes, alpha in contents]
    assert read(container.write(info, frames)) == (info, frames)


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_noticed(at, bit):
    info = Info(20, 10, 4, 8, "wavelet", "0123456789abcdef", exif=b"Exif", xmp=b"<x/>")
    data = bytearray(container.write(info, [Frame(b"planes" * 5, b"alpha" * 5)]))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(lic.FormatError):
        read(bytes(data))


def test_truncation_at_every_byte_is_noticed():
    info = Info(20, 10, 4, 8, "wavelet", "0123456789abcdef", exif=b"Exif")
    data = container.write(info, [Frame(b"planes" * 5, b"alpha" * 5)])
    for length in range(len(data)):
        with pytest.raises(lic.FormatError):
            read(data[:length])


def test_a_truncated_file_gives_what_it_holds_when_asked():
    data = container.write(PLAIN, [Frame(b"0123456789")])
    (frame,) = read(data[:-7], truncated=True)[1]
    assert frame == Frame(b"0123456", complete=False)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_format_errors_alone(junk):
    for data in (junk, container.SIGNATURE + junk, container.write(PLAIN, [Frame(b"")])[:26] + junk):
        with pytest.raises(lic.FormatError):
            read(data)


def header(*fields: bytes) -> bytes:
    body = b"".join(fields)
    return container.SIGNATURE + body + struct.pack(">I", zlib.crc32(body))


def test_a_header_that_claims_2_to_the_31_pixels_is_refused_before_anything_is_allocated():
    sides = container.write_varint(2**16) + container.write_varint(2**15)
    data = header(b"\x01\x0a", bytes(8), sides) + container._box(b"F", b"x", last=True)
    assert lic.read_info(data).width == 2**16
    with pytest.raises(lic.LimitError, match="limit"):
        lic.decode(data)
    with pytest.raises(lic.FormatError, match="larger than"):
        lic.read_info(header(b"\x01\x0a", bytes(8), container.write_varint(2**31), b"\x01"))


def test_a_later_version_and_unknown_boxes():
    with pytest.raises(lic.FormatError, match="version 2"):
        lic.read_info(header(b"\x02\x0a", bytes(8), b"\x05\x05"))
    start = header(b"\x01\x0a", bytes(8), b"\x05\x05")
    frame = container._box(b"F", b"planes", last=True)
    assert read(start + container._box(b"q", b"skip me") + frame)[1] == [Frame(b"planes")]
    with pytest.raises(lic.FormatError, match="'Q'"):
        read(start + container._box(b"Q", b"needed") + frame)


def test_something_behind_the_last_frame_is_refused():
    data = container.write(Info(5, 5, 3, 8, "wavelet", "00" * 8), [Frame(b"planes")])
    sized = data[:24] + container._box(b"F", b"planes") + b"more"
    with pytest.raises(lic.FormatError, match="behind"):
        read(sized)
