"""scikit-learn's handwritten digits: 1,797 gray 8x8 images, part of the package."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from train.data.images.augment import Augmentation
from train.data.types import ImageDataset, Preprocessing, Split

TEST_IMAGES = 360


def load() -> ImageDataset:
    """Loads the digits: 1,437 training and 360 test images, always the same.

    The split is stratified by digit.
    """
    images, labels = load_digits(return_X_y=True)
    # Scale 17 gray levels to uint8.
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
            # A digit shifted by a pixel keeps its label; a mirrored one may not.
            augmentation=Augmentation(padding=1),
        ),
    )
