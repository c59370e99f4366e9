"""(c), (e) and (f): runs on images, by the application's own commands.

Each run is saved after every epoch and found again by its options, so a task that was
stopped resumes.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings
from benchmarks.task import Result, Skipped, Stopped
from train.errors import UserError
from train.experiments import results, series
from train.experiments.paper import presets
from train.experiments.paper.table import TableConfig, table
from train.experiments.rates.robustness import RobustnessConfig, robustness
from train.run import metrics
from train.run.folder import RunFolder
from train.run_config import RunConfig

# (c) Learning rates: those of Table 3; for LMS-Newton, which is not in it, the default.
RESNET20_RATES = {"sgd": 0.1, "insgd-l2": 0.1, "lms-newton": 0.03}


def dataset(settings: Settings) -> str:
    """The dataset of all runs.

    Raises:
        Skipped: if none was given.
    """
    if settings.dataset is None:
        raise Skipped("needs images: pass --data")
    return settings.dataset


def resnet20_options(settings: Settings) -> dict[str, Any]:
    """Options of the runs of (c) and of PyTorch's run in (d), as in Table 3."""
    paper = presets.TABLES[3]
    options = presets.options(paper, paper.rows[0], settings.sizes.epochs)
    return options | {
        "model_options": settings.sizes.resnet20,
        "dtype": settings.sizes.dtype,
    }


def train_resnet20(settings: Settings, out: Path, optimizer: str) -> Result:
    """(c) Trains ResNet-20; returns time and accuracy.

    Raises:
        Stopped: if a signal stopped it; another call resumes the training.
    """
    config = RunConfig(
        **resnet20_options(settings)
        | {"optimizer": optimizer, "learning_rate": RESNET20_RATES[optimizer]},
        dataset=dataset(settings),
        **_folders(out),
    )
    status = series.complete([config])
    rows = series.finished_metrics(config)
    if rows is None:
        path = RunFolder(series.run_path(config), {}).metrics
        done = len(metrics.read(path)) if path.exists() else 0
        if not status:
            raise UserError(f"the run {path.parent} ended without all its metrics")
        raise Stopped({"epochs": done, "of": config.epochs})
    return summarize(rows) | {
        "optimizer": optimizer,
        "learning_rate": config.initial_learning_rate,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "accuracies": results.accuracies([rows]).to_json(),
        "run": series.run_path(config).name,
    }


def summarize(rows: list[dict[str, Any]]) -> Result:
    """Times and accuracies of a run's epochs, with the same keys for PyTorch and JAX.

    An epoch's time includes training and testing, not saving; the first also includes
    compilation. The time of an epoch that was resumed midway is unknown, hence NaN, and
    so is the total; the median is that of the known times.
    """
    seconds = [row["seconds"] for row in rows]
    known = [each for each in seconds if math.isfinite(each)]
    median = statistics.median(known) if known else math.nan
    return {
        "epochs": len(rows),
        "train_and_test_seconds": sum(seconds),
        "first_epoch_seconds": seconds[0],
        "median_epoch_seconds": median,
        "seconds_at_median": median * len(rows),
        "last_top1": rows[-1]["test_top1"],
        "best_top1": max(row["test_top1"] for row in rows),
        "test_top1": [row["test_top1"] for row in rows],
        "seconds": seconds,
    }


def paper_table(
    settings: Settings, out: Path, number: int, rows: tuple[int, ...], seeds: int
) -> Result:
    """(e) A table of the paper, or rows of it, with controls.

    Raises:
        Stopped: if a signal stopped it; another call resumes it.
    """
    config = TableConfig(
        number,  # type: ignore[arg-type]
        rows=rows,
        seeds=seeds,
        epochs=settings.sizes.epochs,
        dataset=dataset(settings),
        controls=True,
        **_folders(out),
    )
    status = table(config)
    pattern = f"table{number}-{settings.sizes.epochs}epochs-*/table.json"
    return _report(max(out.glob(f"runs/{pattern}"), key=_written), status)


def learning_rates(settings: Settings, out: Path) -> Result:
    """(f) The range of usable learning rates of each optimizer on ResNet-20.

    Raises:
        Stopped: if a signal stopped it; another call resumes it.
    """
    config = RobustnessConfig(
        **settings.sizes.rates,
        model="resnet20",
        model_options=settings.sizes.resnet20,
        dtype=settings.sizes.dtype,  # type: ignore[arg-type]
        dataset=dataset(settings),
        **_folders(out),
    )
    status = robustness(config)
    folder = series.report_folder("robustness", config)
    return _report(folder / "robustness.json", status)


def _folders(out: Path) -> dict[str, Any]:
    return {"runs_dir": out / "runs", "cache_dir": out / "cache"}


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _report(path: Path, status: int) -> Result:
    """Reads a report that was just written; a stopped command's is incomplete."""
    found = {"markdown": "", "values": None}
    if path.exists():
        text = path.with_suffix(".md").read_text()
        found = {"markdown": text, "values": json.loads(path.read_text())}
    if status:
        raise Stopped(found)
    return found
