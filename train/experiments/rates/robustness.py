"""`python -m train robustness`: the learning rates that optimizers tolerate."""

import dataclasses
from typing import Annotated

import tyro

from train import markdown
from train.config import FLOAT32_MAX, option
from train.experiments import plots, reports, results, series, variants
from train.experiments.rates import search as rate_search
from train.experiments.rates.points import (
    Point,
    open_ends,
    spanned_range,
    within_margin,
)
from train.experiments.variants import SeriesConfig
from train.run_config import RunConfig

# Upper bounds of the options, whose lower bound is 0.
_MOST = {"decades": 40, "per_decade": 100, "gap": 40, "margin": 100}


@dataclasses.dataclass(frozen=True)
class RobustnessConfig(SeriesConfig):
    """Measure each optimizer's range of usable learning rates; resumable."""

    optimizers: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help=f"Optimizers, each {variants.FORM.replace('RATE', 'CENTER')}."
        ),
    ] = (
        "sgd",
        "sgd+polyak",
        "insgd-l2",
        "insgd-l2+polyak",
        "insgd-l2+layer+log1p",
        "insgd-l2+layer+log1p+polyak",
        "adam",
        "lars",
        "momo",
        "prodigy",
        "dadapt-adamw",
    )
    decades: float = 5
    """Decades spanned by the first grid of learning rates, around the center."""
    per_decade: int = 2
    """Learning rates per decade of the first grid."""
    gap: float = 0.125
    """Refine the ends of the usable range to gaps of at most this many decades."""
    margin: float = 1.0
    """A rate is usable if its accuracy is at most this many points below the best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0 < value <= most:
                raise ValueError(
                    f"{option(name)} must be greater than 0 and at most {most}, "
                    f"got {value}"
                )
        for text in self.optimizers:
            rates = _rates(self, text)
            if not 1 / FLOAT32_MAX <= rates[0] <= rates[-1] <= FLOAT32_MAX:
                raise ValueError(
                    f"--decades {self.decades:g} around the learning rate of {text!r} "
                    "exceed the range of float32. Use fewer"
                )


def robustness(config: RobustnessConfig) -> int:
    """Runs what is missing, then writes and prints the report."""
    configs = {text: _grid(config, text) for text in config.optimizers}
    while True:
        status = series.complete(_all(configs), config.processes)
        points = {
            text: [
                point for each in rates.values() if (point := results.sweep_point(each))
            ]
            for text, rates in configs.items()
        }
        if status:
            break
        missing = 0
        for text, found in points.items():
            for rate in rate_search.refined(found, config.margin, config.gap):
                configs[text][rate] = config.runs(text, rate)
                missing += 1
        if not missing:
            break
        added = markdown.counted(missing, "learning rate")
        print(f"Adding {added} at the ends of the usable ranges.")
    points = {text: found for text, found in points.items() if found}
    if points:
        _report(config, configs, points)
    return status


def _all(configs: dict[str, dict[float, list[RunConfig]]]) -> list[RunConfig]:
    return series.by_seed(runs for rates in configs.values() for runs in rates.values())


def _grid(config: RobustnessConfig, text: str) -> dict[float, list[RunConfig]]:
    return {rate: config.runs(text, rate) for rate in _rates(config, text)}


def _rates(config: RobustnessConfig, text: str) -> list[float]:
    center = variants.parse(text).config(config, seed=0).initial_learning_rate
    return rate_search.grid(center, config.decades, config.per_decade)


def _report(
    config: RobustnessConfig,
    configs: dict[str, dict[float, list[RunConfig]]],
    points: dict[str, list[Point]],
) -> None:
    text = f"{_table(config, points)}\n\n{_accuracies(points)}\n"
    folder = series.report_folder("robustness", config)
    values = {
        "margin": config.margin,
        "points": {
            name: [point.to_json() for point in sorted(found)]
            for name, found in points.items()
        },
        "settings": config.to_json(),
        **results.provenance(_all(configs)),
    }
    setting = series.title(config, _all(configs))
    title = plots.rates_title(setting, config.epochs, config.seeds)
    plots.plot_robustness(points, config.margin, folder / "robustness.png", title)
    plots.plot_ratios(points, config.margin, folder / "ratios.png", title)
    pictures = "robustness.png", "ratios.png"
    reports.write(folder, "robustness", text, values, *pictures)


def _table(config: RobustnessConfig, points: dict[str, list[Point]]) -> str:
    rows = []
    for text, found in points.items():
        found = sorted(found)
        usable = within_margin(found, config.margin)
        span = spanned_range(found, config.margin)
        inside = [p for p in found if span.low <= p <= span.high]
        low, high = (f"{p.learning_rate:g}" for p in (span.low, span.high))
        # The range may extend beyond the rates tried.
        ends = open_ends(found, span)
        rows.append(
            [
                text,
                f"{span.best.accuracy} @ {span.best.learning_rate:g}",
                f"{'<= ' * ends[0]}{low} - {'>= ' * ends[1]}{high}",
                f"{'>= ' * any(ends)}{span.factor:.4g}",
                f"{len(usable)}/{len(inside)}",
                str(sum(point.seeds for point in found)),
            ]
        )
    unit = "point" if config.margin == 1 else "points"
    header = ["Optimizer", "Best", "Usable rates", "Ratio", "Usable between", "Runs"]
    note = (
        f"Usable: at most {config.margin:g} {unit} below the optimizer's own best, "
        "top-1 on the test images after the last epoch in percent, mean ± standard "
        f"deviation over {markdown.counted(config.seeds, 'seed')}. Usable between: how "
        "many of the rates tried from "
        "the lowest to the highest usable one are usable."
    )
    return f"{markdown.table(header, rows)}\n\n{note}"


def _accuracies(points: dict[str, list[Point]]) -> str:
    rows = [
        (
            text,
            ", ".join(
                f"{p.accuracy.mean:.1f} @ {p.learning_rate:g}" for p in sorted(found)
            ),
        )
        for text, found in points.items()
    ]
    return markdown.table(("Optimizer", "Accuracy @ learning rate"), rows)
