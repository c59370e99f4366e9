"""Options that training commands share, with validation."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

import models
from train import own_code
from train.data import registry
from train.data.types import Dataset
from train.markdown import counted
from train.provenance import num_cores
from train.training import networks, optimizers, parallel
from train.training.optimizers import OptimizerConfig
from train.training.schedules import ScheduleConfig

if TYPE_CHECKING:  # The choices are known only at run time.
    ParallelName: TypeAlias = str
else:
    ParallelName = tyro.extras.literal_type_from_choices(parallel.NAMES)

# Options of a process, which are not part of the record: a resumed run may use others.
NOT_STORED = {"config", "launch"}

# Larger numbers overflow in float32.
FLOAT32_MAX = 3.4e38
# The step counter is an int32.
MOST_STEPS = 2**31 - 1
MOST_EPOCHS = 1_000_000
# `jax.random.key` wraps larger seeds around.
LARGEST_SEED = 2**32 - 1
MOST_SEEDS = 1000
MOST_PROCESSES = 1024
MOST_PIXELS = 4096

# Options of a single schedule.
_OF_SCHEDULE = {
    "steps": ("milestones", "milestone_factor"),
    "cosine": ("restart_epochs",),
}


def name_help(what: str, choices: str) -> Any:
    """Returns the help of an option that takes a name or MODULE:NAME."""
    # The choices are in the help text, not in the placeholder: the parser wraps text
    # between words, but breaks a placeholder anywhere.
    return tyro.conf.arg(
        metavar="NAME", help=f"{what}: {choices} for your own (docs/own_code.md)."
    )


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Options of the network and the dataset."""

    dataset: Annotated[str, tyro.conf.arg(metavar="|".join(registry.NAMES))] = "digits"
    """Dataset. CIFAR and ImageNet need `prepare`; PATH has train/CLASS, test/CLASS."""
    image_size: int | None = None
    """Resize and center-crop folder:PATH to this side in pixels. Default: no change."""
    model: Annotated[str, name_help("Network", networks.CHOICES)] = "custom_cnn"
    batch_norm: bool = True
    """Use batch normalization, in networks that have it."""
    model_options: tuple[str, ...] = ()
    """Other options of the network, each as NAME=VALUE, such as stem=cifar."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of the network; parameters and statistics stay float32."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Options of the training loop."""

    epochs: int = 20
    """Number of training epochs."""
    validation_fraction: float = 0.0
    """Share of training data held out to select the best epoch; 0 uses test images."""
    ema_decay: float | None = None
    """Evaluate a moving average of the weights with this decay. Default: no average."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss, in [0, 1)."""
    batch_size: int = 128
    """Images per step, summed over all devices."""

    chunk_steps: int | None = None
    """Maximum steps per compiled call. Default: 50; 1 on CPUs and for ImageNet."""


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Options of this machine and its files."""

    config: Path | None = None
    """YAML file of options, such as epochs: 5; those on the command line win."""
    parallel: ParallelName = "auto"
    """Device strategy: auto means mesh, on all devices; jit uses only the first."""
    runs_dir: Path = Path("runs")
    """Folder in which new run folders, named after their options, are created."""
    cache_dir: Path | None = None
    """Cache of decoded images. Default: insgd_optax in $XDG_CACHE_HOME or ~/.cache."""
    skip_corrupt_images: bool = False
    """Skip images of folder:PATH that cannot be decoded, and list them."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard."""
    data_workers: int | None = None
    """Processes that decode ImageNet, per training process. Default: one per CPU."""

    def __post_init__(self) -> None:
        check_numbers(self, data_workers=(0, MOST_PROCESSES))

    @property
    def num_data_workers(self) -> int:
        """Number of data workers. Default: one per usable CPU core."""
        return num_cores() if self.data_workers is None else self.data_workers

    @property
    def cache_folder(self) -> Path:
        """The folder of `cache_dir`, or its default."""
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return (self.cache_dir or Path(user_cache) / "insgd_optax").expanduser()

    def to_json(self) -> dict[str, Any]:
        """Returns the options in JSON-serializable form, except `NOT_STORED`."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in NOT_STORED
        }


@dataclasses.dataclass(frozen=True)
class TrainingConfig(
    MachineConfig, LoopConfig, ScheduleConfig, OptimizerConfig, NetworkConfig
):
    """Options that all training commands but `table` share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        registry.check_name(self.dataset)
        networks.check_name(self.model)
        # The record must name the same folder when read from elsewhere.
        object.__setattr__(self, "dataset", registry.absolute(self.dataset))
        check_numbers(
            self,
            momentum=(0, FLOAT32_MAX),
            weight_decay=(0, FLOAT32_MAX),
            polyak_factor=(0, FLOAT32_MAX),
            damping=(0, FLOAT32_MAX),
            dampening=(0, 1),
            label_smoothing=(0, FLOAT32_MAX),
            validation_fraction=(0, FLOAT32_MAX),
            ema_decay=(0, FLOAT32_MAX),
            clip_norm=(0, FLOAT32_MAX),
            eps=(0, FLOAT32_MAX),
            power_decay=(0, FLOAT32_MAX),
            covariance_decay=(0, FLOAT32_MAX),
            covariance_every=(1, MOST_STEPS),
            covariance_max_rows=(1, MOST_STEPS),
            covariance_max_dim=(2, MOST_STEPS),
            epochs=(1, MOST_EPOCHS),
            batch_size=(1, MOST_STEPS),
            milestone_factor=(0, FLOAT32_MAX),
            restart_epochs=(1, MOST_EPOCHS),
            warmup_epochs=(0, MOST_EPOCHS),
            chunk_steps=(1, MOST_STEPS),
            image_size=(1, MOST_PIXELS),
        )
        for name in (
            *("momentum", "power_decay", "covariance_decay"),
            *("label_smoothing", "validation_fraction", "ema_decay"),
        ):
            if not (getattr(self, name) or 0) < 1:
                raise ValueError(
                    f"{option(name)} must be below 1, got {getattr(self, name)}"
                )
        for name in ("eps", "clip_norm"):
            if getattr(self, name) == 0:
                raise ValueError(f"{option(name)} must be above 0, got 0")
        if self.clip_norm is not None and self.polyak_factor is not None:
            # The Polyak cap computes the slope of the loss along the step, for which it
            # needs the unclipped gradient.
            raise ValueError(
                "--clip-norm and --polyak-factor both bound the step: use one of them"
            )
        if self.image_size is not None and not registry.can_resize(self.dataset):
            raise ValueError(
                "--image-size applies only to folder:PATH; it has no effect with "
                f"--dataset {self.dataset}. Remove it"
            )
        rising = sorted({0, *self.milestones})
        if rising != [0, *self.milestones] or len(rising) == 1:
            raise ValueError(
                "--milestones must be one or more epochs, each at least 1 and after "
                f"the one before it, got {self.milestones}"
            )
        if max(self.milestones) > MOST_EPOCHS:
            raise ValueError(
                f"--milestones must be at most {MOST_EPOCHS}, got {self.milestones}"
            )
        if self.schedule == "steps" and min(self.milestones) < self.warmup_epochs:
            raise ValueError(
                "--milestones must not lie in the "
                f"{counted(self.warmup_epochs, 'epoch')} of warm-up, got "
                f"{self.milestones}"
            )
        for name, (cause, remedy) in sorted(without_effect(vars(self)).items()):
            if _is_given(self, name):
                raise ValueError(
                    f"{option(name)} has no effect with {cause}. Remove it, or {remedy}"
                )
        self._check_model()

    def _check_model(self) -> None:
        if not self.batch_norm:
            _check_options("--no-batch-norm", self.model, {"batch_norm": False})
        try:
            options = networks.parse_options(self.model_options)
        except ValueError as error:
            raise ValueError(f"--model-options {error}") from error
        _check_options(
            " ".join(["--model-options", *self.model_options]), self.model, options
        )
        if not self.batch_norm and "batch_norm" in options:
            raise ValueError(
                "--no-batch-norm and --model-options batch_norm are the same option: "
                "use one of them"
            )

    @property
    def data_name(self) -> str:
        """A short name of the dataset; for a folder, that of the folder."""
        return registry.short_name(self.dataset)

    def title(self, dataset: str) -> str:
        """Network and dataset, for titles of plots.

        Args:
            dataset: the name that the dataset has, used if the option is MODULE:NAME.
        """
        network = " ".join([self.model, *self.model_options])
        without = "" if self.batch_norm else " without batch normalization"
        is_own = own_code.is_reference(self.dataset)
        return f"{network}{without} on {dataset if is_own else self.data_name}"

    @property
    def network_options(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        # Only if given, since not every network has batch normalization.
        options = {} if self.batch_norm else {"batch_norm": False}
        return options | networks.parse_options(self.model_options)

    def load_dataset(self) -> Dataset:
        """Loads the dataset; see `registry.load` for the errors."""
        return registry.load(
            self.dataset,
            self.cache_folder,
            skip_corrupt=self.skip_corrupt_images,
            image_size=self.image_size,
        )


def without_effect(values: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the options without effect, with the cause and a remedy."""
    found = {
        name: (f"--schedule {values['schedule']}", "use another schedule")
        for other, names in _OF_SCHEDULE.items()
        if other != values["schedule"]
        for name in names
    }
    if values.get("normalizer") == "log1p":
        found["eps"] = "--normalizer log1p", "use another normalizer"
    if values.get("momentum") == 0:
        found["nesterov"] = "--momentum 0", "use a positive momentum"
    return found


def check_effect(config: TrainingConfig, names: Iterable[str], where: str) -> None:
    """Raises a ValueError if an option is given that no optimizer in use takes.

    Args:
        config: the options.
        names: names of the optimizers in use.
        where: ends the sentence "it has no effect ...".
    """
    for name, owners in optimizers.OPTIONS.items():
        taken = any(optimizers.has_option(each, name) for each in names)
        if not taken and _is_given(config, name):
            raise ValueError(
                f"{option(name)} applies only to {owners}; it has no effect {where}. "
                "Remove it"
            )


def _is_given(config: TrainingConfig, name: str) -> bool:
    """Returns whether an option differs from its default."""
    return getattr(config, name) != getattr(TrainingConfig, name)


def option(field: str) -> str:
    """Returns a field's name on the command line."""
    return "--" + field.replace("_", "-")


def check_numbers(config: Any, **ranges: tuple[float, float]) -> None:
    """Raises unless the named options are None or within their ranges.

    Args:
        config: the options.
        **ranges: lower and upper bound by field name.

    Raises:
        ValueError: naming the option and its range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        # Written so that NaN is refused.
        if not value >= least:
            raise ValueError(f"{option(name)} must be at least {least}, got {value}")
        if value > most:
            raise ValueError(f"{option(name)} must be at most {most}, got {value}")


def _check_options(given: str, model: str, options: dict[str, Any]) -> None:
    try:
        networks.check(model, options)
    except models.NetworkError as error:
        raise ValueError(f"{given}: {error}") from error
