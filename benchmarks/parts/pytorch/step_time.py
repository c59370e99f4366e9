"""Steps of PyTorch's SGD beside ours, in interleaved rounds on one batch."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.parts import steps
from benchmarks.parts.pytorch import network, step
from benchmarks.parts.pytorch.step import Step
from benchmarks.task import Result
from train.benchmark import timing
from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload

_OURS = ("sgd", "insgd-l2")


def measure(
    workload: Workload, image_size: int, rounds: int, modes: Sequence[str | None]
) -> Result:
    """Times a step of PyTorch's SGD in each mode, and of SGD and INSGD in JAX.

    Args:
        workload: a ResNet-20.
        image_size: side of an image.
        rounds: how many times each is timed.
        modes: modes of torch.compile, see `Step`; failures are reported and omitted.

    Returns:
        Values that JSON can hold, with "steps" by name and a list of "errors".
    """
    step.enable_autotuning_and_tf32()
    steppers = {f"JAX {name}": Stepper(workload, image_size, name) for name in _OURS}
    stepper = next(iter(steppers.values()))
    num_steps = stepper.steps_per_call()
    programs = {name: one.run_from(one.state) for name, one in steppers.items()}
    images, labels = map(np.asarray, stepper.batch)
    errors, theirs = [], []
    for mode in modes:
        try:
            program = _program(workload, images, labels, mode, num_steps)
        # Errors have many types; for example, there may be no C++ compiler.
        except Exception as error:  # noqa: BLE001
            errors.append(step.warn(mode, error))
            continue
        theirs.append(f"PyTorch SGD, {mode or 'eager'}")
        programs[theirs[-1]] = program
    rng = np.random.default_rng(0)
    times = timing.interleave(programs, rounds, rng)
    seconds = {name: one.seconds / num_steps for name, one in times.items()}
    fastest = min((seconds[name] for name in theirs), key=np.median, default=None)
    return {
        **steps.setting(workload, image_size, rounds),
        "versions": step.versions(),
        "steps": {
            name: {
                **steps.summary(one, workload.batch_size),
                "over_pytorch": None
                if fastest is None
                else dataclasses.asdict(timing.compare(one, fastest, rng)),
            }
            for name, one in seconds.items()
        },
        "errors": errors,
    }


def _program(
    workload: Workload,
    images: np.ndarray,
    labels: np.ndarray,
    mode: str | None,
    num_steps: int,
) -> Callable[[int], None]:
    """Returns a function of N that takes N * `num_steps` steps and waits for them."""
    device = step.device()
    model = network.resnet20(**dict(workload.options))
    model = model.to(device, memory_format=torch.channels_last).train()
    take = Step(model, mode, workload.dtype, learning_rate=1e-4)
    x = torch.tensor(images, device=device).permute(0, 3, 1, 2)
    y = torch.tensor(labels, device=device, dtype=torch.long)

    def run(times: int) -> None:
        for _ in range(times * num_steps):
            take(x, y)
        step.synchronize()

    run(1)  # Compiles.
    return run
