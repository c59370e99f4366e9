"""Random crops and flips, and normalization, on the device and per sample."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Augmentation(NamedTuple):
    """Parameters of the augmentation: padding, random cropping and flipping."""

    padding: int = 0  # Pixels on each side.
    flip: bool = False  # Left to right, with probability 0.5.
    reflect: bool = False  # Pad with the image mirrored at its edge, else with zeros.


class Draws(NamedTuple):
    """Random numbers of a batch."""

    offsets: jax.Array  # shape=(batch, 2), dtype=int32, in [0, 2 * padding]
    flips: jax.Array  # shape=(batch,), dtype=bool


def draw(rng: jax.Array, batch_size: int, augmentation: Augmentation) -> Draws:
    """Draws the crop offset and the flip of each sample."""
    offset_rng, flip_rng = jax.random.split(rng)
    offsets = jax.random.randint(
        offset_rng, (batch_size, 2), 0, 2 * augmentation.padding + 1, jnp.int32
    )
    flips = jax.random.bernoulli(flip_rng, 0.5 * augmentation.flip, (batch_size,))
    return Draws(offsets, flips)


def take_augmented(
    images: jax.Array, indices: jax.Array, draws: Draws, augmentation: Augmentation
) -> jax.Array:
    """Takes samples, each padded, cropped and possibly flipped.

    This is a single gather from the whole dataset, which makes no padded copy of the
    batch. On a CPU, it is five times as fast as padding and slicing.

    Args:
        images: all images, of shape (samples, height, width, channels).
        indices: indices of the samples, of shape (batch,).
        draws: offset (padding, padding) without a flip leaves a sample unchanged.
        augmentation: the one given to `draw`.

    Returns:
        Images of shape (batch, height, width, channels), in the dtype of `images`.
    """
    _, height, width, _ = images.shape
    padding = augmentation.padding
    rows = jnp.arange(height)[None, :] + draws.offsets[:, :1] - padding
    columns = jnp.arange(width)[None, :]
    columns = jnp.where(draws.flips[:, None], width - 1 - columns, columns)
    columns = columns + draws.offsets[:, 1:] - padding
    if augmentation.reflect:
        # Mirrored at the border rows: row -1 is row 1, row `height` is height - 2.
        rows = height - 1 - jnp.abs(height - 1 - jnp.abs(rows))
        columns = width - 1 - jnp.abs(width - 1 - jnp.abs(columns))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & (
        (columns >= 0) & (columns < width)
    )[:, None, :]
    taken = images[
        indices[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ]
    return jnp.where(inside[..., None], taken, jnp.zeros((), images.dtype))


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Scales uint8 images to [0, 1] and standardizes each channel."""
    shape = (1,) * (images.ndim - 1) + (len(mean),)
    # One multiplication and one addition per pixel.
    scale = 1 / (255 * jnp.asarray(std)).reshape(shape)
    shift = -(jnp.asarray(mean) / jnp.asarray(std)).reshape(shape)
    return images.astype(scale.dtype) * scale + shift
