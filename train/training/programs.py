"""Programs of training steps: many steps on data on the device, or one on a batch."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from train.data import augment
from train.data.types import Preprocessing
from train.training.state import LoopState, TrainState

TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
# Optional entry of `metric_sums`: number of steps of the epoch after which the loss and
# all parameters were finite.
FINITE_STEPS = "finite_steps"


class Batching(NamedTuple):
    """Batch size over all devices; samples that do not fill a batch are dropped."""

    batch_size: int
    steps_per_epoch: int


def zero_metric_sums(extra_metrics: Iterable[str] = ()) -> dict[str, jax.Array]:
    """Returns the metric sums at the start of an epoch.

    Args:
        extra_metrics: names of the metrics of `train_step` besides loss and accuracy.
    """
    return {name: jnp.zeros(()) for name in ("loss", "top1", *extra_metrics)}


def shuffle(rng: jax.Array, epoch: jax.Array | int, num_samples: int) -> jax.Array:
    """Returns the order of the samples in an epoch, given the run's key."""
    return jax.random.permutation(_epoch_rng(rng, epoch), num_samples)


def train_chunk(
    state: TrainState,
    metric_sums: dict[str, jax.Array],
    order: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    rng: jax.Array,
    *,
    step_fn: TrainStep,
    num_steps: int,
    batching: Batching,
    preprocessing: Preprocessing,
    local_shard: Callable[[Any], Any] = lambda tree: tree,
) -> LoopState:
    """Runs `num_steps` training steps within the current epoch.

    An epoch visits the samples in random order, each at most once. Samples that do not
    fill a batch are dropped, different ones in each epoch.

    Args:
        state: the training state. Its step determines the position in the epoch.
        metric_sums: sums over the steps of this epoch so far.
        order: order of this epoch, from `shuffle`.
        images: all training images, uint8, replicated.
        labels: their labels.
        rng: key of the run.
        step_fn: `train_step` with its options bound.
        num_steps: number of steps, which must not exceed the rest of the epoch.
        batching: batch size and steps per epoch.
        preprocessing: parameters of augmentation and normalization.
        local_shard: takes a device's shard of a batch, see `train.training.parallel`.

    Returns:
        The new state and sums.
    """
    batch_size, steps_per_epoch = batching
    metric_sums = _of_this_epoch(metric_sums, state.step, steps_per_epoch)

    def body(loop_state: LoopState) -> LoopState:
        step = loop_state.state.step
        first = (step % steps_per_epoch) * batch_size
        indices = jax.lax.dynamic_slice_in_dim(order, first, batch_size)
        augment_rng, dropout_rng = jax.random.split(_step_rng(rng, step))
        draws = augment.draw(augment_rng, batch_size, preprocessing.augmentation)
        # Drawn for the global batch before sharding, so that images and their
        # augmentation do not depend on the number of devices.
        indices, draws = local_shard((indices, draws))
        taken = augment.take_augmented(
            images, indices, draws, preprocessing.augmentation
        )
        batch = taken, labels[indices]
        return _advance(loop_state, batch, dropout_rng, step_fn, preprocessing)

    loop_state = LoopState(state, metric_sums)
    if loops_are_fast():
        return jax.lax.scan(
            lambda loop_state, _: (body(loop_state), None), loop_state, length=num_steps
        )[0]
    for _ in range(num_steps):
        loop_state = body(loop_state)
    return loop_state


def train_batch(
    state: TrainState,
    metric_sums: dict[str, jax.Array],
    rng: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    step_fn: TrainStep,
    steps_per_epoch: int,
    preprocessing: Preprocessing,
) -> LoopState:
    """Runs one training step on a batch that is already cropped and flipped.

    Args:
        state: the training state. Its step determines the position in the epoch.
        metric_sums: sums over the steps of this epoch so far.
        rng: key of the run.
        images: images of the batch, uint8; within a mapped axis, this device's shard.
        labels: their labels, of shape (batch,).
        step_fn: `train_step` with its options bound.
        steps_per_epoch: number of steps in an epoch.
        preprocessing: parameters of the normalization.

    Returns:
        The new state and sums.
    """
    _, dropout_rng = jax.random.split(_step_rng(rng, state.step))
    metric_sums = _of_this_epoch(metric_sums, state.step, steps_per_epoch)
    return _advance(
        LoopState(state, metric_sums),
        (images, labels),
        dropout_rng,
        step_fn,
        preprocessing,
    )


def _of_this_epoch(
    metric_sums: dict[str, jax.Array], step: jax.Array | int, steps_per_epoch: int
) -> dict[str, jax.Array]:
    """Resets the sums before the first step of an epoch."""
    starts_epoch = step % steps_per_epoch == 0
    return jax.tree.map(
        lambda total: jnp.where(starts_epoch, jnp.zeros_like(total), total), metric_sums
    )


def _advance(
    loop_state: LoopState,
    batch: tuple[jax.Array, jax.Array],
    dropout_rng: jax.Array,
    step_fn: TrainStep,
    preprocessing: Preprocessing,
) -> LoopState:
    """Runs a step on uint8 images and their labels."""
    state, metric_sums = loop_state
    images, labels = batch
    inputs = augment.normalize(images, preprocessing.mean, preprocessing.std)
    state, metrics = step_fn(state, (inputs, labels), dropout_rng)
    sums = {
        name: metric_sums[name] + metrics[name]
        for name in metric_sums
        if name in metrics
    }
    if FINITE_STEPS in metric_sums:
        # Non-finite values persist in sums and parameters, so the finite steps are a
        # prefix of the epoch.
        finite = jnp.isfinite(sums["loss"])
        for weight in jax.tree.leaves(state.params):
            finite &= jnp.isfinite(weight).all()
        sums[FINITE_STEPS] = metric_sums[FINITE_STEPS] + finite.astype(jnp.int32)
    return LoopState(state, sums)


def loops_are_fast() -> bool:
    """Returns whether steps in a compiled loop are as fast as separate calls.

    On CPUs, XLA compiles the gradient of a convolution inside a loop to code about
    twenty times slower than outside (https://github.com/jax-ml/jax/issues/12868).
    """
    return jax.default_backend() != "cpu"


def default_chunk_steps() -> int:
    """Returns the default maximum number of steps per chunk, to keep a device busy.

    It is 1 without loops, where every step of a chunk would be compiled separately.
    """
    return 50 if loops_are_fast() else 1


def _epoch_rng(rng: jax.Array, epoch: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(rng, 0), epoch)


def _step_rng(rng: jax.Array, step: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(rng, 1), step)


def chunk_lengths(steps_per_epoch: int, most: int) -> list[int]:
    """Divides an epoch into chunks of at most `most` steps.

    Each length is compiled separately. Chunks are equal if a divisor of the epoch is
    close to `most`; otherwise the last one is shorter.
    """
    most = min(most, steps_per_epoch)
    for length in range(most, most // 2, -1):
        if steps_per_epoch % length == 0:
            return [length] * (steps_per_epoch // length)
    whole, rest = divmod(steps_per_epoch, most)
    return [most] * whole + [rest] * (rest > 0)
