"""One image file as an array of its pixels, without a loss that nobody asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyroflows._extras import needs_fit_extra

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decode", "to_pixels"]

_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_PNG = b"\x89PNG\r\n\x1a\n"


def decode(file: Path) -> Image:
    """The image of a file, the first of an animation, as Pillow reads it.

    Raises:
        ValueError: Pillow can't read it.
    """
    with needs_fit_extra("images"):
        from PIL import Image, ImageOps
    try:
        with Image.open(file) as image:
            image.load()
            # Cameras store turned photographs as they lie on the sensor.
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def to_pixels(image: Image, file: Path, drop_alpha: bool) -> np.ndarray:
    """The pixels, `(H, W)` or `(H, W, 3)` uint8, or `(H, W)` uint16.

    Raises:
        ValueError: Pixels are transparent, or are of a kind that 8 bits a channel or 16 bits of grey lose.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and _depth(file) == 16):
        pixels = np.asarray(image).astype(np.uint16)
        transparent = image.info.get("transparency")
        _check_opaque(transparent is None or not (pixels == transparent).any(), file, drop_alpha)
        return pixels
    # Pillow keeps 8 of these bits and does not say so.
    if _depth(file) == 16:
        raise ValueError(
            f"expected images of 8 bits, or grey ones of 16, got {file} of 16 bits with colour or "
            "transparency: convert it to 8 bits, or give all images as a uint16 array in an .npz"
        )
    if image.mode not in _GREY + _COLOUR:
        raise ValueError(
            f"expected images of 8 bits, or grey ones of 16, got {file} with Pillow's mode {image.mode!r}: "
            "convert it to RGB or grey of 8 bits"
        )
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        _check_opaque(alpha.getextrema()[0] == 255, file, drop_alpha)
    return np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))


def _check_opaque(opaque: bool, file: Path, drop_alpha: bool) -> None:
    if not (opaque or drop_alpha):
        raise ValueError(
            f"expected opaque images, got {file} with transparent pixels: put it on a background, or "
            "leave its transparency out by drop_alpha (--drop-alpha on the command line)"
        )


def _depth(file: Path) -> int | None:
    """Bits of each channel of a PNG file, which stand in its first chunk."""
    with file.open("rb") as stream:
        start = stream.read(25)
    return start[24] if start.startswith(_PNG) else None
