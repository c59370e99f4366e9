"""What a step of an optimizer costs beside one of SGD: time and memory."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import insgd_optax
import models
from train.benchmark import device_peaks, timing
from train.benchmark.workload import Workload
from train.training import optimizers
from train.training import programs as epoch
from train.training.optimizers.covariance import sown_shapes
from train.training.state import TrainState, create_state
from train.training.step import train_step

_LOOP_STEPS = 20
DEFAULT_OPTIMIZER = "insgd-l2"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of a compiled program, in bytes.

    Attributes:
        temporary: beside arguments and results: activations and gradients.
        peak: at once, with arguments and results; None where XLA does not say.
    """

    temporary: int
    peak: int | None


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One workload, measured, with SGD ("sgd") and another optimizer.

    Attributes:
        workload: what was measured.
        optimizer: the name of the other, "insgd" for INSGD.
        seconds: of a step, in each round, by name; "sgd_again" is a second copy of SGD.
        overhead: the other optimizer's step over SGD's.
        control: SGD's second copy over SGD's: what the method calls a difference
            where there is none.
        processor_overhead: the same as overhead, in processor time, which others' load
            on the machine hardly changes; None where the processor does not compute.
        processor_control: likewise.
        memory: of the program of a step, by name.
        flops: floating-point operations of SGD's step, as XLA counts them before it
            optimizes; None where it does not.
        utilisation: of the other, flops over what the device could have done; None
            where its peak is not known.
        state_bytes: of the optimizer's state, by name.
        scaled_weights: how many weights have a P or a covariance.
    """

    workload: Workload
    optimizer: str
    seconds: dict[str, np.ndarray]
    overhead: timing.Ratio
    control: timing.Ratio
    processor_overhead: timing.Ratio | None
    processor_control: timing.Ratio | None
    memory: dict[str, Memory]
    flops: float | None
    utilisation: float | None
    state_bytes: dict[str, int]
    scaled_weights: int

    def images_per_second(self, name: str) -> float:
        """By the median time."""
        return self.workload.batch_size / float(np.median(self.seconds[name]))


class Stepper:
    """Steps of one optimizer on one batch, compiled, and the state they go on from."""

    def __init__(
        self,
        workload: Workload,
        image_size: int,
        optimizer_name: str,
        polyak_factor: float | None = None,
    ):
        model = models.create(
            workload.model, dtype=jnp.dtype(workload.dtype), **dict(workload.options)
        )
        shape = (image_size, image_size, 3)
        optimizer = optimizers.create(
            optimizer_name,
            # So small that no network diverges: what is timed are ordinary numbers.
            1e-4,
            optimizers.OptimizerConfig(polyak_factor=polyak_factor),
            sown_shapes=functools.partial(sown_shapes, model, shape),
        )
        rng = np.random.default_rng(0)
        self.batch = jax.device_put(
            (
                rng.normal(size=(workload.batch_size, *shape)).astype(np.float32),
                rng.integers(0, 10, workload.batch_size, np.int32),
            )
        )
        self.state = create_state(model, optimizer.tx, jax.random.key(0), shape)
        step = functools.partial(
            _steps, capture=optimizer.capture, num_steps=self.steps_per_call()
        )
        # Programs are compared as training uses them: the old state is given up.
        self._compiled = (
            jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()
        )

    @staticmethod
    def steps_per_call() -> int:
        # As `epoch.train_chunk` does: where loops are fast, a call's overhead is
        # spread over many steps, and would otherwise be what is timed.
        return _LOOP_STEPS if epoch.loops_are_fast() else 1

    def run_from(self, state: TrainState, period: int = 1) -> Callable[[int], None]:
        """A function that makes calls one after another from there, and waits.

        It makes `period` calls for each that it is told.
        """

        def run(times: int) -> None:
            nonlocal state
            for _ in range(times * period):
                state = self._compiled(state, self.batch)
            jax.block_until_ready(state)

        return run

    def per_step(self, seconds: np.ndarray) -> np.ndarray:
        """The time of one step, from that of one call."""
        return seconds / self.steps_per_call()

    def memory(self) -> Memory:
        """Of the compiled program."""
        analysis = self._compiled.memory_analysis()
        assert analysis is not None  # CPUs, GPUs and TPUs have one.
        peak = getattr(analysis, "peak_memory_in_bytes", 0)
        return Memory(analysis.temp_size_in_bytes, peak or None)

    def flops(self) -> float | None:
        """Of one step. A loop's body would be counted once or not at all."""
        step = functools.partial(_steps, capture=None, num_steps=1)
        analysis = jax.jit(step).lower(self.state, self.batch).cost_analysis()
        return analysis.get("flops") if analysis else None


def _steps(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    *,
    capture: optimizers.Capture | None,
    num_steps: int,
) -> TrainState:
    def body(state: TrainState, _: None) -> tuple[TrainState, None]:
        rng = jax.random.fold_in(jax.random.key(1), state.step)
        return train_step(state, batch, rng, capture=capture)[0], None

    if num_steps == 1:
        return body(state, None)[0]
    return jax.lax.scan(body, state, length=num_steps)[0]


def measure(
    workload: Workload,
    image_size: int,
    rounds: int,
    optimizer: str = DEFAULT_OPTIMIZER,
) -> StepCost:
    """Times SGD, another optimizer and SGD once more, round by round, in one process.

    SGD has the same weight decay and momentum. The images are random. What an optimizer
    does every few steps counts in proportion: a round takes whole periods.

    Args:
        workload: the network and the batch.
        image_size: side of an image.
        rounds: how often each is timed.
        optimizer: the name of the other optimizer.

    Returns:
        What was measured.

    Raises:
        ValueError: if the network cannot take the images.
    """
    key = "insgd" if optimizer == DEFAULT_OPTIMIZER else optimizer
    steppers = {
        name: Stepper(workload, image_size, made)
        for name, made in {"sgd": "sgd", key: optimizer}.items()
    }
    sgd, other = steppers["sgd"], steppers[key]
    period = 1
    if optimizers.uses_covariance(optimizer):
        period = optimizers.OptimizerConfig.covariance_every
    if Stepper.steps_per_call() % period == 0:
        period = 1  # A call holds whole periods already.
    state_bytes = {
        name: _num_bytes(stepper.state.opt_state) for name, stepper in steppers.items()
    }
    scaled_weights = _scaled_weights(other.state.opt_state)
    flops = sgd.flops()
    programs = {
        "sgd_again": sgd.run_from(jax.tree.map(jnp.copy, sgd.state), period),
        "sgd": sgd.run_from(sgd.state, period),
        key: other.run_from(other.state, period),
    }
    rng = np.random.default_rng(0)
    times = timing.interleave(programs, rounds, rng)
    seconds = {name: sgd.per_step(one.seconds) / period for name, one in times.items()}
    processor = {name: one.processor_seconds for name, one in times.items()}
    on_cpu = jax.default_backend() == "cpu"
    peak = device_peaks.peak_flops(jax.devices()[0].device_kind, workload.dtype)
    utilisation = None
    if peak is not None and flops is not None:
        utilisation = flops / float(np.median(seconds[key])) / peak
    return StepCost(
        workload,
        key,
        seconds,
        overhead=timing.compare(seconds[key], seconds["sgd"], rng),
        control=timing.compare(seconds["sgd_again"], seconds["sgd"], rng),
        processor_overhead=timing.compare(processor[key], processor["sgd"], rng)
        if on_cpu
        else None,
        processor_control=timing.compare(processor["sgd_again"], processor["sgd"], rng)
        if on_cpu
        else None,
        memory={name: stepper.memory() for name, stepper in steppers.items()},
        flops=flops,
        utilisation=utilisation,
        state_bytes=state_bytes,
        scaled_weights=scaled_weights,
    )


def _scaled_weights(opt_state: Any) -> int:
    counts = 0
    for diagnostic in (insgd_optax.input_powers, insgd_optax.covariance_cosines):
        with contextlib.suppress(ValueError):  # None of that kind in the state.
            counts += len(diagnostic(opt_state))
    return counts


def _num_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
