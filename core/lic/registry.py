"""Models by name, through the entry-point group "lic.models"."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import entrypoints

from lic.errors import ModelError

if TYPE_CHECKING:
    import torch

    from lic.codec import Codec, ModelCard

GROUP = "lic.models"
_lock = threading.Lock()


def names() -> list[str]:
    return sorted(entrypoints.get_group_named(GROUP))


@lru_cache
def model_class(name: str) -> type[Codec]:
    """Raises ModelError where no installed package has such a model."""
    try:
        point = entrypoints.get_single(GROUP, name)
    except entrypoints.NoSuchEntryPoint:
        raise ModelError(f"there is no model {name!r}; installed are {', '.join(names()) or 'none'}") from None
    return point.load()


def cards() -> dict[str, ModelCard]:
    return {name: model_class(name).card for name in names()}


def load(name: str, device: torch.device, weights: str | None = None) -> Codec:
    """The model with its weights on the device, loaded once.

    Raises ModelError where the model isn't installed, hasn't got these weights, or they are not such as it can use.
    """
    with _lock:
        return _load(name, device, weights)


@lru_cache(maxsize=8)
def _load(name: str, device: torch.device, weights: str | None) -> Codec:
    try:
        return model_class(name)(device, weights)
    except (KeyError, RuntimeError) as error:  # tensors are missing, or of other shapes
        which = f" {weights}" if weights else ""
        raise ModelError(f"model {name!r} can't use its weights{which}: {error}") from error
