"""Measures time and memory of an optimizer's step and SGD's."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import insgd_optax
from train.benchmark import device_peaks, operations, timing
from train.benchmark.workload import Workload
from train.training import chunk, in_memory, networks, optimizers
from train.training.optimizers.covariance import sown_shapes
from train.training.state import TrainState, create_state
from train.training.step import TrainStep, step_of, train_step

_LOOP_STEPS = 20
DEFAULT_OPTIMIZER = "insgd-l2"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a compiled program, in bytes.

    Attributes:
        temporary: memory besides arguments and results, such as activations.
        peak: peak memory including arguments and results; None if XLA does not report
            it.
    """

    temporary: int
    peak: int | None


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of a step of SGD ("sgd") and of another optimizer.

    Attributes:
        workload: network and batch.
        optimizer: name of the other optimizer; "insgd" for "insgd-l2".
        seconds: time of a step in each round, by name; "sgd_again" is a second copy of
            SGD.
        overhead: time of the other optimizer's step relative to SGD's.
        control: time of the second copy of SGD relative to SGD: the noise floor.
        processor_overhead: as `overhead`, in CPU time, which other processes hardly
            affect; None if the CPU is not the device.
        processor_control: `control` in CPU time.
        memory: memory of the compiled program that needs the most, by name.
        flops: floating-point operations of SGD's step, before XLA's optimizations; None
            if XLA does not count them.
        utilization: `flops` divided by the time of the other optimizer's step, relative
            to the device's peak; None if the FLOPs or the peak are not known.
        state_bytes: size of the optimizer state, by name.
        scaled_weights: number of weights with an input power or covariance.
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
    utilization: float | None
    state_bytes: dict[str, int]
    scaled_weights: int

    def images_per_second(self, name: str) -> float:
        """Returns the throughput at the median step time."""
        return self.workload.batch_size / float(np.median(self.seconds[name]))


class Stepper:
    """Compiled steps of one optimizer on one batch, with their initial state.

    Args:
        workload: network and batch.
        image_size: height and width of the images.
        optimizer_name: name of the optimizer.
        polyak_factor: caps the learning rate at this multiple of the Polyak step size;
            None for no cap.
    """

    def __init__(
        self,
        workload: Workload,
        image_size: int,
        optimizer_name: str,
        polyak_factor: float | None = None,
    ):
        model = networks.create(
            workload.model,
            dtype=jnp.dtype(workload.dtype),
            options=dict(workload.options),
        )
        shape = (image_size, image_size, 3)
        networks.check_logits(workload.model, model, shape, num_classes=10)
        optimizer = optimizers.create(
            optimizer_name,
            # Small, so that no network diverges and all numbers stay finite.
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
        self._optimizer = optimizer
        self._number = functools.cache(lambda value: jnp.asarray(value, jnp.int32))
        # The first steps of all chunks; after these, the programs repeat.
        steps = self.steps_per_call()
        starts = range(0, math.lcm(optimizer.capture_every, steps), steps)
        # As in training: a program for each kind of step, and a donated state.
        self._lowered = {
            pattern: jax.jit(
                functools.partial(
                    _steps,
                    pattern=pattern,
                    make_step=functools.partial(step_of, optimizer),
                ),
                donate_argnums=0,
            ).lower(self.state, self.batch, self._number(1))
            for pattern in {p for step in starts for p, _ in self._calls(step)}
        }

    def _calls(self, step: int) -> Iterator[tuple[chunk.Pattern, int]]:
        """The programs that take the steps of one chunk."""
        return chunk.calls(
            step,
            self.steps_per_call(),
            self._optimizer.capture_every,
            in_memory.loops_are_fast(),
        )

    @functools.cached_property
    def _compiled(self) -> dict[chunk.Pattern, jax.stages.Compiled]:
        return {pattern: one.compile() for pattern, one in self._lowered.items()}

    def compile(self) -> "Stepper":
        """Compiles the programs. Unlike tracing, this can run in several threads."""
        _ = self._compiled
        return self

    @staticmethod
    def steps_per_call() -> int:
        """Returns the number of steps per call, more than one where loops are fast."""
        # As in `train_chunk`; otherwise the call's overhead would dominate the time.
        return _LOOP_STEPS if in_memory.loops_are_fast() else 1

    def run_from(self, state: TrainState, period: int = 1) -> Callable[[int], None]:
        """Returns a function of N that makes N * `period` calls and waits for them."""
        step = int(state.step)

        def run(times: int) -> None:
            nonlocal state, step
            for _ in range(times * period):
                for pattern, repeated in self._calls(step):
                    program = self._compiled[pattern]
                    state = program(state, self.batch, self._number(repeated))
                step += self.steps_per_call()
            jax.block_until_ready(state)

        return run

    def memory(self) -> Memory:
        """Returns the memory of the compiled program that needs the most."""
        needs = []
        for program in self._compiled.values():
            analysis = program.memory_analysis()
            assert analysis is not None  # Available on CPUs, GPUs and TPUs.
            peak = getattr(analysis, "peak_memory_in_bytes", 0)
            needs.append(Memory(analysis.temp_size_in_bytes, peak or None))
        return max(needs, key=lambda need: need.temporary)

    def flops(self) -> float | None:
        """Returns the FLOPs of a step without capture; None if they are not counted."""
        step = functools.partial(
            _steps,
            times=1,
            pattern=chunk.Pattern(((None, 1),)),
            make_step=lambda _: train_step,
        )
        return operations.count_flops(step, self.state, self.batch)


def _steps(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    times: jax.Array | int,
    *,
    pattern: chunk.Pattern,
    make_step: Callable[[bool | None], TrainStep],
) -> TrainState:
    def body(step_fn: TrainStep, state: TrainState) -> TrainState:
        rng = jax.random.fold_in(jax.random.key(1), state.step)
        return step_fn(state, batch, rng)[0]

    return chunk.run(
        pattern,
        times,
        lambda captures: functools.partial(body, make_step(captures)),
        state,
        in_memory.loops_are_fast(),
    )


def measure(
    workload: Workload,
    image_size: int,
    rounds: int,
    optimizer: str = DEFAULT_OPTIMIZER,
) -> StepCost:
    """Times SGD, another optimizer and a second SGD in interleaved rounds.

    Both optimizers have the default options of `OptimizerConfig`. The images are
    random. Work that an optimizer does every few steps counts in proportion, since
    rounds are whole periods.

    Args:
        workload: network and batch.
        image_size: height and width of the images.
        rounds: number of rounds.
        optimizer: name of the other optimizer.

    Returns:
        The costs.

    Raises:
        ValueError: if the network cannot take the images.
    """
    key = "insgd" if optimizer == DEFAULT_OPTIMIZER else optimizer
    steppers = {
        name: Stepper(workload, image_size, made)
        for name, made in {"sgd": "sgd", key: optimizer}.items()
    }
    sgd, other = steppers["sgd"], steppers[key]
    period = calls_in_a_period(optimizer)
    state_bytes = {
        name: num_bytes(stepper.state.opt_state) for name, stepper in steppers.items()
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
    steps = period * Stepper.steps_per_call()
    seconds = {name: one.seconds / steps for name, one in times.items()}
    processor = {name: one.processor_seconds for name, one in times.items()}
    on_cpu = jax.default_backend() == "cpu"
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
        utilization=utilization(flops, seconds[key], workload.dtype),
        state_bytes=state_bytes,
        scaled_weights=scaled_weights,
    )


def calls_in_a_period(optimizer: str) -> int:
    """Returns the number of calls that make up whole periods of an optimizer."""
    period = 1
    if optimizers.has_option(optimizer, "covariance_every"):
        period = optimizers.OptimizerConfig.covariance_every
    return period // math.gcd(period, Stepper.steps_per_call())


def utilization(flops: float | None, seconds: np.ndarray, dtype: str) -> float | None:
    """Returns the FLOP utilization at a step's median time.

    Args:
        flops: FLOPs of a step; None if unknown.
        seconds: time of a step in each round.
        dtype: compute dtype of the network.

    Returns:
        The fraction of the device's peak; None if it or the FLOPs are unknown.
    """
    peak = device_peaks.peak_flops(jax.devices()[0].device_kind, dtype)
    if peak is None or flops is None:
        return None
    return flops / float(np.median(seconds)) / peak


def _scaled_weights(opt_state: Any) -> int:
    counts = 0
    for diagnostic in (insgd_optax.input_powers, insgd_optax.covariance_cosines):
        with contextlib.suppress(ValueError):  # The state has none of that kind.
            counts += len(diagnostic(opt_state))
    return counts


def num_bytes(tree: Any) -> int:
    """Returns the size of a tree's arrays in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
