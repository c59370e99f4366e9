"""`python -m train compare`: several optimizers side by side, as in Figure 3."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from typing import Annotated

import tyro

from train import markdown
from train.experiments import reports, results, series, variants
from train.experiments.paper import controls
from train.experiments.variants import SeriesConfig
from train.run import plots
from train.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class CompareConfig(SeriesConfig):
    """Train with several optimizers and plot test error over epochs; resumable."""

    optimizers: Annotated[
        tuple[str, ...], tyro.conf.arg(help=f"Optimizers, each {variants.FORM}.")
    ] = ("sgd", "adam", "insgd-l1", "insgd-l2")
    controls: bool = False
    """Add controls: SGD at INSGD's effective rate, scope=layer, normalizer=log1p."""


def compare(config: CompareConfig) -> int:
    """Runs what is missing, then writes and prints the report."""
    configs: dict[str, list[RunConfig | None]] = {
        text: [*config.runs(text)] for text in config.optimizers
    }
    status = series.complete(series.by_seed(configs.values()), config.processes)
    control_of: dict[str, str] = {}
    if config.controls:
        configs, control_of = _with_controls(configs)
        if not status:
            status = series.complete(series.by_seed(configs.values()), config.processes)
    finished = {
        name: [
            rows for each in runs if each and (rows := series.finished_metrics(each))
        ]
        for name, runs in configs.items()
    }
    finished = {name: runs for name, runs in finished.items() if runs}
    if not finished:
        return status

    found = {name: results.accuracies(runs) for name, runs in finished.items()}
    shown = _with_rates(config, configs, control_of)
    table = markdown.table(
        ("Optimizer", "Learning rate", "Last epoch", "Best epoch", "Seeds"),
        [
            (
                shown[name],
                f"{_mean_rate(configs[name]):g}",
                str(each.last),
                str(each.best),
                f"{each.seeds}/{config.seeds}",
            )
            for name, each in found.items()
        ],
    )
    note = (
        "Top-1 on the test images in percent, mean ± standard deviation over seeds; "
        f"the best epoch is selected on {_picked_on(config)}."
    )
    folder = series.report_folder("compare", config)
    all_runs = [each for runs in configs.values() for each in runs if each]
    values = {
        "optimizers": {name: each.to_json() for name, each in found.items()},
        # In percent, after each epoch of each finished run.
        "test_top1": {
            name: [[100 * row["test_top1"] for row in rows] for rows in runs]
            for name, runs in finished.items()
        },
        "settings": config.to_json(),
        **results.provenance(all_runs),
    }
    setting = series.title(config, all_runs)
    title = f"{setting}, {markdown.counted(config.seeds, 'seed')}"
    plots.plot_test_error(
        {shown[name]: runs for name, runs in finished.items()},
        folder / "test_error.png",
        {shown[name]: shown[row] for name, row in control_of.items()},
        title,
    )
    text = f"{table}\n\n{note}\n"
    reports.write(folder, "compare", text, values, "test_error.png")
    return status


def _picked_on(config: CompareConfig) -> str:
    if not config.validation_fraction:
        return "these same images"
    return f"{config.validation_fraction:g} of the training images, set aside for it"


def _with_controls(
    configs: dict[str, list[RunConfig | None]],
) -> tuple[dict[str, list[RunConfig | None]], dict[str, str]]:
    """Returns the rows with their controls, and the row of each control by name."""
    extended, control_of = {}, {}
    for text, runs in configs.items():
        extended[text] = runs
        for control, theirs in controls.controls_for(runs).items():
            name = f"{text}: {control}"
            extended[name], control_of[name] = theirs, text
    return extended, control_of


def _with_rates(
    config: CompareConfig, names: Iterable[str], control_of: Mapping[str, str]
) -> dict[str, str]:
    """Returns names as shown: with each optimizer's rate if any rate was given."""
    parsed = [variants.parse(text) for text in config.optimizers]
    if all(each.learning_rate is None for each in parsed):
        return {name: name for name in names}
    rated = {
        each.text: each.text
        if each.learning_rate is not None
        else f"{each.text}@{each.config(config, 0).initial_learning_rate:g}"
        for each in parsed
    }
    return {
        name: rated[row] + name.removeprefix(row)
        for name in names
        for row in [control_of.get(name, name)]
    }


def _mean_rate(configs: list[RunConfig | None]) -> float:
    """Returns the mean learning rate; that of a control differs between seeds."""
    return statistics.fmean(each.initial_learning_rate for each in configs if each)
