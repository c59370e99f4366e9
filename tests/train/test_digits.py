"""The embedded dataset."""

import numpy as np
from sklearn.datasets import load_digits

from train.data import digits, registry


def test_the_split_is_fixed_stratified_and_complete():
    dataset = digits.load()
    images, labels = load_digits(return_X_y=True)

    assert dataset.image_shape == (8, 8, 1)
    assert len(dataset.train.labels) == 1437
    assert len(dataset.test.labels) == 360
    shares = np.bincount(dataset.test.labels) / np.bincount(labels)
    assert np.all(np.abs(shares - 360 / 1797) < 0.005)
    together = np.concatenate([dataset.train.images, dataset.test.images])
    assert sorted(np.round(together / (255 / 16)).reshape(-1, 64).tolist()) == sorted(
        images.tolist()
    )
    np.testing.assert_array_equal(dataset.test.images, digits.load().test.images)


def test_normalized_training_pixels_have_mean_0_and_deviation_1():
    dataset = digits.load()
    (mean,), (std,) = dataset.preprocessing.mean, dataset.preprocessing.std
    pixels = (dataset.train.images / 255 - mean) / std
    assert abs(pixels.mean()) < 1e-12
    assert abs(pixels.std() - 1) < 1e-12


def test_loading_by_name_writes_no_cache(tmp_path):
    assert registry.load("digits", tmp_path).name == "digits"
    assert list(tmp_path.iterdir()) == []
