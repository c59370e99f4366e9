"""Training and evaluation on datasets that fit in device memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.data.images import augment
from train.data.types import ImageDataset, Preprocessing
from train.training import chunk
from train.training.evaluate import evaluate
from train.training.parallel import Devices, Program
from train.training.state import LoopState, TrainState
from train.training.step import TrainStep, advance, of_this_epoch, step_rngs

_EVALUATION_BATCH = 1000


class InMemoryTrainer:
    """Training on a dataset that fits in device memory.

    Args:
        dataset: the dataset, which is copied to the devices.
        devices: strategy for the devices.
        make_step: makes the train step from the argument `captures` of
            `train.training.step.step_of`.
        period: see `Optimizer.capture_every`.
        batch_size: batch size over all devices.
        steps_per_epoch: steps per epoch; samples that do not fill a batch are dropped.
        rng: key of the run.
        learning_rate: the initial learning rate of the run.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        devices: Devices,
        make_step: Callable[[bool | None], TrainStep],
        period: int,
        batch_size: int,
        steps_per_epoch: int,
        rng: jax.Array,
        learning_rate: jax.Array,
    ):
        self._devices = devices
        self._steps_per_epoch = steps_per_epoch
        self._rng = rng
        self._train = devices.replicate(
            (dataset.train.images, dataset.train.labels, rng, learning_rate)
        )
        self._num_samples = dataset.num_train
        self._order = functools.lru_cache(maxsize=1)(self._shuffle)
        self._number = functools.cache(self._replicated_number)
        self._period = period
        self._chunk_program = functools.cache(
            lambda pattern: devices.compile(
                functools.partial(
                    train_chunk,
                    pattern=pattern,
                    make_step=make_step,
                    batch_size=batch_size,
                    steps_per_epoch=steps_per_epoch,
                    preprocessing=dataset.preprocessing,
                    local_shard=devices.local_shard,
                ),
                donate_state=True,
            )
        )

    @property
    def default_chunk_steps(self) -> int:
        """Default maximum number of steps in a chunk, enough to keep a device busy."""
        # Without loops every step of a chunk would be compiled separately.
        return 50 if loops_are_fast() else 1

    def train_chunk(
        self, loop_state: LoopState, step: int, num_steps: int
    ) -> LoopState:
        """See `Experiment.train_chunk`."""
        order = self._order(step // self._steps_per_epoch)
        for pattern, times in chunk.calls(
            step, num_steps, self._period, loops_are_fast()
        ):
            program: Program = self._chunk_program(pattern)
            arrays = (*self._train, self._number(times))
            loop_state = program(
                loop_state.state, loop_state.metric_sums, order, *arrays
            )
        return loop_state

    def close(self) -> None:
        """Nothing to close."""

    def _replicated_number(self, value: int) -> jax.Array:
        with jax.transfer_guard("allow"):  # Each is moved to the devices only once.
            return self._devices.replicate(jnp.asarray(value, jnp.int32))

    def _shuffle(self, number: int) -> jax.Array:
        """Returns the order of the training images in an epoch, counted from 0."""
        return self._devices.replicate(shuffle(self._rng, number, self._num_samples))


class InMemoryEvaluator:
    """Evaluation on test images that fit on a device.

    Args:
        dataset: the data; its test images are put on the devices.
        devices: where the program runs.
        confusion: count confusions of classes too.
    """

    def __init__(self, dataset: ImageDataset, devices: Devices, confusion: bool):
        self._test = devices.replicate(tuple(dataset.test))
        program = functools.partial(
            evaluate,
            batch_size=devices.round_up_batch(min(_EVALUATION_BATCH, dataset.num_test)),
            preprocessing=dataset.preprocessing,
            axis_name=devices.axis_name,
            local_shard=devices.local_shard,
            num_classes=len(dataset.class_names) if confusion else None,
        )
        self._program = devices.compile(program)

    def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
        """See `Experiment.evaluate`."""
        return self._program(state, *self._test)


# One program for all runs of a process: a series trains many.
@functools.partial(jax.jit, static_argnames="num_samples")
def shuffle(rng: jax.Array, epoch: jax.Array | int, num_samples: int) -> jax.Array:
    """Returns the order of the samples in an epoch, given the run's key."""
    epoch_rng = jax.random.fold_in(jax.random.fold_in(rng, 0), epoch)
    return jax.random.permutation(epoch_rng, num_samples)


def train_chunk(
    state: TrainState,
    metric_sums: dict[str, jax.Array],
    order: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    rng: jax.Array,
    learning_rate: jax.Array,
    times: jax.Array,
    *,
    pattern: chunk.Pattern,
    make_step: Callable[[bool | None], TrainStep],
    batch_size: int,
    steps_per_epoch: int,
    preprocessing: Preprocessing,
    local_shard: Callable[[Any], Any] = lambda tree: tree,
) -> LoopState:
    """Runs training steps within the current epoch, which must have as many left.

    An epoch visits the samples in random order, each at most once. Samples that do not
    fill a batch are dropped, different ones in each epoch.

    Args:
        state: the training state. Its step determines the position in the epoch.
        metric_sums: sums over the steps of this epoch so far.
        order: order of this epoch, from `shuffle`.
        images: all training images, uint8, replicated.
        labels: their labels.
        rng: key of the run.
        learning_rate: the initial learning rate of the run.
        times: how often the steps of the pattern are repeated, if it repeats them.
        pattern: the steps.
        make_step: makes the train step from the argument `captures` of
            `train.training.step.step_of`.
        batch_size: batch size over all devices.
        steps_per_epoch: number of steps in an epoch.
        preprocessing: parameters of augmentation and normalization.
        local_shard: takes a device's shard of a batch, see `train.training.parallel`.

    Returns:
        The new state and sums.
    """

    def body(step_fn: TrainStep, loop_state: LoopState) -> LoopState:
        step = loop_state.state.step
        first = (step % steps_per_epoch) * batch_size
        indices = jax.lax.dynamic_slice_in_dim(order, first, batch_size)
        augment_rng, dropout_rng = step_rngs(rng, step)
        draws = augment.draw(augment_rng, batch_size, preprocessing.augmentation)
        # Drawn for the global batch before sharding, so that images and their
        # augmentation do not depend on the number of devices.
        indices, draws = local_shard((indices, draws))
        taken = augment.take_augmented(
            images, indices, draws, preprocessing.augmentation
        )
        batch = taken, labels[indices]
        return advance(
            loop_state, batch, dropout_rng, learning_rate, step_fn, preprocessing
        )

    metric_sums = of_this_epoch(metric_sums, state.step, steps_per_epoch)
    return chunk.run(
        pattern,
        times,
        lambda captures: functools.partial(body, make_step(captures)),
        LoopState(state, metric_sums),
        loops_are_fast(),
    )


def loops_are_fast() -> bool:
    """Returns whether steps in a compiled loop are as fast as separate calls.

    On CPUs, XLA compiles the gradient of a convolution inside a loop to code about
    twenty times slower than outside (https://github.com/jax-ml/jax/issues/12868).
    """
    return jax.default_backend() != "cpu"
