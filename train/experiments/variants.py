"""Parses optimizer variants such as "insgd-l2+layer+log1p+polyak@0.5"."""

import dataclasses
import math
import re
from typing import Any

from train.config import MOST_SEEDS, TrainingConfig, check_effect
from train.experiments.workers import Processes
from train.run_config import RunConfig, with_effect
from train.training import optimizers

_CHANGES: dict[str, dict[str, Any]] = {
    "layer": {"scope": "layer"},
    "kernel": {"scope": "kernel"},
    "log": {"normalizer": "log"},
    "log1p": {"normalizer": "log1p"},
    "power": {"normalizer": "power"},
    "kron": {"conv_covariance": "kronecker"},
}
_POLYAK = re.compile(r"polyak(\d+\.?\d*|\.\d+)?")
_POLYAK_FACTOR = 1.0
FORM = "NAME[+layer|+kernel][+log|+log1p|+power][+kron][+polyak[FACTOR]][@RATE]"


@dataclasses.dataclass(frozen=True)
class Variant:
    """An optimizer with changes to the shared options.

    Attributes:
        text: the variant as written, for legends.
        optimizer: name of the optimizer.
        changes: options that differ from the shared ones.
        learning_rate: the learning rate. None for the optimizer's default.
    """

    text: str
    optimizer: str
    changes: dict[str, Any]
    learning_rate: float | None

    def config(
        self, setting: TrainingConfig, seed: int, learning_rate: float | None = None
    ) -> RunConfig:
        """Returns a run's configuration; `learning_rate` overrides the variant's."""
        shared = {
            field.name: getattr(setting, field.name)
            for field in dataclasses.fields(TrainingConfig)
        }
        rate = self.learning_rate if learning_rate is None else learning_rate
        options = shared | {"optimizer": self.optimizer} | self.changes
        bound = options["polyak_factor"]
        # Drop options that only other optimizers in the list take. Keep the Polyak cap,
        # so that an optimizer without one is refused instead of shown as capped.
        options = with_effect(options) | {"polyak_factor": bound}
        return RunConfig(**options | {"learning_rate": rate, "seed": seed})


def parse(text: str) -> Variant:
    """Parses a variant.

    Raises:
        ValueError: if it is malformed; the message states the expected form.
    """
    words, at, rate = text.partition("@")
    name, *parts = words.split("+")
    if parts and f"{name}+{parts[0]}" in optimizers.NAMES:
        name, parts = f"{name}+{parts[0]}", parts[1:]
    optimizers.check_name(name)
    changes: dict[str, Any] = {}
    for part in parts:
        change = _CHANGES.get(part, {})
        if bound := _POLYAK.fullmatch(part):
            change = {"polyak_factor": float(bound[1] or _POLYAK_FACTOR)}
        known = change and all(optimizers.has_option(name, each) for each in change)
        if known and changes.keys().isdisjoint(change):  # +layer+kernel has no meaning.
            changes |= change
        else:
            raise ValueError(
                f"{text!r} is not a valid optimizer. Expected {FORM}. "
                "INSGD accepts layer, kernel, log, log1p and power; "
                f"{optimizers.OPTIONS['polyak_factor']} accept polyak or polyak0.5; "
                f"{optimizers.OPTIONS['damping']} accept kron"
            )
    try:
        learning_rate = float(rate) if at else None
    except ValueError:
        learning_rate = math.nan
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(
            f"{text!r}: the learning rate after @ must be positive: {FORM}"
        )
    return Variant(text, name, changes, learning_rate)


@dataclasses.dataclass(frozen=True)
class SeriesConfig(TrainingConfig):
    """Options of a command that trains with several optimizers and seeds."""

    optimizers: tuple[str, ...] = ()
    """Optimizers, each in a form that `compare` takes, such as insgd-l2@0.1."""
    seeds: int = 1
    """Runs per optimizer and learning rate, with seeds from 0."""
    processes: Processes = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = self.optimizers
        if not texts:
            raise ValueError("--optimizers needs at least one value")
        found = [parse(text) for text in texts]
        if len(set(texts)) < len(texts):
            raise ValueError(f"--optimizers contains a duplicate: {' '.join(texts)}")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ValueError(
                f"--seeds must be from 1 to {MOST_SEEDS}, got {self.seeds}"
            )
        names = [each.optimizer for each in found]
        check_effect(self, names, f"on {', '.join(texts)}")
        for variant in found:
            variant.config(self, 0, self._rate_in_checks)

    @property
    def _rate_in_checks(self) -> float | None:
        """The learning rate in checks of the options; None for the variant's."""
        return None

    def runs(self, text: str, learning_rate: float | None = None) -> list[RunConfig]:
        """Returns one run per seed of an optimizer; see `Variant.config`."""
        variant = parse(text)
        return [variant.config(self, seed, learning_rate) for seed in range(self.seeds)]
