"""Training and evaluation on batches from worker processes that decode images."""

import functools
from collections.abc import Callable

import jax

from train.data import loader as batches
from train.data.types import Preprocessing, StreamedDataset
from train.training import chunk, evaluate
from train.training.parallel import Devices, Program
from train.training.state import LoopState, TrainState
from train.training.step import TrainStep, advance, of_this_epoch, step_rngs


class StreamedTrainer:
    """Training on a dataset that is read on demand.

    Every process reads its own share of each batch. What a batch holds follows from
    the seed and the step alone.

    Args:
        dataset: the dataset.
        devices: strategy for the devices.
        make_step: makes the train step from the argument `captures` of
            `train.training.step.step_of`.
        period: see `Optimizer.capture_every`.
        batch_size: batch size over all devices.
        steps_per_epoch: steps per epoch; samples that do not fill a batch are dropped.
        rng: key of the run.
        learning_rate: the initial learning rate of the run.
        seed: seed of the order, the crops and the flips.
        num_steps: number of steps of the whole run.
        num_workers: number of worker processes; 0 reads and decodes in this process.
    """

    # A program trains on one batch.
    default_chunk_steps = 1

    def __init__(
        self,
        dataset: StreamedDataset,
        devices: Devices,
        make_step: Callable[[bool | None], TrainStep],
        period: int,
        batch_size: int,
        steps_per_epoch: int,
        rng: jax.Array,
        learning_rate: jax.Array,
        *,
        seed: int,
        num_steps: int,
        num_workers: int,
    ):
        self._dataset = dataset
        self._devices = devices
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._seed = seed
        self._num_steps = num_steps
        self._num_workers = num_workers
        self._of_the_run = devices.replicate((rng, learning_rate))
        self._period = period
        self._step_program = functools.cache(
            lambda captures: devices.compile(
                functools.partial(
                    train_batch,
                    step_fn=make_step(captures),
                    steps_per_epoch=steps_per_epoch,
                    preprocessing=dataset.preprocessing,
                ),
                donate_state=True,
                batch_arrays=2,
            )
        )
        self._stream: batches.Stream | None = None
        self._stream_step = 0  # Step of the next batch in the stream.

    def train_chunk(
        self, loop_state: LoopState, step: int, num_steps: int
    ) -> LoopState:
        """See `Experiment.train_chunk`."""
        if self._stream is None or self._stream_step != step:
            self.close()
            self._stream = self._open(step)
            self._stream_step = step
        for _ in range(num_steps):
            batch = self._devices.shard_batch(next(self._stream))
            captures = chunk.captures(self._stream_step, self._period)
            program: Program = self._step_program(captures)
            self._stream_step += 1
            loop_state = program(
                loop_state.state, loop_state.metric_sums, *self._of_the_run, *batch
            )
        return loop_state

    def close(self) -> None:
        """Ends the workers."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, step: int) -> batches.Stream:
        load = batches.TrainBatches(
            self._dataset.train,
            self._dataset.crops,
            self._seed,
            self._batch_size,
            self._steps_per_epoch,
            self._devices.rows(self._batch_size),
        )
        return batches.stream(load, step, self._num_steps, self._num_workers)


class StreamedEvaluator:
    """Evaluation on test images that are read on demand.

    Args:
        dataset: the dataset.
        devices: where the program runs.
        batch_size: images per call, over all devices.
        num_workers: number of worker processes; 0 reads and decodes in this process.
        confusion: also count confusions of classes.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        devices: Devices,
        batch_size: int,
        num_workers: int,
        confusion: bool,
    ):
        self._num_classes = len(dataset.class_names) if confusion else None
        self._dataset = dataset
        self._devices = devices
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._scores_program = devices.compile(
            functools.partial(
                evaluate.add_batch,
                preprocessing=dataset.preprocessing,
                axis_name=devices.axis_name,
            ),
            batch_arrays=3,
        )

    def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
        """See `Experiment.evaluate`."""
        num_samples = self._dataset.num_test
        batch_size = self._devices.round_up_batch(min(self._batch_size, num_samples))
        load = batches.EvaluationBatches(
            self._dataset.test,
            self._dataset.crops,
            batch_size,
            self._devices.rows(batch_size),
        )
        sums = self._devices.replicate(evaluate.zero_sums(self._num_classes))
        stream = batches.stream(
            load, 0, -(-num_samples // batch_size), self._num_workers
        )
        try:
            for batch in stream:
                before = sums
                sums = self._scores_program(
                    state, sums, *self._devices.shard_batch(batch)
                )
                # Keep at most two batches on the devices.
                jax.block_until_ready(before)
        finally:
            stream.close()
        return evaluate.means(sums, num_samples)


def train_batch(
    state: TrainState,
    metric_sums: dict[str, jax.Array],
    rng: jax.Array,
    learning_rate: jax.Array,
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
        learning_rate: the initial learning rate of the run.
        images: images of the batch, uint8; within a mapped axis, this device's shard.
        labels: their labels, of shape (batch,).
        step_fn: `train_step` with its options bound.
        steps_per_epoch: number of steps in an epoch.
        preprocessing: parameters of the normalization.

    Returns:
        The new state and sums.
    """
    _, dropout_rng = step_rngs(rng, state.step)
    metric_sums = of_this_epoch(metric_sums, state.step, steps_per_epoch)
    loop_state = LoopState(state, metric_sums)
    batch = images, labels
    return advance(
        loop_state, batch, dropout_rng, learning_rate, step_fn, preprocessing
    )
