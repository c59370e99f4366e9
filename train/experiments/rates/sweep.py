"""`python -m train sweep`: accuracy against learning rate for several optimizers."""

import dataclasses
from typing import Annotated

import tyro

from train import markdown
from train.config import FLOAT32_MAX
from train.experiments import plots, reports, results, series, variants
from train.experiments.rates.points import MARGIN, Point, usable_range
from train.experiments.variants import SeriesConfig


@dataclasses.dataclass(frozen=True)
class SweepConfig(SeriesConfig):
    """Plot accuracy over nominal and effective learning rates; resumable."""

    optimizers: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help=f"Optimizers, each {variants.FORM.removesuffix('[@RATE]')}."
        ),
    ] = ("sgd", "insgd-l2")
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0)
    """Learning rates for every optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rates:
            raise ValueError("--learning-rates needs at least one value")
        for rate in self.learning_rates:
            # A logarithmic axis has no 0.
            if not 0 < rate <= FLOAT32_MAX:
                raise ValueError(
                    "--learning-rates must be numbers above 0 and at most "
                    f"{FLOAT32_MAX:g}, got {rate}"
                )
        if len(set(self.learning_rates)) < len(self.learning_rates):
            rates = " ".join(f"{rate:g}" for rate in self.learning_rates)
            raise ValueError(f"--learning-rates contains a duplicate: {rates}")
        for text in self.optimizers:
            if variants.parse(text).learning_rate is not None:
                raise ValueError(
                    f"{text!r}: in a sweep, pass learning rates to --learning-rates"
                )

    @property
    def _rate_in_checks(self) -> float:
        return 1.0  # Any number: in a sweep, optimizers need no default.


def sweep(config: SweepConfig) -> int:
    """Runs what is missing, then writes and prints the report."""
    configs = {
        (text, rate): config.runs(text, rate)
        for text in config.optimizers
        for rate in config.learning_rates
    }
    status = series.complete(series.by_seed(configs.values()), config.processes)
    points: dict[str, list[Point]] = {}
    for (text, _), runs in configs.items():
        if point := results.sweep_point(runs):
            points.setdefault(text, []).append(point)
    if not points:
        return status

    text = f"{_table(config, points)}\n\n{_ranges(points)}\n"
    folder = series.report_folder("sweep", config)
    runs = [each for some in configs.values() for each in some]
    values = {
        "points": {name: [p.to_json() for p in each] for name, each in points.items()},
        "settings": config.to_json(),
        **results.provenance(runs),
    }
    setting = series.title(config, runs)
    title = plots.rates_title(setting, config.epochs, config.seeds)
    plots.plot_sweep(points, folder / "sweep.png", title)
    reports.write(folder, "sweep", text, values, "sweep.png")
    return status


def _table(config: SweepConfig, points: dict[str, list[Point]]) -> str:
    cells = {
        (text, point.learning_rate): f"{point.accuracy} @ {point.effective_rate:.3g}"
        for text, each in points.items()
        for point in each
    }
    rows = [
        [f"{rate:g}", *(cells.get((text, rate), "not run") for text in points)]
        for rate in sorted(config.learning_rates)
    ]
    note = (
        "Top-1 on the test images after the last epoch in percent, mean ± standard "
        "deviation over seeds, @ learning rate x mean multiplier (1 except for INSGD "
        "and with a Polyak cap)."
    )
    return f"{markdown.table(('Learning rate', *points), rows)}\n\n{note}"


def _ranges(points: dict[str, list[Point]]) -> str:
    """Formats the usable range of each optimizer in nominal and effective rates."""
    rows = []
    for text, each in points.items():
        found = usable_range(each)
        rows.append(
            [
                text,
                f"{found.best.accuracy.mean:.2f} @ {found.best.learning_rate:g}",
                f"{found.low.learning_rate:g} - {found.high.learning_rate:g}",
                f"{found.factor:.3g}",
                f"{found.low.effective_rate:.3g} - {found.high.effective_rate:.3g}",
                f"{found.effective_factor:.3g}",
            ]
        )
    header = ["Optimizer", "Best", "Usable rates", "Factor"]
    header += ["Usable rate x multiplier", "Factor"]
    note = (
        f"Usable: within {MARGIN:g} points of the optimizer's best, among the rates "
        "tried. A shifted range means a rescaled learning rate; a larger factor means "
        "a wider range."
    )
    return f"{markdown.table(header, rows)}\n\n{note}"
