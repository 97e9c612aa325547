"""The .lic format for Pillow.

Importing this package registers the format. An installed lic-codec does so by itself (see `lic_startup`);
where that is turned off, or .pth files aren't read, `import pillow_lic` is the way by hand.

The plugin itself is imported with the first .lic picture: a program that has none doesn't pay for it.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pillow_lic.plugin import LicImageFile


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(b"\x89LIC")


def _open(file: IO[bytes], filename: str | bytes) -> LicImageFile:
    from pillow_lic.plugin import LicImageFile

    return LicImageFile(file, filename)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    from pillow_lic.plugin import save

    save(image, file)


def _save_all(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    from pillow_lic.plugin import save_all

    save_all(image, file)


Image.register_open("LIC", _open, _accept)
Image.register_save("LIC", _save)
Image.register_save_all("LIC", _save_all)
Image.register_extension("LIC", ".lic")
Image.register_mime("LIC", "image/x-lic")
