"""(b) The time and memory of a step of several optimizers, in interleaved rounds."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parts import trace
from benchmarks.task import Result
from train.benchmark import measure, timing
from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload

OPTIMIZERS = ("sgd", "insgd-l2", "lms-newton", "adamw", "muon")
# In a task of its own: with the square roots of the inverse covariances, Muon on
# whitened inputs takes longer to compile than any of the others.
WHITENED = ("sgd", "muon", "muon+whitened")
# A second copy of SGD: its difference from the first is the noise of the method.
CONTROL = "sgd again"


def measure_all(
    workload: Workload,
    image_size: int,
    rounds: int,
    optimizers: Sequence[str] = OPTIMIZERS,
) -> Result:
    """Times a step of each optimizer, round by round, in one process.

    Optimizers that fail, for lack of memory or otherwise, are reported and omitted.

    Args:
        workload: the network and the batch.
        image_size: side of an image.
        rounds: how many times each is timed.
        optimizers: their names.

    Returns:
        Values that JSON can hold, with "optimizers" and "errors" by name. The "profile"
        of an optimizer shows how long its kernels take, even where other programs keep
        the host or the device busy. Its "steps" is the number of steps it covers.
    """
    errors: dict[str, str] = {}
    # All are timed over whole periods of the optimizer with the longest period.
    period = max(map(measure.calls_in_a_period, optimizers))

    def traced(name: str) -> Stepper:
        return Stepper(workload, image_size, name)

    def compiled_one(name: str) -> Stepper:
        return steppers[name].compile()

    def first_round(name: str) -> Callable[[int], None]:
        stepper = steppers[name]
        run = stepper.run_from(jax.tree.map(jnp.copy, stepper.state), period)
        run(1)
        return run

    steppers = _each(traced, optimizers, errors)
    names = list(steppers)
    # The first alone, since a GPU's autotuner times kernels, and the other programs
    # share most of its choices.
    compiled = _each(compiled_one, names[:1], errors)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled |= _each(compiled_one, names[1:], errors, pool.map)
    programs = _each(first_round, compiled, errors)
    steppers = {name: steppers[name] for name in programs}
    if "sgd" in steppers:
        programs[CONTROL] = steppers["sgd"].run_from(steppers["sgd"].state, period)
    if not programs:
        raise RuntimeError(f"no optimizer could take a step: {errors}")
    rng = np.random.default_rng(0)
    times = timing.interleave(programs, rounds, rng)
    # Of SGD's step alone, which needs no capture.
    flops = steppers["sgd"].flops() if "sgd" in steppers else None
    seconds = {
        name: one.seconds / (period * Stepper.steps_per_call())
        for name, one in times.items()
    }
    results = {
        name: _time(workload, one, seconds.get("sgd"), flops, rng)
        for name, one in seconds.items()
    }
    for name, stepper in steppers.items():
        results[name] |= {
            "memory": dataclasses.asdict(stepper.memory()),
            "state_bytes": measure.num_bytes(stepper.state.opt_state),
            "profile": {"steps": period * Stepper.steps_per_call()}
            | trace.profile_of(functools.partial(programs[name], 1)),
        }
    return {
        **setting(workload, image_size, rounds),
        "flops": flops,
        "optimizers": results,
        "errors": errors,
    }


def _each(
    action: Callable[[str], Any],
    names: Iterable[str],
    errors: dict[str, str],
    run: Callable[..., Iterable[Any]] = map,
) -> dict[str, Any]:
    """Returns the results of an action by name; what it raises goes to `errors`."""

    def attempt(name: str) -> Any:
        try:
            return action(name)
        # Errors have many types; most say that memory ran out.
        except Exception as error:  # noqa: BLE001
            errors[name] = f"{type(error).__name__}: {error}"[:1000]
            return None

    names = list(names)
    results = list(run(attempt, names))
    return {
        name: result
        for name, result in zip(names, results, strict=True)
        if name not in errors
    }


def setting(workload: Workload, image_size: int, rounds: int) -> Result:
    """Returns what was timed, as it is stored in JSON."""
    return {
        "network": workload.network,
        "batch_size": workload.batch_size,
        "dtype": workload.dtype,
        "image_size": image_size,
        "rounds": rounds,
    }


def summary(seconds: np.ndarray, batch_size: int) -> Result:
    """Summarizes a step's seconds over the rounds; JSON-serializable."""
    median = float(np.median(seconds))
    return {
        "seconds": median,
        "quartiles": np.percentile(seconds, [25, 75]).tolist(),
        "images_per_second": batch_size / median,
    }


def _time(
    workload: Workload,
    seconds: np.ndarray,
    sgd: np.ndarray | None,
    flops: float | None,
    rng: np.random.Generator,
) -> dict[str, Any]:
    over = None if sgd is None else timing.compare(seconds, sgd, rng)
    return {
        **summary(seconds, workload.batch_size),
        "over_sgd": over and dataclasses.asdict(over),
        # The model's operations, which are SGD's, not what an optimizer adds.
        "utilization": measure.utilization(flops, seconds, workload.dtype),
    }
