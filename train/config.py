"""What a run is: every option of `python -m train run`, checked."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import models
from train.data import registry
from train.training import optimizers, parallel, schedules
from train.training.distributed import Launch

ModelName = tyro.extras.literal_type_from_choices(models.names())
ScheduleName = tyro.extras.literal_type_from_choices(schedules.NAMES)
ParallelName = tyro.extras.literal_type_from_choices(parallel.NAMES)

# A run that is resumed may change these; the others make it another run.
FREE_ON_RESUME = {
    "epochs",
    "parallel",
    "runs_dir",
    "run_dir",
    "resume",
    "tensorboard",
    "cache_dir",
    "skip_corrupt_images",
    "data_workers",
    "launch",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, on what and for how long: all of a run but its optimizer."""

    dataset: Annotated[str, tyro.conf.arg(metavar="|".join(registry.NAMES))] = "digits"
    """Dataset. CIFAR and ImageNet need `prepare`; PATH has train/CLASS/, test/CLASS/."""
    model: ModelName = "custom_cnn"
    """Network to train."""
    batch_norm: bool = True
    """Use batch normalization, in networks that have it."""
    model_options: tuple[str, ...] = ()
    """Other options of the network, each as NAME=VALUE, such as stem=cifar."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the network; parameters and statistics stay float32."""

    momentum: float = 0.9
    """Momentum of SGD, LARS, LSALR, Momo and INSGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """l2 weight decay; for Momo, Prodigy and D-Adaptation, optax's own form."""
    scope: Literal["kernel", "layer"] = "kernel"
    """Parameters INSGD scales: kernels, or also biases and normalization layers."""
    normalizer: Literal["log", "power", "log1p"] = "log"
    """INSGD's divisor: max(log P, 0.01), 0.01 + P, or 1 + log(1 + P)."""

    polyak_factor: float | None = None
    """Cap SGD's or INSGD's learning rate at this multiple of the Polyak step size."""

    damping: float = 1.0
    """Damping of the input covariance (lms-newton, adamw+cov, muon+cov), in
    units of its mean eigenvalue."""
    covariance_every: int = 10
    """Steps from one measurement of the input covariance to the next."""
    conv_covariance: Literal["patch", "kronecker"] = "patch"
    """Covariance of a convolution's input: one matrix for taps and channels, or
    their Kronecker product."""

    epochs: int = 20
    """Number of training epochs."""
    batch_size: int = 128
    """Images per step, summed over all devices."""
    schedule: ScheduleName = "constant"
    """Learning rate schedule: constant, step decay, or cosine with warm restarts."""
    milestones: tuple[int, ...] = (79, 119, 159)
    """Epochs after which --schedule steps lowers the learning rate."""
    milestone_factor: float = 0.2
    """Factor on the learning rate at each milestone of --schedule steps."""
    restart_epochs: int = 100
    """Epochs between the warm restarts of --schedule cosine."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up before the schedule."""

    parallel: ParallelName = "auto"
    """Device strategy: jit uses the first device; auto is mesh if there are several."""
    chunk_steps: int | None = None
    """Maximum steps per compiled call. Default: 50; 1 on CPUs and for ImageNet."""
    runs_dir: Path = Path("runs")
    """Folder in which a new run folder, named after its options, is created."""
    cache_dir: Path | None = None
    """Cache of decoded images. Default: insgd_optax in $XDG_CACHE_HOME or ~/.cache."""
    skip_corrupt_images: bool = False
    """Skip images that cannot be decoded, and list them."""
    data_workers: int | None = None
    """Processes that decode ImageNet, per training process. Default: one per CPU."""

    def __post_init__(self):
        registry.check_name(self.dataset)
        _check_numbers(
            self,
            momentum=0,
            weight_decay=0,
            polyak_factor=0,
            damping=0,
            covariance_every=1,
            epochs=1,
            batch_size=1,
            milestone_factor=0,
            restart_epochs=1,
            warmup_epochs=0,
            chunk_steps=1,
            data_workers=0,
        )
        if not self.momentum < 1:
            raise ValueError(f"--momentum must be below 1, got {self.momentum}")
        rising = sorted({0, *self.milestones})
        if rising != [0, *self.milestones] or len(rising) == 1:
            raise ValueError(
                "--milestones must be one or more epochs, rising from at least 1, got "
                f"{self.milestones}"
            )
        if self.schedule == "steps" and min(self.milestones) < self.warmup_epochs:
            raise ValueError(
                f"--milestones must not lie in the {self.warmup_epochs} epochs of "
                f"warm-up, got {self.milestones}"
            )
        for text in self.model_options:
            if not all(text.partition("=")):
                raise ValueError(
                    f"--model-options must be NAME=VALUE, such as stem=cifar, got "
                    f"{text!r}"
                )

    @property
    def num_data_workers(self) -> int:
        """The number of workers given, or else one a CPU this process may use."""
        if self.data_workers is not None:
            return self.data_workers
        if hasattr(os, "sched_getaffinity"):  # On Linux a cluster may lend some.
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @property
    def load_options(self) -> registry.LoadOptions:
        """What loading the data may need beside their name."""
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = self.cache_dir or Path(user_cache) / "insgd_optax"
        return registry.LoadOptions(cache_dir.expanduser(), self.skip_corrupt_images)


@dataclasses.dataclass(frozen=True)
class RunConfig(Setting):
    """Train a network on images and write the results to a run folder."""

    optimizer: Annotated[str, tyro.conf.arg(metavar=optimizers.CHOICES)] = "insgd-l2"
    """Optimizer; the number in insgd-lP is the p of the input's norm."""
    learning_rate: float | None = None
    """Initial learning rate. Default: the optimizer's own, 0.1 for SGD and INSGD."""
    seed: int = 0
    """Seed of initial parameters, shuffling, augmentation and dropout."""

    run_dir: Path | None = None
    """Folder of the new run. Default: a new one in --runs-dir."""
    resume: Path | None = None
    """Run folder to resume from its latest checkpoint, with its own options."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard."""
    launch: Annotated[Launch, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=Launch
    )
    """Several processes."""

    def __post_init__(self):
        super().__post_init__()
        optimizers.check_name(self.optimizer)
        _check_numbers(self, learning_rate=0, seed=0)
        if self.polyak_factor is not None and not optimizers.can_be_bounded(
            self.optimizer
        ):
            raise ValueError(
                f"--polyak-factor is of SGD, INSGD and lms-newton, not of "
                f"{self.optimizer}: leave it out"
            )
        self.launch.check()
        if self.run_dir is not None and self.resume is not None:
            raise ValueError("--run-dir is for a new run: with --resume, leave it out")

    @property
    def initial_learning_rate(self) -> float:
        """The learning rate given, or else the optimizer's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return optimizers.default_learning_rate(self.optimizer)

    @property
    def readable_name(self) -> str:
        """A name for a run folder that says what the run is."""
        kind, _, path = self.dataset.partition(":")
        parts = [Path(path).name or kind, self.model, self.optimizer]
        parts.append(f"lr{self.initial_learning_rate:g}")
        for field in ("batch_norm", "scope", "normalizer", "schedule", "dtype"):
            value = getattr(self, field)
            if value != getattr(RunConfig, field):
                parts.append("no-batch-norm" if field == "batch_norm" else str(value))
        if self.polyak_factor is not None:
            parts.append(f"polyak{self.polyak_factor:g}")
        parts += [text.replace("=", "-") for text in self.model_options]
        if self.batch_size != RunConfig.batch_size:
            parts.append(f"batch{self.batch_size}")
        return "-".join([*parts, f"seed{self.seed}"])

    def to_json(self) -> dict[str, Any]:
        """The options as JSON holds them, a default learning rate by its value."""
        values = dataclasses.asdict(self)
        # Of this process, and of this time: resumed, the run may be started otherwise.
        del values["launch"]
        values["learning_rate"] = self.initial_learning_rate
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunConfig":
        """The inverse of `to_json`."""
        values = dict(values)
        for field in ("runs_dir", "run_dir", "resume", "cache_dir"):
            if values.get(field) is not None:
                values[field] = Path(values[field])
        for field in ("milestones", "model_options"):
            values[field] = tuple(values[field])
        return cls(**values)


def option(field: str) -> str:
    """A field's name on the command line."""
    return "--" + field.replace("_", "-")


def _check_numbers(config: Any, **least: float) -> None:
    """Raises unless each option named, if given, is at least so much."""
    for name, bound in least.items():
        value = getattr(config, name)
        # So put, nan is refused too.
        if value is not None and not bound <= value < math.inf:
            raise ValueError(
                f"{option(name)} must be a number of at least {bound}, got {value}"
            )
