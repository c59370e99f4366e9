"""Decoding of images."""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Checked before decoding, which takes about 0.8 GB for this many. Pillow warns above
# this limit and raises above twice as many.
MOST_PIXELS = 89_478_485
# Raised by Pillow for files that are not images, are truncated, or are too large.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def image(encoded: bytes) -> Image.Image:
    """Decodes an image to RGB and applies its EXIF orientation.

    Raises:
        one of `UNDECODABLE`: if it cannot be decoded.
    """
    with warnings.catch_warnings():
        # Odd metadata and transparent palettes do not prevent decoding.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise Image.DecompressionBombError(
                    f"{opened.width} x {opened.height} pixels exceed the limit "
                    f"of {MOST_PIXELS:,}"
                )
            opened.load()
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(opened, in_place=True)
            if opened.mode.startswith(("I", "F")):
                # Pillow would clip these at 255 instead of scaling them.
                return _eight_bits(opened).convert("RGB")
            return opened.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales gray values of more than eight bits to eight."""
    pixels = np.asarray(image)
    # Assumes 16-bit values in mode I and [0, 1] in mode F; other values are refused.
    most = 1 if image.mode == "F" else 65535
    if not (pixels.min() >= 0 and pixels.max() <= most):
        raise ValueError(f"gray values of mode {image.mode} are not from 0 to {most}")
    scaled = np.round(pixels.astype(np.float32) * (255 / most))
    return Image.fromarray(scaled.astype(np.uint8))


def rgb(encoded: bytes) -> np.ndarray:
    """Decodes an image to an array, uint8 of shape (height, width, 3).

    Raises:
        one of `UNDECODABLE`: if it cannot be decoded.
    """
    return np.asarray(image(encoded))
