"""(d) PyTorch's SGD on the network and the images of (c), if PyTorch is installed."""

from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.parts import experiments
from benchmarks.settings import Settings
from benchmarks.task import Result, Skipped
from train.benchmark.workload import Workload
from train.data.types import ImageDataset
from train.run_config import RunConfig

LEARNING_RATE = experiments.RESNET20_RATES["sgd"]


def measure_steps(workload: Workload, side: int, rounds: int) -> Result:
    """Times a step of PyTorch's SGD and of ours.

    Raises:
        Skipped: if PyTorch is not installed, or if only one of JAX and PyTorch uses a
            GPU.
    """
    _check()
    from benchmarks.parts.pytorch import step_time

    modes = _modes()
    # Where steps can be compiled, eager ones are not worth their time.
    modes = tuple(mode for mode in modes if mode is not None) or modes
    return step_time.measure(workload, side, rounds, modes)


def train_resnet20(
    settings: Settings, out: Path, stopped: Callable[[], bool]
) -> Result:
    """Trains ResNet-20 with PyTorch's SGD; returns time and accuracy.

    Raises:
        Skipped: as `measure_steps`, or if there are no images or they do not fit in
            memory.
        Stopped: if `stopped` returns true; another call resumes the training.
    """
    _check()
    from benchmarks.parts.pytorch import step, training

    name = experiments.dataset(settings)
    options = experiments.resnet20_options(settings)
    options |= {"learning_rate": LEARNING_RATE}
    dataset = RunConfig(dataset=name, cache_dir=out / "cache").load_dataset()
    if not isinstance(dataset, ImageDataset):
        raise Skipped(f"{name} does not fit in memory")
    path = out / "pytorch" / "latest.pt"
    rows, mode = training.train(dataset, options, _modes(), path, stopped)
    return experiments.summarize(rows) | {
        "optimizer": "PyTorch SGD",
        "learning_rate": LEARNING_RATE,
        "batch_size": options["batch_size"],
        "dtype": options["dtype"],
        "mode": mode,
        "versions": step.versions(),
    }


def _modes() -> tuple[str | None, ...]:
    """Modes of torch.compile to try; only eager on a CPU, where compiling is slow."""
    on_cpu = jax.default_backend() == "cpu"
    return (None,) if on_cpu else ("reduce-overhead", "default", None)


def _check() -> None:
    try:
        import torch
    except ImportError as error:
        raise Skipped(f"needs PyTorch: {error}") from error
    ours, theirs = jax.default_backend(), torch.cuda.is_available()
    if (ours == "gpu") != theirs:
        raise Skipped(
            f"JAX computes on the {ours}, but PyTorch {torch.__version__} "
            f"{'sees a' if theirs else 'does not see a'} GPU"
        )
