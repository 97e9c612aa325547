"""What a lossless file codes of a picture: three planes of integers about zero, from which its samples come back.

Of samples, each as its number among the values that its channel uses (a picture of 8 bits in 16, one whose contrast
was stretched), through JPEG 2000's reversible colour transform; or, where a picture was a JPEG or WebP file or video
once, of the YCbCr that it was converted from.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lic.codec import PlaneShape
from lic.container import Reader, write_varint
from lic.errors import FormatError
from lic.layers import reversible
from lic.layers.tiles import Area
from lic.layers.ycbcr import FEW, Conversion, Exceptions, Origin

LONGEST = 2**26  # bytes of a list
_YCBCR_SAVES = 2  # bits a pixel: the logarithm of how many triples there are for each that a decoder makes


@dataclass(frozen=True)
class Mapping:
    """The values that each channel uses, (C, 2**bit depth), or None, for all; or a conversion, and its exceptions."""

    used: NDArray[np.bool_] | None = None
    conversion: Conversion | None = None
    exceptions: Exceptions | None = None

    @property
    def kind(self) -> int:
        """0, or the conversion's."""
        return self.conversion.kind if self.conversion else 0

    @staticmethod
    def of(samples: NDArray[np.int32], shape: PlaneShape, origin: Origin | None = None) -> tuple[Mapping, Tensor]:
        """Samples (C, H, W) -> the mapping that makes them cheap to code, and the planes (3, H, W) int32. origin: where
        they come from, as far as `ycbcr.traced` can tell."""
        counts = np.stack([np.bincount(plane.ravel(), minlength=2**shape.bit_depth) for plane in samples])
        mapping, saved = Mapping(counts > 0), _saved(counts)
        if saved <= 8 * len(mapping.coded()):
            mapping, saved = Mapping(), 0.0
        if origin and len(origin.exceptions.places) <= samples[0].size // FEW:
            conversion = Mapping(None, origin.conversion, origin.exceptions)
            if saved + 8 * len(conversion.coded()) < _YCBCR_SAVES * samples[0].size:
                return conversion, origin.planes
        x = torch.from_numpy(mapping._numbers(samples, shape))
        return mapping, reversible.to_rct(x) if shape.channels == 3 else F.pad(x, (0, 0, 0, 0, 0, 2))

    def _numbers(self, samples: NDArray[np.int32], shape: PlaneShape) -> NDArray[np.int32]:
        """Each sample's place among the values in use, about zero."""
        if self.used is None:
            return samples - (1 << shape.bit_depth - 1)
        places = np.cumsum(self.used, 1, np.int32) - 1 - self.used.sum(1, np.int32, keepdims=True) // 2
        return np.stack([place[plane] for place, plane in zip(places, samples, strict=True)])

    def coded(self) -> bytes:
        listed = b""
        if self.used is not None:
            listed = zlib.compress(np.packbits(self.used).tobytes(), 9)
        elif self.conversion and self.exceptions:
            listed = self.conversion.coded() + self.exceptions.coded()
        return write_varint(len(listed)) + listed

    @staticmethod
    def read(kind: int, reader: Reader, shape: PlaneShape) -> Mapping:
        """The inverse of `coded`. Raises FormatError where that didn't write it."""
        listed = reader.take(reader.varint(LONGEST))
        if not kind:
            return Mapping(_unlisted(listed, shape) if listed else None)
        if (shape.channels, shape.bit_depth) != (3, 8):
            raise FormatError("the coded picture's header is damaged")
        conversion, rest = Conversion.read(kind, listed)
        return Mapping(None, conversion, Exceptions.read(rest, shape.height * shape.width))

    def samples(self, planes: Tensor, shape: PlaneShape, wanted: Area, halvings: int) -> Tensor:
        """The samples (C, h, w) int32 of an area, from its planes (3, h, w), at 1 / 2**halvings of the resolution."""
        if self.conversion and self.exceptions:
            rgb = self.conversion.rgb(planes)
            if not halvings:
                self.exceptions.put(rgb, wanted, shape.width)
            return rgb
        numbers = reversible.from_rct(planes) if shape.channels == 3 else planes[:1]
        if self.used is None:
            return (numbers + (1 << shape.bit_depth - 1)).clamp(0, 2**shape.bit_depth - 1)
        out = []
        for used, plane in zip(self.used, numbers, strict=True):
            values = torch.from_numpy(np.flatnonzero(used).astype(np.int32)).to(planes.device)
            out.append(values[(plane + len(values) // 2).clamp(0, len(values) - 1)])
        return torch.stack(out)


def _saved(counts: NDArray[np.int64]) -> float:
    """The bits that numbering values saves, where each occurs so often, (C, 2**bit depth): a logarithm of how far those
    in use lie apart, for each sample."""
    total = 0.0
    for count in counts:
        values = np.flatnonzero(count)
        if len(values) > 1:
            total += float(count[values] @ np.log2(np.gradient(values)))
    return total


def _unlisted(listed: bytes, shape: PlaneShape) -> NDArray[np.bool_]:
    size = shape.channels << shape.bit_depth
    try:
        raw = zlib.decompressobj().decompress(listed, size // 8)
    except zlib.error as error:
        raise FormatError("the list of values is damaged") from error
    if len(raw) != size // 8:
        raise FormatError("the list of values is damaged")
    used = np.unpackbits(np.frombuffer(raw, np.uint8)).view(np.bool_).reshape(shape.channels, -1)
    if not used.any(1).all():
        raise FormatError("the list of values is damaged")
    return used
