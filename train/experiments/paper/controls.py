"""Control rows that separate INSGD's normalization from its learning rate."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from train.experiments import results, series
from train.run_config import RunConfig, with_effect
from train.training import optimizers


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
    }


# By name of the control: the options in which it differs from an INSGD run of the same
# seed; None if they depend on results that the run does not have yet, or on an
# effective rate that is not finite.
CONTROLS: dict[str, Callable[[RunConfig], dict[str, Any] | None]] = {
    "SGD at INSGD's effective rate": _sgd_at_effective_rate,
    "scope layer": lambda insgd: {"scope": "layer"},
    "normalizer log1p": lambda insgd: {"normalizer": "log1p"},
}


def controls_for(row: Sequence[RunConfig | None]) -> dict[str, list[RunConfig | None]]:
    """Returns the controls of a row; empty unless it is INSGD.

    Args:
        row: runs of the row, which differ in their seed.

    Returns:
        The runs of each control by name, None where a run depends on one that is not
        finished or has no finite effective rate. A control equal to the row itself is
        left out.
    """
    known = [run for run in row if run is not None]
    if not (known and optimizers.has_option(known[0].optimizer, "normalizer")):
        return {}
    rows = {
        name: [run and _changed(run, change(run)) for run in row]
        for name, change in CONTROLS.items()
    }
    return {name: runs for name, runs in rows.items() if runs != list(row)}


def _changed(run: RunConfig, options: dict[str, Any] | None) -> RunConfig | None:
    if options is None:
        return None
    # Without the options that the control does not take, such as INSGD's eps for SGD.
    return RunConfig(**with_effect(vars(run) | options))


def names(optimizer: str) -> list[str]:
    """Returns the names of an optimizer's controls."""
    if not optimizers.has_option(optimizer, "normalizer"):
        return []
    return list(CONTROLS)
