"""Builds a run's network, optimizer and programs from its options and dataset."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from train import own_code, provenance
from train.config import MOST_STEPS, option
from train.data.types import Dataset, ImageDataset, StreamedDataset
from train.errors import UserError
from train.markdown import counted
from train.run import validation
from train.run_config import RunConfig
from train.training import networks, optimizers, parallel, schedules
from train.training.in_memory import InMemoryEvaluator, InMemoryTrainer
from train.training.multipliers import summarize
from train.training.optimizers.covariance import sown_shapes
from train.training.state import (
    LoopState,
    TrainState,
    abstract_state,
    state_program,
    with_average,
)
from train.training.step import FINITE_STEPS, step_of, zero_metric_sums
from train.training.streamed import StreamedEvaluator, StreamedTrainer


class Experiment:
    """The programs of a run.

    Args:
        config: the run's options.
        dataset: the dataset. A `RecordedDataset`, which has no images, suffices for all
            but training and evaluation.

    Raises:
        UserError: if the options do not suit the dataset.

    Attributes:
        steps_per_epoch: optimizer steps; samples that do not fill a batch are dropped.
        schedule: step -> learning rate.
        model: the network.
    """

    def __init__(self, config: RunConfig, dataset: Dataset):
        self._config = config
        self._validation: Dataset | None = None
        if config.validation_fraction:
            dataset, self._validation = validation.split(
                dataset, config.validation_fraction, config.seed
            )
        self._dataset = dataset
        self._devices = parallel.create(config.parallel)
        self._check_batch()
        self.steps_per_epoch = dataset.num_train // config.batch_size
        self._check_steps()
        self.schedule = schedules.create(
            config, config.initial_learning_rate, self.steps_per_epoch
        )
        self.model = self._create_model()
        self._shapes: Any = None
        self._optimizer = optimizers.create(
            config.optimizer, self.schedule, config, sown_shapes=self._sown_shapes
        )
        self._init_rng, self._run_rng = jax.random.split(jax.random.key(config.seed))
        self._diagnostics_program = self._optimizer.diagnostics and jax.jit(
            self._optimizer.diagnostics
        )

    def _check_batch(self) -> None:
        batch_size = self._config.batch_size
        num_samples = self._dataset.num_train
        if batch_size > num_samples:
            raise UserError(
                f"--batch-size {batch_size} is larger than the "
                f"{counted(num_samples, 'training image')} of {self._dataset.name}. "
                f"Use at most {num_samples}."
            )

    def check_devices(self) -> None:
        """Raises a UserError unless training batches can be sharded evenly."""
        batch_size, num_devices = self._config.batch_size, self._devices.num_devices
        if batch_size % num_devices:
            raise UserError(
                f"--batch-size {batch_size} is not divisible by the {num_devices} "
                f"devices. Use a multiple of {num_devices}."
            )

    def _check_steps(self) -> None:
        config = self._config
        epochs = {"epochs": config.epochs, "warmup_epochs": config.warmup_epochs}
        if config.schedule == "steps":
            epochs["milestones"] = max(config.milestones)
        elif config.schedule == "cosine":
            epochs["restart_epochs"] = config.restart_epochs
        for name, value in epochs.items():
            if value * self.steps_per_epoch > MOST_STEPS:
                raise UserError(
                    f"{option(name)} {value} at {self.steps_per_epoch} steps per epoch "
                    f"exceeds the maximum of {MOST_STEPS} steps. Use at most "
                    f"{MOST_STEPS // self.steps_per_epoch}."
                )

    def _create_model(self) -> nn.Module:
        name, num_classes = self._config.model, len(self._dataset.class_names)
        model = networks.create(
            name,
            num_classes,
            dtype=jnp.dtype(self._config.dtype),
            axis_name=self._devices.axis_name,
            options=self._config.network_options,
        )
        networks.check_logits(name, model, self._dataset.image_shape, num_classes)
        return model

    def _sown_shapes(self, capture: contextlib.AbstractContextManager[None]) -> Any:
        """Returns and keeps the shapes that the network sows within a capture."""
        with self._network_errors():
            self._shapes = sown_shapes(self.model, self._dataset.image_shape, capture)
        return self._shapes

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Turns errors of the network into user errors that name the dataset."""
        try:
            yield
        except models.NetworkError as error:
            raise UserError(
                f"{self._config.model} on {self._dataset.name}: {error}"
            ) from error

    @functools.cached_property
    def _trainer(self) -> InMemoryTrainer | StreamedTrainer:
        """The trainer, created on demand, since restoring a state needs no images."""
        config = self._config
        make_tx = functools.partial(
            _make_tx, config, self.steps_per_epoch, self._shapes
        )
        # The user's own code may need concrete learning rates, not tracers.
        own = own_code.is_reference(config.optimizer)
        make_step = functools.partial(
            step_of,
            self._optimizer,
            make_tx=None if own else make_tx,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            axis_name=self._devices.axis_name,
        )
        options = (
            make_step,
            self._optimizer.capture_every,
            config.batch_size,
            self.steps_per_epoch,
            self._run_rng,
            jnp.asarray(config.initial_learning_rate, jnp.float32),
        )
        if isinstance(self._dataset, ImageDataset):
            return InMemoryTrainer(self._dataset, self._devices, *options)
        assert isinstance(self._dataset, StreamedDataset)
        return StreamedTrainer(
            self._dataset,
            self._devices,
            *options,
            seed=config.seed,
            num_steps=config.epochs * self.steps_per_epoch,
            num_workers=config.num_data_workers,
        )

    @functools.cached_property
    def _evaluator(self) -> InMemoryEvaluator | StreamedEvaluator:
        return create_evaluator(self._config, self._dataset, self._devices)

    @functools.cached_property
    def _validator(self) -> InMemoryEvaluator | StreamedEvaluator | None:
        if self._validation is None:
            return None
        return create_evaluator(self._config, self._validation, self._devices)

    @property
    def num_images(self) -> dict[str, int]:
        """Returns the number of images of each split."""
        aside = self._validation
        return {
            "training": self._dataset.num_train,
            **({} if aside is None else {"validation": aside.num_test}),
            "test": self._dataset.num_test,
        }

    @functools.cached_property
    def _state_program(self) -> Callable[[jax.Array], TrainState]:
        return state_program(self.model, self._optimizer.tx, self._dataset.image_shape)

    def start(self) -> LoopState:
        """Returns the state before the first step.

        Raises:
            UserError: if the network cannot take the images.
        """
        with self._network_errors():
            state = self._state_program(self._init_rng)
            if self._config.ema_decay is not None:
                state = jax.jit(with_average)(state)
        return self._devices.replicate(self._loop_state(state))

    def abstract_start(self) -> LoopState:
        """Returns the shapes and dtypes of `start` for the first device.

        Raises:
            UserError: as `start`.
        """
        with self._network_errors():
            state = abstract_state(
                self.model, self._optimizer.tx, self._dataset.image_shape
            )
        if self._config.ema_decay is not None:
            state = jax.eval_shape(with_average, state)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            self._loop_state(state),
        )

    def _loop_state(self, state: TrainState) -> LoopState:
        return LoopState(state, zero_metric_sums(self._optimizer.extra_metrics))

    def count_finite(self, loop_state: LoopState) -> LoopState:
        """Adds a counter of finite steps to the sums; steps so far count as finite."""
        done = int(loop_state.state.step) % self.steps_per_epoch
        count = self._devices.replicate(jnp.asarray(done, jnp.int32))
        return loop_state._replace(
            metric_sums=loop_state.metric_sums | {FINITE_STEPS: count}
        )

    def chunk_lengths(self, first: int = 0) -> list[int]:
        """Returns the lengths in steps of the chunks of the epoch that starts there."""
        most = self._config.chunk_steps or self._trainer.default_chunk_steps
        period = self._optimizer.capture_every
        return chunk_lengths(self.steps_per_epoch, most, period, first)

    def describe_environment(self) -> dict[str, Any]:
        """Describes where the run is trained, for its record."""
        return provenance.describe(
            max(self.chunk_lengths()), self._devices.name, self._devices.devices
        )

    def train_chunk(
        self, loop_state: LoopState, step: int, num_steps: int
    ) -> LoopState:
        """Runs training steps within the current epoch.

        Args:
            loop_state: the current state and sums. The state is donated.
            step: step of the state, passed so as not to wait for the device.
            num_steps: number of steps, which must not exceed the rest of the epoch.

        Returns:
            The new state and sums.

        Raises:
            ValueError: if the steps exceed the rest of the epoch.
        """
        # Indices beyond the end of an epoch would be clamped, without an error.
        if step % self.steps_per_epoch + num_steps > self.steps_per_epoch:
            raise ValueError(
                f"{num_steps} steps from step {step} pass the end of an epoch of "
                f"{self.steps_per_epoch} steps. Use at most "
                f"{self.steps_per_epoch - step % self.steps_per_epoch}."
            )
        return self._trainer.train_chunk(loop_state, step, num_steps)

    def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
        """Returns test loss and accuracies, of averaged weights if there are any."""
        return self._evaluator.evaluate(state)

    def validate(self, state: TrainState) -> dict[str, jax.Array]:
        """Returns the same on the validation images; empty if there are none."""
        return {} if self._validator is None else self._validator.evaluate(state)

    def close(self) -> None:
        """Ends the data workers, which restart on demand."""
        if "_trainer" in vars(self):
            self._trainer.close()

    def diagnostics(self, state: TrainState) -> dict[str, Any]:
        """Returns the optimizer's diagnostics, for the metrics of an epoch."""
        if self._diagnostics_program is None:
            return {}
        found = jax.device_get(self._diagnostics_program(state.opt_state))
        row: dict[str, Any] = {
            # Stacked layers may have one value each.
            name: {weight: float(np.mean(value)) for weight, value in values.items()}
            for name, values in found.items()
        }
        if "multipliers" in found:
            params = flax.traverse_util.flatten_dict(state.params, sep="/")
            sizes = {name: weight.size for name, weight in params.items()}
            row |= summarize(found["multipliers"], sizes, self._config.eps)
        return row


def _make_tx(
    config: RunConfig, steps_per_epoch: int, shapes: Any, learning_rate: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer within a program that serves all learning rates.

    Not a method: JAX caches the functions it compiles, and a bound method would keep
    the experiment and its data in memory.
    """
    schedule = schedules.create(config, learning_rate, steps_per_epoch)
    return optimizers.create(
        config.optimizer, schedule, config, sown_shapes=lambda capture: shapes
    ).tx


def create_evaluator(
    config: RunConfig,
    dataset: Dataset,
    devices: parallel.Devices,
    confusion: bool = False,
) -> InMemoryEvaluator | StreamedEvaluator:
    """Creates the evaluator for a dataset's test images.

    Args:
        config: options of the run, for batch size and workers of streamed data.
        dataset: the dataset.
        devices: where the program runs.
        confusion: also count confusions of classes.
    """
    if isinstance(dataset, ImageDataset):
        return InMemoryEvaluator(dataset, devices, confusion)
    assert isinstance(dataset, StreamedDataset)
    return StreamedEvaluator(
        dataset, devices, config.batch_size, config.num_data_workers, confusion
    )


def chunk_lengths(
    steps_per_epoch: int, most: int, period: int = 1, first: int = 0
) -> list[int]:
    """Divides an epoch into chunks of at most `most` steps.

    With a period of at most `most`, all chunks but the first and the last consist of
    whole periods, for which `train.training.chunk` has one program. Otherwise, chunks
    are equal if a divisor of the epoch is close to `most`; if none is, the last chunk
    is shorter. Without captures, each length is compiled separately.

    Args:
        steps_per_epoch: number of steps in the epoch.
        most: the largest length.
        period: period of the captures; 1 if all steps are the same.
        first: the first step of the epoch.
    """
    most = min(most, steps_per_epoch)
    if 1 < period <= most:
        before = min(-first % period, steps_per_epoch)
        most -= most % period
        whole, after = divmod(steps_per_epoch - before, most)
        lengths = [before, *[most] * whole, after]
        return [length for length in lengths if length]
    for length in range(most, most // 2, -1):
        if steps_per_epoch % length == 0:
            return [length] * (steps_per_epoch // length)
    whole, rest = divmod(steps_per_epoch, most)
    return [most] * whole + [rest] * (rest > 0)
