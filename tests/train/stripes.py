"""A dataset so small and so easy that a test can train on it."""

import numpy as np

from train.data.images.augment import Augmentation
from train.data.types import ImageDataset, Preprocessing, Split


def stripes() -> ImageDataset:
    """48 training and 20 test images of 8x8 pixels in 3 clearly different classes."""

    def split(rng, size):
        labels = np.arange(size, dtype=np.int32) % 3
        images = rng.integers(0, 60, (size, 8, 8, 1))
        images[np.arange(size), 2 * labels, :, 0] += 190
        return Split(images.astype(np.uint8), labels)

    rng = np.random.default_rng(0)
    return ImageDataset(
        name="stripes",
        train=split(rng, 48),
        test=split(rng, 20),
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(
            (0.3,), (0.25,), Augmentation(padding=1, flip=True)
        ),
    )
