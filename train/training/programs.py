"""Steps as programs: many on data that are on the device, or one on a batch given."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from train.data import augment
from train.data.registry import Preprocessing
from train.training.state import LoopState, TrainState

TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
# Among the metric_sums, if it is there: how many steps of the epoch left all finite.
FINITE_STEPS = "finite_steps"


class Batching(NamedTuple):
    """How many samples a step takes, over all devices; what is left over waits."""

    batch_size: int
    steps_per_epoch: int


def zero_metric_sums(extra_metrics: Iterable[str] = ()) -> dict[str, jax.Array]:
    """The sums over the steps of an epoch, at its start.

    Args:
        extra_metrics: names of what `train_step` measures beside loss and accuracy.
    """
    return {name: jnp.zeros(()) for name in ("loss", "top1", *extra_metrics)}


def shuffle(rng: jax.Array, epoch: jax.Array | int, num_samples: int) -> jax.Array:
    """The order of the samples in an epoch, by the run's key."""
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
    """Goes on for some steps of the epoch in which `state` stands.

    An epoch sees the samples in a random order, each at most once; those that fill no
    batch are left out, other ones every epoch.

    Args:
        state: where training stands. Its step says where in the epoch.
        metric_sums: sums over the steps of this epoch so far.
        order: of this epoch, from `shuffle`.
        images: all training images, uint8, on every device.
        labels: their labels.
        rng: the run's key.
        step_fn: `train_step`, with its options bound.
        num_steps: how many steps; they must not pass the end of the epoch.
        batching: batch size and steps of an epoch.
        preprocessing: augmentation and normalization.
        local_shard: takes a device's shard of a batch, see `train.training.parallel`.

    Returns:
        Where training stands then.
    """
    batch_size, steps_per_epoch = batching
    metric_sums = _of_this_epoch(metric_sums, state.step, steps_per_epoch)

    def body(loop_state: LoopState) -> LoopState:
        step = loop_state.state.step
        first = (step % steps_per_epoch) * batch_size
        indices = jax.lax.dynamic_slice_in_dim(order, first, batch_size)
        augment_rng, dropout_rng = jax.random.split(_step_rng(rng, step))
        draws = augment.draw(augment_rng, batch_size, preprocessing.augmentation)
        # Drawn for the whole batch and then shared out: the same images, augmented the
        # same way, on any number of devices.
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
    """Goes on for one step, on a batch that was cropped and flipped before.

    Args:
        state: where training stands. Its step says where in the epoch.
        metric_sums: sums over the steps of this epoch so far.
        rng: the run's key.
        images: of the batch, uint8; inside a mapped axis, this device's share.
        labels: theirs.
        step_fn: `train_step`, with its options bound.
        steps_per_epoch: of the whole data set.
        preprocessing: for its normalization.

    Returns:
        Where training stands then.
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
    """The sums before a step: zeros before the first of an epoch."""
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
    """Takes a step on uint8 images and their labels."""
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
        # What is not finite stays so, in a sum and in a weight: the steps counted are
        # the first ones.
        finite = jnp.isfinite(sums["loss"])
        for weight in jax.tree.leaves(state.params):
            finite &= jnp.isfinite(weight).all()
        sums[FINITE_STEPS] = metric_sums[FINITE_STEPS] + finite.astype(jnp.int32)
    return LoopState(state, sums)


def loops_are_fast() -> bool:
    """Whether steps in a compiled loop are as fast as one after another.

    On a CPU XLA compiles a convolution's gradient inside a loop to code some twenty
    times as slow as outside (https://github.com/jax-ml/jax/issues/12868).
    """
    return jax.default_backend() != "cpu"


def default_chunk_steps() -> int:
    """Most steps in a chunk, unless one is given: enough to keep a device busy.

    Without loops each step would be compiled for itself.
    """
    return 50 if loops_are_fast() else 1


def _epoch_rng(rng: jax.Array, epoch: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(rng, 0), epoch)


def _step_rng(rng: jax.Array, step: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(rng, 1), step)


def chunk_lengths(steps_per_epoch: int, most: int) -> list[int]:
    """Divides an epoch into chunks of at most `most` steps.

    Each length is compiled for once: equal chunks where a divisor is not far below
    `most`, otherwise chunks of `most` and a shorter last one.
    """
    most = min(most, steps_per_epoch)
    for length in range(most, most // 2, -1):
        if steps_per_epoch % length == 0:
            return [length] * (steps_per_epoch // length)
    whole, rest = divmod(steps_per_epoch, most)
    return [most] * whole + [rest] * (rest > 0)
