"""What came of runs: accuracies over seeds, and INSGD's mean multiplier."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from train.config import RunConfig
from train.experiments import series
from train.experiments.mean_std import MeanStd, mean_std
from train.experiments.rates.points import Point
from train.run import folder as run_folder
from train.run.metrics import EpochMetrics


class Accuracies(NamedTuple):
    """Test accuracies in percent, over seeds.

    `best` is of the epoch with the highest top-1 on the test images, as in the paper;
    `top5` is of that same epoch.
    """

    seeds: int
    best: MeanStd
    last: MeanStd
    top5: MeanStd

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts = {name: getattr(self, name)._asdict() for name in ("best", "last")}
        return {"seeds": self.seeds, **parts, "top5_at_best": self.top5._asdict()}


def accuracies(runs: Sequence[Sequence[EpochMetrics]]) -> Accuracies:
    """Summarizes finished runs, at least one."""
    best = [max(rows, key=lambda row: row["test_top1"]) for rows in runs]
    return Accuracies(
        len(runs),
        best=mean_std([100 * row["test_top1"] for row in best]),
        last=mean_std([100 * rows[-1]["test_top1"] for rows in runs]),
        top5=mean_std([100 * row["test_top5"] for row in best]),
    )


def mean_multiplier(rows: Sequence[EpochMetrics]) -> float:
    """What INSGD and a Polyak bound multiplied the learning rate by, over the epochs.

    INSGD's is the mean over all scaled parameters at the end of each epoch; a bound's
    the mean over its steps. Of other optimizers it is 1.
    """
    return statistics.fmean(
        row.get("mean_multiplier", 1.0) * row.get("train_polyak_scale", 1.0)
        for row in rows
    )


def sweep_point(configs: Sequence[RunConfig]) -> Point | None:
    """What came of runs that differ by their seed; None if none is finished."""
    runs = [rows for config in configs if (rows := series.finished_metrics(config))]
    if not runs:
        return None
    rate = configs[0].initial_learning_rate
    return Point(
        rate,
        rate * statistics.fmean(map(mean_multiplier, runs)),
        accuracies(runs).last,
        len(runs),
    )


def provenance(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """Returns the commits and devices that finished runs were trained with."""
    environments = [
        environment
        for config in configs
        if series.finished_metrics(config)
        for environment in run_folder.load(series.run_path(config)).environments
    ]
    devices = {device for each in environments for device in each.get("devices", [])}
    return {
        "commits": sorted({str(each.get("commit")) for each in environments}),
        "devices": sorted(devices),
    }
