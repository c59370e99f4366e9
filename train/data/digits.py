"""scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels, embedded."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from train.data.augment import Augmentation
from train.data.registry import ImageDataset, Preprocessing, Split

TEST_IMAGES = 360


def load() -> ImageDataset:
    """Loads the digits: 1,437 to train on and 360 to test on, always the same.

    The split is stratified: each digit has its share of both.
    """
    images, labels = load_digits(return_X_y=True)
    # From 17 gray levels to the range of other images.
    images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        labels.astype(np.int32),
        test_size=TEST_IMAGES,
        stratify=labels,
        random_state=0,
    )
    return ImageDataset(
        name="digits",
        train=Split(train_images, train_labels),
        test=Split(test_images, test_labels),
        class_names=tuple("0123456789"),
        preprocessing=Preprocessing(
            mean=(float(np.mean(train_images / 255)),),
            std=(float(np.std(train_images / 255)),),
            # A digit moved by a pixel is still that digit; mirrored it may be none.
            augmentation=Augmentation(padding=1),
        ),
    )
