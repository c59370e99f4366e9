"""Loss and accuracies on a split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.data.images import augment
from train.data.types import Preprocessing
from train.training.state import TrainState
from train.training.step import cross_entropy

_CONFUSION = "confusion"


def evaluate(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    axis_name: str | None = None,
    local_shard: Callable[[Any], Any] = lambda tree: tree,
    num_classes: int | None = None,
) -> dict[str, jax.Array]:
    """Evaluates every sample once, in a single program.

    Args:
        state: state with parameters and batch statistics.
        images: all images of the split, uint8, replicated.
        labels: their labels.
        batch_size: batch size over all devices; the last batch is padded and masked.
        preprocessing: parameters of the normalization.
        axis_name: mapped axis of the devices, if any.
        local_shard: takes a device's shard of a batch, see `train.training.parallel`.
        num_classes: number of classes, to also count confusions.

    Returns:
        Means over the samples: "loss", "top1" and "top5" accuracy (top-N for N < 5
        classes). With `num_classes`, also "confusion", int32 of shape (num_classes,
        num_classes): the number of samples by label (row) and predicted label (column).
    """
    num_samples = labels.shape[0]
    num_batches = -(-num_samples // batch_size)

    def body(
        sums: dict[str, jax.Array], batch: jax.Array
    ) -> tuple[dict[str, jax.Array], None]:
        indices = local_shard(batch * batch_size + jnp.arange(batch_size))
        valid = indices < num_samples
        indices = jnp.minimum(indices, num_samples - 1)
        samples = images[indices], labels[indices], valid
        return add_batch(state, sums, *samples, preprocessing=preprocessing), None

    sums, _ = jax.lax.scan(body, zero_sums(num_classes), jnp.arange(num_batches))
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return means(sums, num_samples)


def means(sums: dict[str, jax.Array], num_samples: int) -> dict[str, jax.Array]:
    """Returns the result of `evaluate` from the sums over all samples."""
    return {
        name: total if name == _CONFUSION else total / num_samples
        for name, total in sums.items()
    }


def zero_sums(num_classes: int | None = None) -> dict[str, jax.Array]:
    """Returns initial sums for `add_batch`, with `num_classes` also of confusions."""
    sums = {name: jnp.zeros(()) for name in ("loss", "top1", "top5")}
    if num_classes is not None:
        sums[_CONFUSION] = jnp.zeros((num_classes, num_classes), jnp.int32)
    return sums


def add_batch(
    state: TrainState,
    sums: dict[str, jax.Array],
    images: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    *,
    preprocessing: Preprocessing,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Adds the scores of a batch to the sums.

    Args:
        state: state with parameters and batch statistics.
        sums: sums over the samples so far, initially from `zero_sums`.
        images: images of the batch, uint8; within a mapped axis, this device's shard.
        labels: their labels, of shape (batch,).
        valid: bool, of shape (batch,); False for padding.
        preprocessing: parameters of the normalization.
        axis_name: mapped axis of the devices, if any.

    Returns:
        Sums over the samples, with the names of `evaluate`'s means.
    """
    inputs = augment.normalize(images, preprocessing.mean, preprocessing.std)
    logits = state.apply_fn(state.variables, inputs, train=False)
    _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = top5 == labels[:, None]
    scores = {
        "loss": cross_entropy(logits, labels),
        "top1": hits[:, 0],
        "top5": hits.any(-1),
    }
    added = {
        name: jnp.sum(jnp.where(valid, score, 0)) for name, score in scores.items()
    }
    if _CONFUSION in sums:
        none = jnp.zeros_like(sums[_CONFUSION])
        added[_CONFUSION] = none.at[labels, top5[:, 0]].add(valid.astype(jnp.int32))
    if axis_name is not None:
        added = jax.lax.psum(added, axis_name)
    return jax.tree.map(jnp.add, sums, added)
