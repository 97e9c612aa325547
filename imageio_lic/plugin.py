"""imageio plugin: turns imageio's requests and options into calls of `lic`, and back. docs/modes.md: the shapes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from types import EllipsisType
from typing import Any

import numpy as np
from imageio.core.request import URI_BYTES, InitializationError, IOMode, Request
from imageio.core.v3_plugin_api import ImageProperties, PluginV3
from numpy.typing import ArrayLike

import lic


class LicPlugin(PluginV3):
    """A .lic file: opening it reads the header, `read` decodes, and `close` encodes what `write` was given.

    index is a frame, or ... for all frames as a batch; None is ... where there are several frames, else 0.
    """

    _accepted = False  # imageio also closes a plugin that declined, but the request goes on to the next one

    def __init__(self, request: Request) -> None:
        if request.mode.io_mode == IOMode.read:
            self._open(request)
        elif request.extension != ".lic":
            raise InitializationError("the plugin writes files with the extension .lic; extension='.lic' makes it one")
        super().__init__(request)
        self._pending: list[np.ndarray] = []
        self._options: dict[str, Any] = {}
        self._accepted = True

    def _open(self, request: Request) -> None:
        file = request.get_file()
        if not (hasattr(file, "seekable") and file.seekable()):
            raise InitializationError("looking into a stream would take its beginning away from other plugins")
        self._start = file.tell()
        signature = file.read(len(lic.SIGNATURE))
        file.seek(self._start)
        if signature != lic.SIGNATURE:
            raise InitializationError("this is not a .lic file")
        try:
            self._info = lic.read_info(file)
        except lic.LicError as error:
            raise OSError(str(error)) from error
        finally:
            file.seek(self._start)

    @cached_property
    def _data(self) -> bytes:
        file = self.request.get_file()
        file.seek(self._start)
        return file.read()

    def _frame(self, index: int | EllipsisType | None) -> int | EllipsisType:
        """The index of a single frame, or ... for all."""
        if index is None:
            index = 0 if self._info.frames == 1 else ...
        return index if index is ... else range(self._info.frames)[index]

    def read(self, *, index: int | EllipsisType | None = None, **options: Any) -> np.ndarray:
        """The pixels. options: those of `lic.decode` (device, max_pixels, truncated)."""
        frame = self._frame(index)
        if frame is ...:
            return np.stack(list(self.iter(**options)))
        try:
            return lic.decode(self._data, frame=frame, **options).pixels
        except lic.LicError as error:
            raise OSError(str(error)) from error

    def iter(self, **options: Any) -> Iterator[np.ndarray]:
        for frame in range(self._info.frames):
            yield self.read(index=frame, **options)

    def properties(self, index: int | EllipsisType | None = None) -> ImageProperties:
        info = self._info
        shape = (info.height, info.width, info.channels)[: 2 if info.channels == 1 else 3]
        dtype = np.dtype(f"uint{info.bit_depth}")
        if self._frame(index) is ...:
            return ImageProperties(shape=(info.frames, *shape), dtype=dtype, n_images=info.frames, is_batch=True)
        return ImageProperties(shape=shape, dtype=dtype)

    def metadata(self, index: int | EllipsisType | None = None, exclude_applied: bool = True) -> dict[str, Any]:
        """model, weights, and what there is of exif, icc_profile and xmp (bytes), loop and duration (milliseconds)."""
        info = self._info
        frame = self._frame(index)
        metadata: dict[str, Any] = {"model": info.model, "weights": info.weights}
        metadata |= {key: getattr(info, key) for key in ("exif", "icc_profile", "xmp") if getattr(info, key)}
        if info.durations:
            metadata |= {"loop": info.loop, "duration": info.durations if frame is ... else info.durations[frame]}
        return metadata

    def write(
        self, ndimage: ArrayLike | list[ArrayLike], *, is_batch: bool | None = None, **options: Any
    ) -> bytes | None:
        """Take one picture or a batch of frames; `close` writes the file. Where the target is "<bytes>", return them.

        is_batch: False for one picture, True for frames; None tells by the shape, where up to 4 in the last place are
        channels. options: those of `lic.encode`; also duration, milliseconds for every frame or for each.
        """
        if is_batch is None:
            is_batch = isinstance(ndimage, (list, tuple)) or _is_batch(np.asarray(ndimage).shape)
        frames: Any = ndimage if is_batch else [ndimage]
        self._pending += [np.asarray(frame) for frame in frames]
        self._options |= options
        return self._flush() if self.request._uri_type == URI_BYTES else None

    def _flush(self) -> bytes:
        """Encode all of it first: where that fails, the file stays as it was."""
        frames, self._pending = self._pending, []
        options = self._options.copy()
        if (duration := options.pop("duration", None)) is not None:
            durations: Any = [duration] * len(frames) if np.isscalar(duration) else duration
            options["durations"] = [round(milliseconds) for milliseconds in durations]
        data = lic.encode(frames, **options)
        self.request.get_file().write(data)
        return data

    def close(self) -> None:
        if not self._accepted:
            return
        try:
            if self._pending:
                self._flush()
        finally:
            self.request.finish()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:  # half an animation is not what the caller wanted
            self._pending = []
        self.close()


def _is_batch(shape: tuple[int, ...]) -> bool:
    return len(shape) > 3 or (len(shape) == 3 and shape[2] > 4)
