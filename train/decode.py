"""Encoded images as arrays."""

import io
import warnings

import numpy as np
from PIL import Image

# What Pillow raises for files that are no images, cut short or absurdly large.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def rgb(encoded: bytes) -> np.ndarray:
    """Decodes an image, whatever its colors, to uint8 of (height, width, 3).

    Raises:
        one of `UNDECODABLE`: if it is none.
    """
    with warnings.catch_warnings():
        # Odd metadata and transparent palettes do not keep pixels from being read.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
