"""Options of `python -m train run`, with validation."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from train import own_code
from train.config import (
    FLOAT32_MAX,
    LARGEST_SEED,
    TrainingConfig,
    check_effect,
    check_numbers,
    name_help,
    option,
    without_effect,
)
from train.training import optimizers
from train.training.distributed import Launch

# Options that `--resume` may change; the others identify the run.
FREE_ON_RESUME = {
    "epochs",
    "parallel",
    "runs_dir",
    "run_dir",
    "resume",
    "on_divergence",
    "tensorboard",
    "cache_dir",
    "skip_corrupt_images",
    "data_workers",
    "config",
    "launch",
}

# Options that `_name` does not add by their own names: the name of a run folder always
# contains them, rewords them or leaves them out.
_NOT_ADDED = (
    FREE_ON_RESUME
    | {"dataset", "model", "model_options", "batch_norm", "dtype", "optimizer"}
    | {"learning_rate", "scope", "normalizer", "schedule", "polyak_factor"}
    | {"batch_size", "seed"}
)

_MOST_NAME_BYTES = 200


@dataclasses.dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """Train a network on images and write the results to a run folder."""

    optimizer: Annotated[str, name_help("Optimizer", optimizers.CHOICES)] = "insgd-l2"
    learning_rate: float | None = None
    """Initial learning rate. Default: the optimizer's own, 0.1 for SGD and INSGD."""
    seed: int = 0
    """Seed of parameters, validation images, shuffling, augmentation and dropout."""

    run_dir: Path | None = None
    """Folder of the new run. Default: a new one in --runs-dir."""
    resume: Path | None = None
    """Resume this run folder from its latest checkpoint, with the run's options."""
    on_divergence: Literal["stop", "continue"] = "stop"
    """If the loss or a parameter is not finite: stop, or continue to the last epoch."""
    launch: Annotated[Launch, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=Launch
    )
    """Options to train in several processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        optimizers.check_name(self.optimizer)
        check_numbers(self, learning_rate=(0, FLOAT32_MAX), seed=(0, LARGEST_SEED))
        check_effect(self, [self.optimizer], f"with --optimizer {self.optimizer}")
        if self.learning_rate is None and not self._default_learning_rate:
            raise ValueError(
                f"{self.optimizer} has no default learning rate: give --learning-rate, "
                "or in --optimizers append @RATE to its name"
            )
        self.launch.check()
        if self.run_dir is not None and self.resume is not None:
            raise ValueError("--run-dir is for a new run: remove it, or --resume")

    @property
    def initial_learning_rate(self) -> float:
        """The learning rate. Default: the optimizer's."""
        if self.learning_rate is not None:
            return self.learning_rate
        assert self._default_learning_rate is not None  # Checked at the start.
        return self._default_learning_rate

    @property
    def _default_learning_rate(self) -> float | None:
        return optimizers.default_learning_rate(self.optimizer)

    def own_code(self) -> dict[str, str]:
        """Checksums of the files with the user's own code, by MODULE:NAME."""
        return own_code.checksums(*(getattr(self, name) for name in own_code.FIELDS))

    def own_code_options(self) -> str:
        """Command-line options that `--resume` needs: see `run.folder.load`."""
        return own_code.options(vars(self))

    @property
    def readable_name(self) -> str:
        """A name for the run folder, with the options that differ from the defaults."""
        return self._name(
            {
                f.name: f.default
                for f in dataclasses.fields(self)
                if f.name not in _NOT_ADDED
            }
        )

    @property
    def former_name(self) -> str:
        """The name of the run folder in earlier versions."""
        return self._name({})

    def _name(self, named: Mapping[str, Any]) -> str:
        """Builds a name; adds options that differ from their defaults in `named`."""
        parts = [
            self.data_name,
            own_code.short(self.model),
            own_code.short(self.optimizer),
        ]
        parts.append(f"lr{self.initial_learning_rate:g}")
        for field in ("batch_norm", "scope", "normalizer", "schedule", "dtype"):
            value = getattr(self, field)
            if value != getattr(RunConfig, field):
                parts.append("no-batch-norm" if field == "batch_norm" else str(value))
        if self.polyak_factor is not None:
            parts.append(f"polyak{self.polyak_factor:g}")
        parts += [re.sub("[=/]", "-", text) for text in self.model_options]
        for field, default in named.items():
            if (value := getattr(self, field)) == default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            shown = "-".join(
                f"{v:g}" if isinstance(v, float) else str(v) for v in values
            )
            text = field.replace("_", "-")
            parts.append(text if value is True else f"{text}{shown}")
        if self.batch_size != RunConfig.batch_size:
            parts.append(f"batch{self.batch_size}")
        # File systems allow 255 bytes, and a series adds epochs and a hash.
        name = "-".join(parts).encode()[:_MOST_NAME_BYTES].decode(errors="ignore")
        return f"{name}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns JSON-serializable options, with the value of the learning rate."""
        return super().to_json() | {"learning_rate": self.initial_learning_rate}

    def shared_options(self) -> dict[str, Any]:
        """Returns the options that must be equal in all processes of a run."""
        machine_options = ("cache_dir", "data_workers")
        return {
            option(name): value
            for name, value in self.to_json().items()
            if name not in machine_options
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunConfig":
        """Inverts `to_json`."""
        values = dict(values)
        for field in ("runs_dir", "run_dir", "resume", "cache_dir"):
            if values.get(field) is not None:
                values[field] = Path(values[field])
        for field in ("milestones", "model_options"):
            values[field] = tuple(values[field])
        # Old records may contain options without effect.
        return cls(**with_effect(values))


def with_effect(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a run, with defaults for those without effect."""
    unused = {
        name
        for name in optimizers.OPTIONS
        if not optimizers.has_option(values["optimizer"], name)
    }
    unused |= without_effect(values).keys()
    return {
        name: getattr(RunConfig, name) if name in unused else value
        for name, value in values.items()
    }
