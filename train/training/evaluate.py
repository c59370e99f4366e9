"""Loss and accuracy over a whole split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.data import augment
from train.data.registry import Preprocessing
from train.training.state import TrainState
from train.training.step import cross_entropy


def evaluate(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    axis_name: str | None = None,
    local_shard: Callable[[Any], Any] = lambda tree: tree,
) -> dict[str, jax.Array]:
    """Evaluates on every sample once, in one program.

    Args:
        state: parameters and statistics.
        images: all images of the split, uint8, on every device.
        labels: their labels.
        batch_size: over all devices; what the last batch lacks is filled up and masked.
        preprocessing: for its normalization.
        axis_name: the mapped axis of the devices that share each batch.
        local_shard: takes a device's shard of a batch, see `train.training.parallel`.

    Returns:
        Means over the samples: "loss", "top1" and "top5" accuracy (of as many classes
        as there are, if fewer than five).
    """
    num_samples = labels.shape[0]
    num_batches = -(-num_samples // batch_size)

    def body(
        sums: dict[str, jax.Array], batch: jax.Array
    ) -> tuple[dict[str, jax.Array], None]:
        indices = batch * batch_size + jnp.arange(batch_size)
        indices = local_shard(indices)
        valid = indices < num_samples
        indices = jnp.minimum(indices, num_samples - 1)
        inputs = augment.normalize(
            images[indices], preprocessing.mean, preprocessing.std
        )
        return _add(sums, _scores(state, inputs, labels[indices], valid)), None

    sums, _ = jax.lax.scan(body, zero_sums(), jnp.arange(num_batches))
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return {name: total / num_samples for name, total in sums.items()}


def zero_sums() -> dict[str, jax.Array]:
    """The sums of scores over no sample."""
    return {name: jnp.zeros(()) for name in ("loss", "top1", "top5")}


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
    """Adds the scores of one batch to those before it.

    Args:
        state: parameters and statistics.
        sums: over the samples so far, from `zero_sums`.
        images: of the batch, uint8; inside a mapped axis, this device's share.
        labels: theirs.
        valid: of shape (batch,), bool: False where a sample fills up the batch.
        preprocessing: for its normalization.
        axis_name: the mapped axis of the devices that share the batch.

    Returns:
        Sums over the samples, by the names of `evaluate`'s means.
    """
    inputs = augment.normalize(images, preprocessing.mean, preprocessing.std)
    scores = _scores(state, inputs, labels, valid)
    if axis_name is not None:
        scores = jax.lax.psum(scores, axis_name)
    return _add(sums, scores)


def _scores(
    state: TrainState, inputs: jax.Array, labels: jax.Array, valid: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the samples of a batch that count."""
    logits = state.apply_fn(
        {"params": state.params, "batch_stats": state.batch_stats}, inputs, train=False
    )
    _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = top5 == labels[:, None]
    scores = {
        "loss": cross_entropy(logits, labels),
        "top1": hits[:, 0],
        "top5": hits.any(-1),
    }
    return {name: jnp.sum(jnp.where(valid, score, 0)) for name, score in scores.items()}


def _add(
    sums: dict[str, jax.Array], scores: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    return {name: sums[name] + scores[name] for name in sums}
