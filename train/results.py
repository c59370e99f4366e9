"""What came of runs: accuracies over seeds, and INSGD's mean multiplier."""

import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from train import run_folder, series
from train.config import RunConfig
from train.metrics import Row
from train.spread import Spread, spread


class Accuracies(NamedTuple):
    """Test accuracies in percent, over seeds.

    `best` is of the epoch with the highest top-1 on the test images, as in the paper;
    `top5` is of that same epoch.
    """

    seeds: int
    best: Spread
    last: Spread
    top5: Spread

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts = {name: getattr(self, name)._asdict() for name in ("best", "last")}
        return {"seeds": self.seeds, **parts, "top5_at_best": self.top5._asdict()}


def accuracies(runs: Sequence[Sequence[Row]]) -> Accuracies:
    """Summarizes finished runs, at least one."""
    best = [max(rows, key=lambda row: row["test_top1"]) for rows in runs]
    return Accuracies(
        len(runs),
        best=spread([100 * row["test_top1"] for row in best]),
        last=spread([100 * rows[-1]["test_top1"] for rows in runs]),
        top5=spread([100 * row["test_top5"] for row in best]),
    )


def mean_multiplier(rows: Sequence[Row]) -> float | None:
    """What INSGD multiplied the learning rate by: the mean over the ends of epochs.

    At each, it is the mean over all scaled parameters. Other optimizers have None.
    """
    if "mean_multiplier" not in rows[0]:
        return None
    return statistics.fmean(row["mean_multiplier"] for row in rows)


def origins(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """Which commits and devices finished runs came from."""
    environments = [
        json.loads((series.place(config) / run_folder.RECORD).read_text())[
            "environment"
        ]
        for config in configs
        if series.finished(config)
    ]
    devices = {device for each in environments for device in each["devices"]}
    return {
        "commits": sorted({str(each["commit"]) for each in environments}),
        "devices": sorted(devices),
    }
