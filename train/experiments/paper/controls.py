"""Rows the paper lacks: how much of INSGD is normalization, and how much its rate."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from train.config import RunConfig
from train.experiments import results, series
from train.training import optimizers


@dataclasses.dataclass(frozen=True)
class Control:
    """A row beside an INSGD row.

    Attributes:
        name: what is other.
        change: the options changed, from those of an INSGD run of the same seed; None
            if they depend on that run, and it is not finished or has none to give.
    """

    name: str
    change: Callable[[RunConfig], dict[str, Any] | None]

    def config(self, insgd: RunConfig) -> RunConfig | None:
        """The control of one INSGD run."""
        change = self.change(insgd)
        return None if change is None else dataclasses.replace(insgd, **change)


def _sgd_at_effective_rate(insgd: RunConfig) -> dict[str, Any] | None:
    rows = series.finished_metrics(insgd)
    if rows is None:
        return None
    rate = insgd.initial_learning_rate * results.mean_multiplier(rows)
    if not math.isfinite(rate):
        return None
    # Readable in names of folders, and exact to half a percent.
    return {
        "optimizer": "sgd",
        "learning_rate": float(f"{rate:.3g}"),
        "polyak_factor": None,  # In the rate already.
        "scope": RunConfig.scope,  # INSGD's own, like the normalizer.
        "normalizer": RunConfig.normalizer,
    }


CONTROLS = (
    Control("SGD at INSGD's effective rate", _sgd_at_effective_rate),
    Control("scope layer", lambda insgd: {"scope": "layer"}),
    Control("normalizer log1p", lambda insgd: {"normalizer": "log1p"}),
)


def controls_for(row: Sequence[RunConfig | None]) -> dict[str, list[RunConfig | None]]:
    """The controls of one row: none but for INSGD.

    Args:
        row: its runs, which differ by their seed.

    Returns:
        By name the runs, one for each of the row's; None for those that depend on a
        run that is not finished. A control that is the row itself is left out.
    """
    known = [run for run in row if run is not None]
    if not (known and optimizers.is_insgd(known[0].optimizer)):
        return {}
    rows = {
        control.name: [run and control.config(run) for run in row]
        for control in CONTROLS
    }
    return {name: runs for name, runs in rows.items() if runs != list(row)}


def names(optimizer: str) -> list[str]:
    """What `controls_for` has for a row of an optimizer, before anything is run."""
    if not optimizers.is_insgd(optimizer):
        return []
    return [control.name for control in CONTROLS]
