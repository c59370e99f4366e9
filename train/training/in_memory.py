"""Training and evaluation on datasets that fit in device memory."""

import functools

import jax

from train.data.types import ImageDataset
from train.training import programs
from train.training.evaluate import evaluate
from train.training.parallel import Devices, Program
from train.training.state import LoopState, TrainState

_EVALUATION_BATCH = 1000


class InMemoryTrainer:
    """Training on a dataset that fits in device memory.

    Args:
        dataset: the dataset, which is copied to the devices.
        devices: strategy for the devices.
        step_fn: `train_step` with its options bound.
        batching: batch size and steps per epoch.
        rng: key of the run.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        devices: Devices,
        step_fn: programs.TrainStep,
        batching: programs.Batching,
        rng: jax.Array,
    ):
        self._devices = devices
        self._batching = batching
        self._rng = rng
        self._train = devices.replicate(
            (dataset.train.images, dataset.train.labels, rng)
        )
        self._shuffle_program = jax.jit(
            functools.partial(programs.shuffle, num_samples=dataset.num_train)
        )
        self._order = functools.lru_cache(maxsize=1)(self._shuffle)
        # Each chunk length needs its own program.
        self._chunk_program = functools.cache(
            functools.partial(self._compile_chunk, step_fn, dataset)
        )

    @property
    def default_chunk_steps(self) -> int:
        """Default of the maximum number of steps in a chunk."""
        return programs.default_chunk_steps()

    def train_chunk(
        self, loop_state: LoopState, step: int, num_steps: int
    ) -> LoopState:
        """See `Experiment.train_chunk`."""
        order = self._order(step // self._batching.steps_per_epoch)
        program = self._chunk_program(num_steps)
        return program(loop_state.state, loop_state.metric_sums, order, *self._train)

    def close(self) -> None:
        """Nothing to close."""

    def _shuffle(self, number: int) -> jax.Array:
        """Returns the order of the training images in an epoch, counted from 0."""
        return self._devices.replicate(self._shuffle_program(self._rng, number))

    def _compile_chunk(
        self, step_fn: programs.TrainStep, dataset: ImageDataset, num_steps: int
    ) -> Program:
        program = functools.partial(
            programs.train_chunk,
            step_fn=step_fn,
            num_steps=num_steps,
            batching=self._batching,
            preprocessing=dataset.preprocessing,
            local_shard=self._devices.local_shard,
        )
        return self._devices.compile(program, donate_state=True)


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
