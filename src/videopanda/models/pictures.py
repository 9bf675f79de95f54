"""Pictures as 8-bit pixels: upright, without transparency. Copied into exported folders; needs only Pillow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255)


def flatten_alpha(rgba: np.ndarray, background: Sequence[int] = WHITE) -> np.ndarray:
    """Lay uint8 pixels (..., 4) over a background color; uint8 (..., 3)."""
    alpha = rgba[..., 3:].astype(np.uint16)
    under = np.array(background, np.uint16) * (255 - alpha)
    return ((rgba[..., :3] * alpha + under + 127) // 255).astype(np.uint8)


def to_pixels(image: Image.Image, background: Sequence[int] = WHITE) -> np.ndarray:
    """The pixels of a PIL image, uint8 (H, W, 3), turned upright as its EXIF data says.

    16 bits are scaled to 8. Transparent pixels are blended over `background`.

    Raises:
        ValueError: the pixels are numbers of an unknown range (floating point, or more than 16 bits).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("a picture of floating-point numbers, whose range is unknown: convert it to 8 bits")
    if image.mode.startswith("I"):  # Pillow would clip 16 bits instead of scaling them
        values: Any = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("a picture of more than 16 bits, whose range is unknown: convert it to 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return flatten_alpha(np.asarray(image.convert("RGBA")), background)
    return np.asarray(image.convert("RGB"))
