"""Crops against plain NumPy, and against the geometry torchvision documents."""

import math

import numpy as np
import pytest
from PIL import Image

from train.data.images.crops import Crops, draw_box, resize_and_crop


def picture(width, height):
    """Random pixels, so that an error in one pixel's position or weight shows."""
    rng = np.random.default_rng(width * height)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def weights(size, new_size):
    """Bilinear interpolation that averages when it shrinks: (new_size, size)."""
    scale = size / new_size
    support = max(scale, 1)
    centers = (np.arange(new_size) + 0.5) * scale
    distance = (np.arange(size) + 0.5 - centers[:, None]) / support
    triangle = np.maximum(0, 1 - np.abs(distance))
    return triangle / triangle.sum(axis=1, keepdims=True)


def resized(pixels, width, height):
    """Resizes an image in float64."""
    rows = weights(pixels.shape[0], height)
    columns = weights(pixels.shape[1], width)
    across = np.einsum("jw,hwc->hjc", columns, pixels.astype(float), optimize=True)
    return np.einsum("ih,hjc->ijc", rows, across, optimize=True)


class Scripted:
    """A random generator that returns given numbers."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)
        self.asked = []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.numbers.pop(0)

    def integers(self, end):
        self.asked.append(end)
        return self.numbers.pop(0)

    def random(self):
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        # The shorter side becomes 256; the longer is rounded down.
        (500, 375, (341, 256, 58, 16)),
        (375, 500, (256, 341, 16, 58)),
        (64, 64, (256, 256, 16, 16)),
        (101, 57, (453, 256, 114, 16)),
        (256, 259, (256, 259, 16, 18)),
    ],
)
def test_a_test_image_is_resized_and_cropped_in_the_middle(width, height, box):
    pixels = picture(width, height)
    across, down, left, top = box

    got = Crops(side=224, shorter_side=256).test(Image.fromarray(pixels))

    assert (got.shape, got.dtype) == ((224, 224, 3), np.uint8)
    expected = resized(pixels, across, down)[top : top + 224, left : left + 224]
    # Pillow rounds to bytes between its two passes, and at the end.
    assert np.abs(got - expected).max() <= 1.01


def test_a_training_image_is_a_resized_part_flipped_at_random():
    pixels = picture(90, 70)
    aspect = math.log(1.25)
    draws = 0.5 * 90 * 70 / (90 * 70), aspect, 7, 4
    across, down = round(math.sqrt(3150 * 1.25)), round(math.sqrt(3150 / 1.25))
    assert (across, down) == (63, 50)
    part = pixels[4 : 4 + 50, 7 : 7 + 63]
    expected = resized(part, 32, 32)
    crops = Crops(side=32, shorter_side=40)
    for coin, wanted in ((0.7, expected), (0.3, expected[:, ::-1])):
        rng = Scripted(*draws, coin)
        got = crops.train(Image.fromarray(pixels), rng)
        assert (got.shape, got.dtype) == ((32, 32, 3), np.uint8)
        assert np.abs(got - wanted).max() <= 1.01
        assert rng.asked == [
            (0.08, 1.0),
            pytest.approx((math.log(3 / 4), math.log(4 / 3))),
            90 - 63 + 1,
            70 - 50 + 1,
        ]


def test_a_box_that_does_not_fit_is_drawn_again():
    rng = Scripted(1.0, math.log(4 / 3), 0.25, 0.0, 11, 22)
    assert draw_box(100, 100, rng) == (11, 22, 61, 72)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (500, 30, (230, 0, 270, 30)),  # As wide as 4/3 allows.
        (30, 500, (0, 230, 30, 270)),  # As high as 3/4 allows.
        (100, 90, (0, 0, 100, 90)),  # The whole image.
    ],
)
def test_the_box_is_the_middle_if_no_draw_fits(width, height, box):
    too_large = [2.0, 0.0] * 10
    assert draw_box(width, height, Scripted(*too_large)) == box


def test_boxes_have_uniform_areas_and_aspects_and_reach_the_edges():
    rng = np.random.default_rng(0)
    width, height = 640, 480
    boxes = np.array([draw_box(width, height, rng) for _ in range(3000)])
    left, top, right, bottom = boxes.T
    assert left.min() == 0 and top.min() == 0
    assert right.max() == width and bottom.max() == height
    area = (right - left) * (bottom - top) / (width * height)
    aspect = np.log((right - left) / (bottom - top))
    assert 0.079 < area.min() < 0.09 and area.max() > 0.95
    # Small boxes are seldom redrawn: areas and aspects are uniform there.
    small = area < 0.5
    assert area[small].mean() == pytest.approx((0.08 + 0.5) / 2, abs=0.01)
    assert np.abs(aspect).max() < math.log(4 / 3) + 0.02
    assert aspect[small].mean() == pytest.approx(0, abs=0.01)
    assert aspect[small].std() == pytest.approx(math.log(16 / 9) / 12**0.5, rel=0.05)


@pytest.mark.parametrize("size", [(20, 30), (40, 10), (60, 90), (16, 16)])
def test_an_image_covers_a_size_and_is_not_stretched(size):
    pixels = picture(50, 40)
    found = resize_and_crop(Image.fromarray(pixels), size)
    height, width = size
    scale = max(height / 40, width / 50)
    whole = resized(pixels, int(50 * scale), int(40 * scale))
    top = round((whole.shape[0] - height) / 2)
    left = round((whole.shape[1] - width) / 2)
    expected = whole[top : top + height, left : left + width]
    assert found.shape == (height, width, 3)
    assert np.abs(found - expected).max() < 1


def test_an_image_of_the_same_size_is_not_changed():
    pixels = picture(50, 40)
    np.testing.assert_array_equal(
        resize_and_crop(Image.fromarray(pixels), (40, 50)), pixels
    )
    gray = resize_and_crop(Image.fromarray(pixels).convert("L"), (20, 20))
    assert gray.shape == (20, 20)
