"""Cropping and resizing of images; for ImageNet, as in torchvision.

This runs on the host, image by image, because the images differ in size. Worker
processes import this module, so it does not import JAX.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

_AREA = (0.08, 1.0)  # Area of a crop relative to the image's.
_ASPECT = (3 / 4, 4 / 3)  # Width / height of a crop.
_ATTEMPTS = 10


class Crops(NamedTuple):
    """Crops images to the input size of a network."""

    side: int  # Height and width of a crop, in pixels.
    shorter_side: int  # Of a test image, before the center crop.

    def train(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Returns a random crop, resized, and flipped with probability 0.5.

        Args:
            image: image in RGB.
            rng: random generator of this image.

        Returns:
            Pixels, of shape (side, side, 3), dtype uint8.
        """
        box = draw_box(image.width, image.height, rng)
        # `resize(box=...)` would blend in pixels from outside of the box.
        part = image.crop(box).resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.asarray(part)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    def test(self, image: Image.Image) -> np.ndarray:
        """Resizes the shorter side to `shorter_side` and returns the center crop.

        Args:
            image: image in RGB.

        Returns:
            Pixels, of shape (side, side, 3), dtype uint8.
        """
        return resize_and_crop(image, (self.side, self.side), self.shorter_side)


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], shorter_side: int | None = None
) -> np.ndarray:
    """Resizes an image to cover a size, keeping its aspect ratio, and crops its center.

    Args:
        image: image of any size and mode.
        size: (height, width) of the result.
        shorter_side: shorter side of the resized image; None for the smallest that
            covers `size`.

    Returns:
        Pixels, of shape (height, width, ...), dtype uint8.
    """
    height, width = size
    if shorter_side is not None:
        to, of = shorter_side, min(image.size)
    elif width * image.height >= height * image.width:
        to, of = width, image.width
    else:
        to, of = height, image.height
    resized = image.resize(
        (image.width * to // of, image.height * to // of), Image.Resampling.BILINEAR
    )
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def draw_box(
    width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the box of a random crop.

    Its area is uniform from 0.08 to 1 of the image's, its aspect ratio log-uniform from
    3/4 to 4/3, its position uniform. After ten draws that do not fit in the image, it
    is the largest centered box of an allowed aspect ratio.

    Args:
        width: width of the image.
        height: height of the image.
        rng: random generator.

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
