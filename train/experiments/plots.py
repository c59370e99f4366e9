"""Plots of accuracy against learning rate."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import color_sequences
from matplotlib.axes import Axes

from train.experiments.rates.points import Point, open_ends, spanned_range
from train.run.plots import create_figure, save

# Distinguishable without color.
_MARKERS = "osD^v<>ph*PX"
# Range of the accuracy axis below the best, in percentage points.
_DEPTH = 25


def plot_sweep(points: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Plots accuracy against the nominal and the effective learning rate.

    Two curves that differ on the left and coincide on the right are of optimizers that
    differ only by a factor on the learning rate.

    Args:
        points: points by name in the legend.
        path: the PNG to write.
    """
    figure, (given, taken) = create_figure(9, panels=2)
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
    save(figure, path)


def plot_robustness(
    points: Mapping[str, Sequence[Point]], margin: float, path: Path
) -> None:
    """Plots accuracy against the learning rate, and the range of usable rates.

    Args:
        points: points by name in the legend.
        margin: usable accuracy below an optimizer's best, in percentage points.
        path: the PNG to write.
    """
    figure, (curves, bars) = create_figure(12, panels=2, sharey=False)
    spans = {name: spanned_range(found, margin) for name, found in points.items()}
    best = max(span.best.accuracy.mean for span in spans.values())
    colors = color_sequences["tab10" if len(points) <= 10 else "tab20"]
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
    # Accuracies far below the best do not matter.
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
    save(figure, path)


def _plot_accuracy(
    axes: Axes, points: Sequence[Point], rate: str, number: int, **style: Any
) -> None:
    """Plots one optimizer's accuracy with its standard deviation over seeds."""
    # The effective rate of a run that diverged may not be finite.
    points = [point for point in points if math.isfinite(getattr(point, rate))]
    points = sorted(points, key=lambda point: getattr(point, rate))
    axes.errorbar(
        [getattr(point, rate) for point in points],
        [point.accuracy.mean for point in points],
        yerr=[point.accuracy.std or 0 for point in points],
        marker=_MARKERS[number % len(_MARKERS)],
        capsize=2,
        **style,
    )
