"""make demo: one photograph as .lic, and as JPEG, WebP and AVIF of the same size, in numbers and side by side."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lic.evaluation.metrics import ms_ssim, psnr

SOURCE = Path(__file__).parent / "kodim23.png"
PEERS = {
    "JPEG": {"format": "JPEG", "optimize": True, "progressive": True},
    "WebP": {"format": "WEBP", "method": 6},
    "AVIF": {"format": "AVIF", "subsampling": "4:4:4", "speed": 6},
}
CROP = (300, 60, 620, 300)


def main(quality: float = 40, folder: Path = Path("demo")) -> None:
    folder.mkdir(exist_ok=True)
    original = Image.open(SOURCE).convert("RGB")
    path = folder / "parrots.lic"
    original.save(path, quality=quality)  # Pillow, as any script would
    size = path.stat().st_size
    opened = Image.open(path)
    if not np.array_equal(np.asarray(opened), iio.imread(path)):  # imageio, as any script would
        sys.exit("Pillow and imageio opened different pixels")
    pictures = {"original": (original, SOURCE.stat().st_size), ".lic": (opened, size)}
    for name, options in PEERS.items():
        pictures[name] = closest(original, size, options)

    reference = np.asarray(original)
    print(
        f"{SOURCE.name}, {original.width}×{original.height}, .lic at quality {quality:g} against others of its size\n"
    )
    print(f"{'':10}{'bytes':>9}{'bpp':>8}{'PSNR':>9}{'MS-SSIM':>9}")
    for name, (picture, count) in list(pictures.items())[1:]:
        pixels = np.asarray(picture)
        bits_per_pixel = 8 * count / (original.width * original.height)
        similarity = ms_ssim(reference, pixels)
        print(f"{name:10}{count:9}{bits_per_pixel:8.3f}{psnr(reference, pixels):6.2f} dB{similarity:9.4f}")
    side_by_side(pictures, folder / "side-by-side.png")
    print(f"\nwritten: {path}, {folder / 'side-by-side.png'}")


def closest(original: Image.Image, size: int, options: dict) -> tuple[Image.Image, int]:
    """The picture at the quality whose file size is closest."""
    tries = []
    low, high = 0, 100
    while low <= high:
        quality = (low + high) // 2
        file = io.BytesIO()
        original.save(file, quality=quality, **options)
        tries.append((abs(file.tell() - size), file))
        low, high = (quality + 1, high) if file.tell() < size else (low, quality - 1)
    file = min(tries, key=lambda t: t[0])[1]
    return Image.open(file).convert("RGB"), len(file.getvalue())


def side_by_side(pictures: dict[str, tuple[Image.Image, int]], path: Path) -> None:
    """A crop of each, enlarged, with its name and size."""
    font = ImageFont.load_default(22)
    width, height = 2 * (CROP[2] - CROP[0]), 2 * (CROP[3] - CROP[1])
    sheet = Image.new("RGB", (3 * width, 2 * (height + 36)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, (picture, size)) in enumerate(pictures.items()):
        x, y = i % 3 * width, i // 3 * (height + 36)
        sheet.paste(picture.convert("RGB").crop(CROP).resize((width, height), Image.Resampling.NEAREST), (x, y + 36))
        draw.text((x + 8, y + 4), f"{name}, {size:,} bytes", fill="black", font=font)
    sheet.save(path)


if __name__ == "__main__":
    main()
