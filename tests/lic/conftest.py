"""Small pictures that every test can afford."""

import numpy as np
import pytest


def natural(height: int, width: int, channels: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Something photograph-like: smooth shapes, an edge, a little noise; (H, W, C), or (H, W) for one channel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 32
    planes = []
    for _ in range(channels):
        a, b, c = rng.uniform(0.3, 2, 3)
        plane = np.sin(a * x + c) * np.cos(b * y) + (x * a > y + 1) * 0.4 + rng.normal(0, 0.02, (height, width))
        planes.append((plane - plane.min()) / max(np.ptp(plane), 1e-9))
    pixels = (np.stack(planes, 2) * np.iinfo(dtype).max).astype(dtype)
    return pixels[..., 0] if channels == 1 else pixels


def sunset() -> np.ndarray:
    """A picture whose details are nearly of one colour, far from grey: (H, W, 3) uint8."""
    brightness = natural(64, 88, 1) * 0.7 + np.random.default_rng(0).uniform(0, 70, (64, 88))
    colours = np.outer(brightness.ravel(), [0.9, 0.35, 0.05]) + natural(64, 88, 3, seed=1).reshape(-1, 3) * 0.05
    return colours.reshape(64, 88, 3).astype(np.uint8)


def screenshot(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Areas of one colour, and what looks like text: (H, W, C)."""
    rng = np.random.default_rng(0)
    letters = rng.integers(0, 2, (7, 9, 6, channels)) * 200 + 17
    pixels = np.full((120, 160, channels), 240)
    for row in range(10, 110, 14):
        for column in range(10, 150, 8):
            pixels[row : row + 9, column : column + 6] = letters[rng.integers(7)]
    return pixels.astype(dtype) * (257 if dtype == np.uint16 else 1)


def chart(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Few common colours and many rare ones, as smooth curves have: (H, W, C)."""
    pixels = screenshot(channels, dtype)
    for column in range(5, 155):
        row = int(60 + 40 * np.sin(column / 23))
        pixels[row, column] = (
            np.arange(column, column + 7 * channels, 7) * np.iinfo(dtype).max // 255 % np.iinfo(dtype).max
        )
        pixels[row + 1, column] = pixels[row, column] // 3 * 2 + column // 2
    return pixels


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return natural(96, 128, 3)
