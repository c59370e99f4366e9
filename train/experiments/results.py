"""Statistics over finished runs."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from train.experiments import series
from train.experiments.rates.points import Point
from train.experiments.reports import MeanStd, mean_std
from train.run import folder as run_folder
from train.run import metrics
from train.run.metrics import EpochMetrics
from train.run_config import RunConfig


class Accuracies(NamedTuple):
    """Test accuracies in percent, over seeds.

    `best` is the top-1 accuracy of the best epoch: the one with the highest validation
    accuracy or, in runs without validation images, with the highest test accuracy, as
    in the paper. `top5` is the top-5 accuracy of the same epoch, and `last` the top-1
    accuracy of the last epoch.
    """

    seeds: int
    best: MeanStd
    last: MeanStd
    top5: MeanStd

    def to_json(self) -> dict[str, Any]:
        """Returns the accuracies in JSON-serializable form."""
        parts = {name: getattr(self, name)._asdict() for name in ("best", "last")}
        return {"seeds": self.seeds, **parts, "top5_at_best": self.top5._asdict()}


def accuracies(runs: Sequence[Sequence[EpochMetrics]]) -> Accuracies:
    """Computes the accuracies of at least one finished run."""
    best = [metrics.best(rows) for rows in runs]
    return Accuracies(
        len(runs),
        best=mean_std([100 * row["test_top1"] for row in best]),
        last=mean_std([100 * rows[-1]["test_top1"] for rows in runs]),
        top5=mean_std([100 * row["test_top5"] for row in best]),
    )


def mean_multiplier(rows: Sequence[EpochMetrics]) -> float:
    """Returns the mean factor by which INSGD and a Polyak cap scale the learning rate.

    INSGD's factor is the mean over all scaled parameters at the end of each epoch; that
    of a cap is the mean over steps. For other optimizers, the result is 1.
    """
    return statistics.fmean(
        row.get("mean_multiplier", 1.0) * row.get("train_polyak_scale", 1.0)
        for row in rows
    )


def sweep_point(configs: Sequence[RunConfig]) -> Point | None:
    """Summarizes runs that differ in their seed; None if none is finished."""
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


def provenance(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """Returns what finished runs were trained with, and where they are.

    Args:
        configs: the runs, of which some may be equal or not finished.

    Returns:
        Their "commits", "devices", "versions" of libraries and "run_folders".
    """
    runs = series.distinct(configs)
    finished = [config for config in runs if series.finished_metrics(config)]
    paths = [series.run_path(config) for config in finished]
    environments = [
        environment
        for config, path in zip(finished, paths, strict=True)
        for environment in run_folder.load(path, config.own_code()).environments
    ]
    versions: list[Any] = []
    for each in environments:
        if "versions" in each and each["versions"] not in versions:
            versions.append(each["versions"])
    devices = {device for each in environments for device in each.get("devices", [])}
    return {
        "commits": sorted({str(each.get("commit")) for each in environments}),
        "devices": sorted(devices),
        "versions": versions,
        "run_folders": [path.name for path in paths],
    }
