"""Pillow plugin: turns Pillow's images and options into calls of `lic`, and back. docs/modes.md lists the modes."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import IO, Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile, ImageSequence

import lic

# The modes that can be saved. Transparency of any kind adds an alpha channel.
GREY = ("1", "L", "LA", "La")
GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
COLOUR = ("P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")


class LicImageFile(ImageFile.ImageFile):
    """A .lic file: opening it reads the header, `load` decodes the current frame."""

    format = "LIC"
    format_description = "Learned image codec"

    # What an unpickled picture is: a single frame, loaded.
    n_frames = 1
    is_animated = False
    _frame = _loaded_frame = _halvings = 0

    def _open(self) -> None:
        try:
            info = lic.read_info(cast(BinaryIO, self.fp))
        except lic.LicError as error:
            raise SyntaxError(str(error)) from error
        self._size = info.width, info.height
        self._pixels = info.width * info.height
        self._mode = ("L", "LA", "RGB", "RGBA")[info.channels - 1]
        if info.channels == 1 and info.bit_depth == 16:
            self._mode = "I;16"
        self.n_frames = info.frames
        self.is_animated = info.frames > 1
        self._durations = info.durations
        self._data = b""
        self._loaded_frame = -1
        self.tile = []  # Pillow 10 sees None here as a picture without pixels
        metadata = {"exif": info.exif, "icc_profile": info.icc_profile, "xmp": info.xmp}
        self.info.update({key: value for key, value in metadata.items() if value})
        if self.is_animated:
            self.info |= {"loop": info.loop, "duration": info.durations[0]}

    def tell(self) -> int:
        return self._frame

    def seek(self, frame: int) -> None:
        if not 0 <= frame < self.n_frames:
            raise EOFError("attempt to seek outside sequence")
        if frame != self._frame:
            self._frame = frame
            self.info["duration"] = self._durations[frame]

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> Any:
        """Decode at 1/2, 1/4, ... 1/64 of the resolution, not below `size`; `thumbnail` calls it. The mode stays."""
        if size is None or self._loaded_frame == self._frame:
            return None
        fits = min(self.width // max(size[0], 1), self.height // max(size[1], 1))
        halvings = min(fits.bit_length() - 1, lic.SMALLEST_SCALE - self._halvings)
        if halvings < 1:
            return None
        width, height = self.size
        self._halvings += halvings
        self._size = -(-width >> halvings), -(-height >> halvings)
        return self.mode, (0, 0, width / 2**halvings, height / 2**halvings)

    def load(self) -> Any:
        if self._loaded_frame != self._frame:
            try:
                picture = lic.decode(
                    self._read(),
                    frame=self._frame,
                    scale=2.0**-self._halvings,
                    max_pixels=self._pixels,  # Image.open has held this size against MAX_IMAGE_PIXELS
                    truncated=ImageFile.LOAD_TRUNCATED_IMAGES,
                )
                self.load_prepare()
                self.frombytes(_pillow_pixels(picture.pixels, self.mode))
            except ValueError as error:
                raise OSError(str(error)) from error
            self._loaded_frame = self._frame
        return super().load()

    def verify(self) -> None:
        """Check every checksum, without decoding."""
        try:
            lic.verify(self._read())
        except lic.LicError as error:
            raise OSError(str(error)) from error

    def _read(self) -> bytes:
        """The whole file. It stays in memory, so that saving over it can't take the frames to come away."""
        if self.fp:
            self.fp.seek(0)
            self._data = self.fp.read()
            if self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return self._data


def _pillow_pixels(pixels: np.ndarray, mode: str) -> bytes:
    if mode == "I;16":
        return pixels.astype("<u2").tobytes()
    if pixels.itemsize == 2:  # Pillow has no 16-bit colour: round(value * 255 / 65535)
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels.tobytes()


def save(image: Image.Image, file: IO[bytes]) -> None:
    _write(image, file, [_convert(image)])


def save_all(image: Image.Image, file: IO[bytes]) -> None:
    images = [image, *image.encoderinfo.get("append_images", ())]
    _write(image, file, [frame for one in images for frame in _frames(one)])


def _write(image: Image.Image, file: IO[bytes], frames: list[Image.Image]) -> None:
    given = image.encoderinfo  # with names unknown here ignored, as Pillow's convention is
    options = {name: given[name] for name in signature(lic.encode).parameters if name in given}

    # As AVIF does: the colour profile stays with the colours it describes; EXIF and XMP are written when given.
    if image.mode != "CMYK":
        options.setdefault("icc_profile", image.info.get("icc_profile"))
    if isinstance(given.get("exif"), Image.Exif):
        options["exif"] = given["exif"].tobytes()
    if isinstance(given.get("xmp"), str):
        options["xmp"] = given["xmp"].encode()

    if len(frames) > 1:
        durations = given.get("duration", [frame.info.get("duration", 0) for frame in frames])
        if not isinstance(durations, (list, tuple)):
            durations = [durations] * len(frames)
        options["durations"] = [round(duration) for duration in durations]
        options.setdefault("loop", image.info.get("loop", 0))

    pixels = [np.asarray(frame) for frame in _same_mode(frames)]
    file.write(lic.encode([p.astype(p.dtype.newbyteorder("="), copy=False) for p in pixels], **options))


def _convert(image: Image.Image) -> Image.Image:
    """The picture in the mode that is stored: one of L, LA, RGB, RGBA, or 16-bit grey."""
    if image.mode in GREY_16_BIT:
        return image
    if image.mode not in GREY + COLOUR:
        raise OSError(f"cannot write mode {image.mode} as LIC")
    mode = "L" if image.mode in GREY else "RGB"
    if image.has_transparency_data:
        mode += "A"
    return image if image.mode == mode else image.convert(mode)


def _frames(image: Image.Image) -> Iterator[Image.Image]:
    position = image.tell()
    try:
        for frame in ImageSequence.Iterator(image):
            frame.load()  # some formats know a frame's duration only then
            yield _convert(frame).copy()
    finally:
        image.seek(position)


def _same_mode(frames: list[Image.Image]) -> list[Image.Image]:
    """GIF's first frame often has another mode than the rest."""
    modes = {frame.mode for frame in frames}
    if len(modes) == 1:
        return frames
    mode = "RGBA" if modes & {"LA", "RGBA"} else "RGB"
    return [frame.convert(mode) for frame in frames]
