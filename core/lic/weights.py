"""Weights by name and hash: NAME.safetensors is a model's newest set, NAME-HASH.safetensors an older one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from lic.errors import ModelError

if TYPE_CHECKING:
    import torch


def load(folder: Path, name: str, weights: str | None = None) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors and the hash (16 hexadecimal digits) of the set asked for, or of the newest.

    Raises ModelError where there is none.
    """
    from safetensors.torch import load as from_bytes

    found = []
    for path in (folder / f"{name}.safetensors", *sorted(folder.glob(f"{name}-*.safetensors"))):
        if path.exists():
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()[:16]
            if weights in (None, digest):
                return from_bytes(data), digest
            found.append(digest)
    if weights is None:
        raise ModelError(f"model {name!r} has no weights in {folder}")
    raise ModelError(
        f"the file was made with weights {weights} of model {name!r}; installed are {', '.join(found) or 'none'}: "
        "install the version of the model that has them"
    )
