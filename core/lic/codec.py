"""The contract between the codec and its models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lic.layers import tiles
from lic.layers.tiles import Area

if TYPE_CHECKING:
    import torch

Streams = dict[str, bytes]


@dataclass(frozen=True)
class ModelCard:
    """What a model is and is for.

    streams: the names of the byte strings it writes, in their order in the file. lossless_by, serial_by: the models
    that stand in for it where lossless coding or a serial context is asked for. tunes: what it can be tuned for.
    """

    name: str
    paper: str
    purpose: str
    lossy: bool
    lossless: bool
    streams: tuple[str, ...]
    lossless_by: str | None = None
    serial_by: str | None = None
    tunes: tuple[str, ...] = ("psnr",)


@dataclass(frozen=True)
class Settings:
    """What the caller asks of an encoder: quality 0..100, lossless, effort 0..9 (encoder-side search only), and what to
    tune for, one of its card's `tunes`."""

    quality: float
    lossless: bool
    effort: int
    tune: str = "psnr"


@dataclass(frozen=True)
class PlaneShape:
    """What a decoder is told of the planes beside the streams: 1 or 3 channels, sides in pixels, 8 or 16 bits."""

    channels: int
    height: int
    width: int
    bit_depth: int


@dataclass(frozen=True)
class View:
    """What a decoder is asked for: a region (left, top, right, bottom) in pixels, None for all; how often to halve the
    resolution; and whether the last stream is cut off, and what can be made of it is wanted."""

    region: tuple[int, int, int, int] | None = None
    halvings: int = 0
    truncated: bool = False

    def area(self, shape: PlaneShape) -> Area:
        """The region in pixels of the halved picture, touched ones included."""
        left, top, right, bottom = self.region or (0, 0, shape.width, shape.height)
        return Area(top >> self.halvings, left >> self.halvings, *tiles.size(bottom, right, self.halvings))

    def of(self, planes: torch.Tensor, shape: PlaneShape) -> torch.Tensor:
        """What is asked for out of the whole planes (C, H, W), int32: for models that must decode all of them."""
        import torch.nn.functional as F

        side = 2**self.halvings
        if side > 1:
            padded = F.pad(planes.double(), (0, -shape.width % side, 0, -shape.height % side), mode="replicate")
            planes = F.avg_pool2d(padded, side).round().to(planes.dtype)
        area = self.area(shape)
        return planes[:, area.top : area.bottom, area.left : area.right]


class Codec(Protocol):
    """A model, loaded on a device with one set of weights (None: the newest).

    Raises lic.ModelError when it hasn't got the weights asked for, lic.FormatError on streams that it can't have made.
    """

    card: ModelCard
    weights: str  # the first 8 bytes of the weights' SHA-256, as 16 hexadecimal digits

    def __init__(self, device: torch.device, weights: str | None = None) -> None: ...

    @staticmethod
    def trainable() -> Any:
        """The model's networks, to be trained (a lic.training.loop.Trainable)."""

    def compress(self, planes: torch.Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        """planes (C, H, W) int32, 0..2**bit_depth - 1: grey or RGB."""

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> torch.Tensor:
        """The part of the planes (C, h, w) int32 that the view asks for."""
