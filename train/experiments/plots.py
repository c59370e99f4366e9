"""Pictures of runs."""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Drawn without pyplot: it looks for a display, and keeps every figure it makes.
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from train.experiments.rates.points import Point, open_ends, spanned_range
from train.run.metrics import Row

# Told apart without color too.
_MARKERS = "osD^v<>ph*PX"
_STYLES = ("-", "--", ":", "-.")
# More names than this do not fit beside a panel.
_MOST_NAMES = 22
# Points of accuracy below the best that are drawn where rates are compared.
_DEPTH = 25
# And more than this hide the lines of the panel they stand in.
_MOST_INSIDE = 5


def plot_test_error(
    runs: Mapping[str, Sequence[Sequence[Row]]],
    path: Path,
    control_of: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Draws test error over epochs, as Figure 3 does, one line for each optimizer.

    Args:
        runs: by the name in the legend, the rows of `metrics.jsonl` of each seed. Of
            several seeds the line is the mean, and the band one standard deviation.
        path: the PNG to write.
        control_of: names of lines that are drawn broken, in the color of the line
            whose name stands beside.
    """
    beside = len(runs) > _MOST_INSIDE
    figure, (axes,) = _figure(10 if beside else 6, panels=1)
    drawn: dict[str, list[Line2D]] = {}
    for name, seeds in runs.items():
        group = drawn.setdefault(control_of.get(name, name), [])
        color = group[0].get_color() if group else None
        epochs = [row["epoch"] for row in seeds[0]]
        errors = np.array(
            [[100 * (1 - row["test_top1"]) for row in rows] for rows in seeds]
        )
        marker = "." if len(epochs) < 50 else None
        (line,) = axes.plot(
            epochs,
            errors.mean(0),
            _STYLES[len(group) % len(_STYLES)],
            color=color,
            marker=marker,
            label=name,
        )
        group.append(line)
        if len(seeds) > 1:
            mean, std = errors.mean(0), errors.std(0, ddof=1)
            axes.fill_between(
                epochs, mean - std, mean + std, color=line.get_color(), alpha=0.2
            )
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Test error (%)")
    axes.set_ylim(bottom=0, top=1.05 * axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if beside:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    else:
        axes.legend()
    figure.savefig(path, dpi=150)


def plot_multipliers(rows: Sequence[Row], path: Path) -> None:
    """Draws INSGD's estimates P of each weight's input, and its multipliers of the rate.

    Of a network with many weights only those with the smallest and the largest
    multipliers at the end are named.

    Args:
        rows: of `metrics.jsonl`, of a run of INSGD.
        path: the PNG to write.
    """
    figure, (power, multiplier) = _figure(11, panels=2, sharey=False)
    epochs = [row["epoch"] for row in rows]
    last = rows[-1]["multipliers"]
    by_size = sorted(last, key=lambda name: last[name])
    named = set(by_size if len(by_size) <= _MOST_NAMES else by_size[:5] + by_size[-5:])
    for axes, values, label in (
        (power, "powers", "Power P of the input"),
        (multiplier, "multipliers", "Multiplier of the learning rate"),
    ):
        for number, name in enumerate(rows[0][values]):
            style = _STYLES[number // 10 % len(_STYLES)]
            line = [row[values][name] for row in rows]
            # A label that starts with an underscore stays out of the legend.
            label_of_line = name if name in named else f"_{name}"
            axes.plot(epochs, line, style, marker=".", label=label_of_line)
        axes.set_yscale("log")
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    mean = [row["mean_multiplier"] for row in rows]
    multiplier.plot(epochs, mean, "k", lw=2.5, marker=".", label="mean")
    multiplier.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
    figure.savefig(path, dpi=150)


def plot_sweep(points: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draws accuracy against the learning rate given, and against the one taken.

    Where two curves lie apart on the left and on each other on the right, the one
    optimizer is the other with its learning rate multiplied.

    Args:
        points: by the name in the legend.
        path: the PNG to write.
    """
    figure, (given, taken) = _figure(9, panels=2)
    for number, (name, found) in enumerate(points.items()):
        for axes, rate in ((given, "learning_rate"), (taken, "effective_rate")):
            _plot_accuracy(axes, found, rate, number, label=name, markersize=5)
    given.set_xlabel("Learning rate")
    given.set_ylabel("Test accuracy after the last epoch (%)")
    taken.set_xlabel("Learning rate x mean multiplier")
    for axes in (given, taken):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
    given.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def plot_robustness(
    points: Mapping[str, Sequence[Point]], margin: float, path: Path
) -> None:
    """Draws accuracy against the learning rate, and how far apart usable rates lie.

    Args:
        points: by the name in the legend.
        margin: how far below an optimizer's best accuracy is usable, in points.
        path: the PNG to write.
    """
    figure, (curves, bars) = _figure(12, panels=2, sharey=False)
    spans = {name: spanned_range(found, margin) for name, found in points.items()}
    best = max(span.best.accuracy.mean for span in spans.values())
    colors = colormaps["tab10" if len(points) <= 10 else "tab20"].colors
    for number, (name, found) in enumerate(points.items()):
        color, span = colors[number % len(colors)], spans[name]
        _plot_accuracy(
            curves,
            found,
            "learning_rate",
            number,
            label=name,
            markersize=4,
            lw=1.2,
            color=color,
        )
        bars.barh(name, span.factor - 1, left=1, color=color)
        at_least = "at least " * any(open_ends(found, span))
        ratio = f"{span.factor:.3g}" if span.factor < 100 else f"{span.factor:,.0f}"
        text = f" {at_least}{ratio}, best {span.best.accuracy.mean:.1f} %"
        bars.text(span.factor, number, text, va="center", fontsize="small")
    curves.set_xscale("log")
    # What is far below the best is out of question: how far hardly matters.
    curves.set_ylim(max(0, best - _DEPTH), best + 2)
    curves.set_xlabel("Learning rate")
    curves.set_ylabel("Test accuracy after the last epoch (%)")
    figure.legend(
        *curves.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
    )
    bars.set_xscale("log")
    bars.set_xlim(1, 1000 * max(span.factor for span in spans.values()))
    bars.set_axisbelow(True)
    bars.invert_yaxis()
    bars.set_xlabel(f"Highest / lowest rate no more than {margin:g} % below the best")
    figure.savefig(path, dpi=150)


def _plot_accuracy(
    axes: Axes, points: Sequence[Point], rate: str, number: int, **style: Any
) -> None:
    """Draws one optimizer's accuracy over a kind of rate, with the spread over seeds."""
    points = sorted(points, key=lambda point: getattr(point, rate))
    axes.errorbar(
        [getattr(point, rate) for point in points],
        [point.accuracy.mean for point in points],
        yerr=[point.accuracy.std or 0 for point in points],
        marker=_MARKERS[number % len(_MARKERS)],
        capsize=2,
        **style,
    )


def _figure(
    width: float, panels: int, sharey: bool = True
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, panels, sharey=sharey, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels
