"""The contract between the codec and its models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Streams = dict[str, bytes]


@dataclass(frozen=True)
class ModelCard:
    """What a model is and is for. streams: the names of the byte strings it writes, in their order in the file."""

    name: str
    paper: str
    purpose: str
    lossy: bool
    lossless: bool
    streams: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """What the caller asks of an encoder: quality 0..100, lossless, effort 0..9 (encoder-side search only)."""

    quality: float
    lossless: bool
    effort: int


@dataclass(frozen=True)
class PlaneShape:
    """What a decoder is told of the planes beside the streams: 1 or 3 channels, sides in pixels, 8 or 16 bits."""

    channels: int
    height: int
    width: int
    bit_depth: int


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

    def decompress(self, streams: Streams, shape: PlaneShape, truncated: bool = False) -> torch.Tensor:
        """The planes (C, H, W) int32. truncated: the last stream is cut off; make what can be made of it."""
