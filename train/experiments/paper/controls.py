"""Control rows that separate INSGD's normalization from its learning rate."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from train.config import RunConfig
from train.experiments import results, series
from train.training import optimizers


@dataclasses.dataclass(frozen=True)
class Control:
    """A control row of an INSGD row.

    Attributes:
        name: what differs from the INSGD row.
        change: maps an INSGD run to the options that differ for the same seed; None if
            they depend on results that the run does not have.
    """

    name: str
    change: Callable[[RunConfig], dict[str, Any] | None]

    def config(self, insgd: RunConfig) -> RunConfig | None:
        """Returns the control of one INSGD run."""
        change = self.change(insgd)
        return None if change is None else dataclasses.replace(insgd, **change)


def _sgd_at_effective_rate(insgd: RunConfig) -> dict[str, Any] | None:
    rows = series.finished_metrics(insgd)
    if rows is None:
        return None
    rate = insgd.initial_learning_rate * results.mean_multiplier(rows)
    if not math.isfinite(rate):
        return None
    # Three digits, for readable folder names.
    return {
        "optimizer": "sgd",
        "learning_rate": float(f"{rate:.3g}"),
        "polyak_factor": None,  # Part of the effective rate.
        "scope": RunConfig.scope,  # An option of INSGD, like the next.
        "normalizer": RunConfig.normalizer,
    }


CONTROLS = (
    Control("SGD at INSGD's effective rate", _sgd_at_effective_rate),
    Control("scope layer", lambda insgd: {"scope": "layer"}),
    Control("normalizer log1p", lambda insgd: {"normalizer": "log1p"}),
)


def controls_for(row: Sequence[RunConfig | None]) -> dict[str, list[RunConfig | None]]:
    """Returns the controls of a row; empty unless it is INSGD.

    Args:
        row: its runs, which differ in their seed.

    Returns:
        The runs of each control by name, None where a run depends on one that is not
        finished. A control equal to the row itself is left out.
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
    """Returns the names of an optimizer's controls."""
    if not optimizers.is_insgd(optimizer):
        return []
    return [control.name for control in CONTROLS]
