"""Estimates how long tasks take, before they are run."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

import models
from benchmarks.results import Record
from benchmarks.task import Task, Work
from train.benchmark import device_peaks, operations
from train.benchmark.workload import Workload
from train.training import optimizers
from train.training.state import abstract_state
from train.training.step import train_step

# Printed with every plan. The first is an assumption for large networks. The others are
# measurements of ResNet-20, which does not saturate an H100 (docs/scaling.md).
_UTILIZATION = 0.05
_LEAST_STEP_SECONDS = 1.9e-3
_COMPILE_SECONDS = 15.0
_LONGER_TO_COMPILE = {"lms-newton": 41.0, "muon+whitened": 77.0}
_EPOCH_SECONDS = 0.4
# Assumed FLOP/s of a device whose peak is unknown, such as a CPU.
_UNKNOWN_PEAK = 2e11
EXPLANATION = (
    f"Estimates: {_COMPILE_SECONDS:g} s to compile a step ("
    + ", ".join(f"{name} {value:g} s" for name, value in _LONGER_TO_COMPILE.items())
    + f"), {_EPOCH_SECONDS:g} s to evaluate and save after each epoch, plus the time "
    "of the steps. A step takes the median time that part b measured in this folder "
    "with the same network, batch and dtype. Until then, it is assumed to run its "
    "FLOPs, as XLA counts them, at "
    f"{100 * _UTILIZATION:g} % of the device's peak, and to take at least "
    f"{1000 * _LEAST_STEP_SECONDS:g} ms."
)


class Estimates:
    """Times of tasks on one kind of device.

    Args:
        device_kind: as in `jax.Device.device_kind`.
        records: results so far; their step times replace estimated ones.
    """

    def __init__(self, device_kind: str, records: Iterable[Record]):
        self._device_kind = device_kind
        self._measured = {
            (found["network"], found["batch_size"], found["dtype"], name): one[
                "seconds"
            ]
            for record in records
            if record["part"] == "b" and (found := record["result"])
            for name, one in found["optimizers"].items()
        }

    def seconds(self, task: Task) -> float:
        """Returns the estimated duration of a task in seconds."""
        work = task.work
        compiling = [
            _LONGER_TO_COMPILE.get(name, _COMPILE_SECONDS) for name in work.optimizers
        ]
        fixed = (
            work.programs * sum(compiling) / len(compiling)
            + work.epochs * _EPOCH_SECONDS
        )
        if work.workload is None:
            return fixed
        of_each = [
            self._step_seconds(work, work.workload, name) for name in work.optimizers
        ]
        return fixed + work.steps * sum(of_each) / len(of_each)

    def _step_seconds(self, work: Work, workload: Workload, optimizer: str) -> float:
        key = (workload.network, workload.batch_size, workload.dtype)
        for name in (optimizer, "sgd"):
            if (*key, name) in self._measured:
                return self._measured[(*key, name)]
        peak = device_peaks.peak_flops(self._device_kind, workload.dtype)
        flops = step_flops(workload, work.image_size)
        seconds = flops / (_UTILIZATION * (peak or _UNKNOWN_PEAK))
        return max(seconds, _LEAST_STEP_SECONDS)


@functools.cache
def step_flops(workload: Workload, image_size: int) -> float:
    """Floating-point operations of a step of SGD; nothing is compiled or computed."""
    options = dict(workload.options)
    model = models.create(workload.model, dtype=jnp.dtype(workload.dtype), **options)
    sgd = optimizers.create("sgd", 0.1, optimizers.OptimizerConfig())
    shape = (image_size, image_size, 3)
    state = abstract_state(model, sgd.tx, shape)
    batch = (
        jax.ShapeDtypeStruct((workload.batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((workload.batch_size,), jnp.int32),
    )
    return operations.count_flops(train_step, state, batch, jax.random.key(0)) or 0.0
