"""Pixels: arrays as callers hold them <-> the planes that a model codes, and alpha."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lic.container import MAX_SIDE, Info
from lic.errors import LicError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Pixels = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """A decoded frame: pixels (H, W) for grey, else (H, W, C), uint8 or uint16; and what the file says of itself."""

    pixels: Pixels
    info: Info

    @property
    def exif(self) -> bytes | None:
        return self.info.exif

    @property
    def icc_profile(self) -> bytes | None:
        return self.info.icc_profile

    @property
    def xmp(self) -> bytes | None:
        return self.info.xmp


def frames_of(pixels: Pixels | Sequence[Pixels]) -> list[Pixels]:
    """One array or several of one shape -> a list of (H, W, C). Raises TypeError and LicError on anything else."""
    import numpy as np

    frames = list(pixels) if isinstance(pixels, (list, tuple)) else [pixels]
    if not frames:
        raise LicError("there are no frames to encode")
    out = []
    for frame in frames:
        if not isinstance(frame, np.ndarray):
            raise TypeError(f"pixels must be a NumPy array, or a list of them, not {type(frame).__name__}")
        if frame.dtype not in (np.uint8, np.uint16):
            raise TypeError(f"pixels must be uint8 or uint16, not {frame.dtype}: scale and convert them first")
        if frame.ndim == 2:
            frame = frame[..., None]
        if frame.ndim != 3 or not 1 <= frame.shape[2] <= 4:
            raise LicError(f"pixels must be (H, W) or (H, W, C) with 1 to 4 channels, not {frame.shape}")
        if not 0 < min(frame.shape[:2]) <= max(frame.shape[:2]) <= MAX_SIDE:
            raise LicError(f"a picture's sides must be 1 to {MAX_SIDE} pixels, not {frame.shape[:2]}")
        out.append(frame)
    if len({(frame.shape, frame.dtype) for frame in out}) > 1:
        raise LicError("all frames must have one shape and one dtype")
    return out


def to_planes(frame: Pixels) -> tuple[torch.Tensor, Pixels | None]:
    """(H, W, C) -> planes (1 or 3, H, W) int32, and alpha (H, W) where there is one."""
    import numpy as np
    import torch

    count = frame.shape[2]
    has_alpha = count in (2, 4)
    planes = np.ascontiguousarray(np.moveaxis(frame[..., : count - has_alpha], 2, 0), dtype=np.int32)
    return torch.from_numpy(planes), frame[..., -1] if has_alpha else None


def from_planes(planes: torch.Tensor, alpha: Pixels | None, info: Info) -> Pixels:
    """The inverse: (H, W) for grey, else (H, W, C)."""
    import numpy as np

    pixels = np.moveaxis(planes.cpu().numpy(), 0, 2).astype(np.uint16 if info.bit_depth == 16 else np.uint8)
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[..., None].astype(pixels.dtype)], axis=2)
    return np.ascontiguousarray(pixels[..., 0] if info.channels == 1 else pixels)
