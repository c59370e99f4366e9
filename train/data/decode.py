"""Encoded images as arrays."""

import io
import warnings

import numpy as np
from PIL import Image

# What Pillow raises for files that are no images, cut short or absurdly large.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def image(encoded: bytes) -> Image.Image:
    """Decodes an image, whatever its colors, to RGB.

    Raises:
        one of `UNDECODABLE`: if it is none.
    """
    with warnings.catch_warnings():
        # Odd metadata and transparent palettes do not keep pixels from being read.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as opened:
            return opened.convert("RGB")


def rgb(encoded: bytes) -> np.ndarray:
    """Decodes an image to an array, uint8 of shape (height, width, 3).

    Raises:
        one of `UNDECODABLE`: if it is none.
    """
    return np.asarray(image(encoded))
