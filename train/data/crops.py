"""The part of an image a network sees, at its size: as torchvision crops ImageNet.

On the host, image by image, since the images are of any size. Worker processes import
this module: it needs no JAX.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

_AREA = (0.08, 1.0)  # Of a crop, as a share of the image's.
_ASPECT = (3 / 4, 4 / 3)  # Of a crop, width to height.
_ATTEMPTS = 10


class Crops(NamedTuple):
    """How images are cropped."""

    side: int  # What a network sees, in pixels.
    shorter_side: int  # Of a test image, before the middle is cut out.

    def train(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """A random part of an image, resized, and flipped with probability 0.5.

        Args:
            image: in RGB.
            rng: the image's own.

        Returns:
            Pixels, of shape (side, side, 3), dtype uint8.
        """
        box = draw_box(image.width, image.height, rng)
        # Cropped first: a box given to `resize` would mix in pixels from around it.
        part = image.crop(box).resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.asarray(part)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    def test(self, image: Image.Image) -> np.ndarray:
        """The middle of an image whose shorter side was brought to `shorter_side`.

        Args:
            image: in RGB.

        Returns:
            Pixels, of shape (side, side, 3), dtype uint8.
        """
        scale = self.shorter_side, min(image.size)
        width, height = (scale[0] * side // scale[1] for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (round((side - self.side) / 2) for side in (width, height))
        return np.asarray(resized.crop((left, top, left + self.side, top + self.side)))


def draw_box(
    width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws a part of an image.

    Its area is uniform from 0.08 to 1 of the image's, the logarithm of its aspect
    uniform from 3/4 to 4/3, its place uniform. If ten draws do not fit in the image it
    is the middle: as much as the aspects allow.

    Args:
        width: of the image.
        height: of the image.
        rng: random numbers.

    Returns:
        (left, top, right, bottom), within the image.
    """
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left = int(rng.integers(width - across + 1))
            top = int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    across = min(width, round(height * _ASPECT[1]))
    down = min(height, round(width / _ASPECT[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
