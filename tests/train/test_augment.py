"""Augmentation against plain NumPy, sample by sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.images import augment
from train.data.images.augment import Augmentation, Draws


def crop_and_flip(image, offset, flip, padding, mode):
    """Pads, crops at the offset, then mirrors: one image, in NumPy."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode)
    cropped = padded[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    return cropped[:, ::-1] if flip else cropped


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_every_sample_is_cropped_and_flipped_as_drawn(padding, mode):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 9, 11, 3), dtype=np.uint8)
    indices = rng.integers(0, 7, 40)
    offsets = rng.integers(0, 2 * padding + 1, (40, 2))
    flips = rng.integers(0, 2, 40).astype(bool)

    taken = augment.take_augmented(
        jnp.asarray(images),
        indices,
        Draws(jnp.asarray(offsets), flips),
        Augmentation(padding, flip=True, reflect=mode == "reflect"),
    )

    assert taken.dtype == jnp.uint8
    for number, index in enumerate(indices):
        np.testing.assert_array_equal(
            taken[number],
            crop_and_flip(images[index], offsets[number], flips[number], padding, mode),
        )


def test_draws_cover_every_crop_and_half_of_the_flips():
    draws = augment.draw(jax.random.key(0), 20_000, Augmentation(padding=2, flip=True))

    corners, counts = np.unique(np.asarray(draws.offsets), axis=0, return_counts=True)
    assert corners.tolist() == [[y, x] for y in range(5) for x in range(5)]
    # Binomial counts: six standard deviations around the mean.
    assert np.all(np.abs(counts - 800) < 6 * np.sqrt(800 * 24 / 25))
    assert abs(int(draws.flips.sum()) - 10_000) < 6 * np.sqrt(20_000 / 4)
    # Flips are drawn independently of the offsets.
    left = np.asarray(draws.offsets[:, 1]) == 0
    assert abs(np.asarray(draws.flips)[left].mean() - 0.5) < 0.05


def test_without_augmentation_images_are_unchanged():
    images = jnp.arange(4 * 8 * 8 * 1, dtype=jnp.uint8).reshape(4, 8, 8, 1)
    draws = augment.draw(jax.random.key(0), 4, Augmentation())

    taken = augment.take_augmented(images, jnp.arange(4), draws, Augmentation())

    np.testing.assert_array_equal(taken, images)


def test_normalization_matches_torchvisions():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

    normalized = augment.normalize(jnp.asarray(images), mean, std)

    assert normalized.dtype == jnp.float32
    # Rounding of float32 at values up to 2.8.
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalized, expected, rtol=0, atol=2e-6)
