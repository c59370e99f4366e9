"""Encoded images as arrays."""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Of an image, checked before it is decoded: some 0.8 GB of memory while it is. Pillow
# refuses twice as many, and warns from here on.
MOST_PIXELS = 89_478_485
# What Pillow raises for files that are no images, cut short or absurdly large.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def image(encoded: bytes) -> Image.Image:
    """Decodes an image, whatever its colors, to RGB, upright by its EXIF data.

    Raises:
        one of `UNDECODABLE`: if it is none.
    """
    with warnings.catch_warnings():
        # Odd metadata and transparent palettes do not keep pixels from being read.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise Image.DecompressionBombError(
                    f"{opened.width} x {opened.height} pixels are more than the "
                    f"{MOST_PIXELS:,} that are decoded"
                )
            opened.load()
            # What is wrong with metadata does not keep pixels from being read.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(opened, in_place=True)
            if opened.mode.startswith(("I", "F")):
                # Pillow would cut these off at 255, not scale them.
                return _eight_bits(opened).convert("RGB")
            return opened.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray values of more than eight bits, scaled to eight."""
    pixels = np.asarray(image)
    # Pillow reads 16 bits as I too; nothing tells which range other values have.
    most = 1 if image.mode == "F" else 65535
    if not (pixels.min() >= 0 and pixels.max() <= most):
        raise ValueError(f"gray values of mode {image.mode} are not from 0 to {most}")
    scaled = np.round(pixels.astype(np.float32) * (255 / most))
    return Image.fromarray(scaled.astype(np.uint8))


def rgb(encoded: bytes) -> np.ndarray:
    """Decodes an image to an array, uint8 of shape (height, width, 3).

    Raises:
        one of `UNDECODABLE`: if it is none.
    """
    return np.asarray(image(encoded))
