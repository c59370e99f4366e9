"""Plots of accuracy against learning rate."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.experiments.rates.points import Point, open_ends, spanned_range
from train.markdown import counted
from train.run.plots import create_figure, number_plainly, save

if TYPE_CHECKING:  # Slow to import, see `train.run.plots`.
    from matplotlib.axes import Axes

# Distinguishable without color.
_MARKERS = "osD^v<>ph*PX"
_COLUMNS = 4
_COLOR = "tab:blue"
# Start of the bars of ratios, below 1, so that a ratio of 1 is visible.
_BARS_START = 0.5


def rates_title(setting: str, epochs: int, seeds: int) -> str:
    """Returns the title of plots over learning rates: the setting, epochs and seeds."""
    return ", ".join([setting, counted(epochs, "epoch"), counted(seeds, "seed")])


def plot_sweep(
    points: Mapping[str, Sequence[Point]], path: Path, title: str = ""
) -> None:
    """Plots accuracy against the nominal and the effective learning rate.

    Two curves that differ in the left panel and coincide in the right one belong to
    optimizers that differ only by a factor on the learning rate.

    Args:
        points: points by name in the legend.
        path: the PNG to write.
        title: title of the figure, as from `rates_title`.
    """
    columns = min(len(points), 3)
    lines = -(-len(points) // columns)
    figure, (given, taken) = create_figure(9, panels=2, height=4 + 0.25 * (lines - 1))
    colors = _colors(points)
    for number, (name, found) in enumerate(points.items()):
        for axes, rate in ((given, "learning_rate"), (taken, "effective_rate")):
            _plot_accuracy(
                axes, found, rate, number, label=name, markersize=5, color=colors[name]
            )
    given.set_xlabel("Learning rate")
    given.set_ylabel("Test accuracy after the last epoch (%)")
    taken.set_xlabel("Learning rate x mean multiplier")
    for axes in (given, taken):
        axes.set_xscale("log")
        number_plainly(axes.xaxis)
        axes.set_ylim(bottom=0)
    figure.suptitle(title, fontsize="medium")
    figure.legend(
        *given.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
    )
    save(figure, path)


def plot_robustness(
    points: Mapping[str, Sequence[Point]], margin: float, path: Path, title: str = ""
) -> None:
    """Plots accuracy against the learning rate, and the range of usable rates.

    Each optimizer has a panel, where the others are gray behind it.

    Args:
        points: points by the title of the panel.
        margin: largest distance from an optimizer's best accuracy at which a learning
            rate is usable, in percentage points.
        path: the PNG to write.
        title: title of the figure, as from `rates_title`.
    """
    columns = min(len(points), _COLUMNS)
    rows = -(-len(points) // columns)
    figure, panels = create_figure(12, columns, rows=rows, height=2 + 1.9 * rows)
    spans = {name: spanned_range(found, margin) for name, found in points.items()}
    for axes, (name, found) in zip(panels, points.items(), strict=False):
        for other in points.values():
            _plot_accuracy(axes, other, "learning_rate", None, color="0.85", lw=0.8)
        style = {"color": _COLOR, "markersize": 4, "lw": 1.4}
        _plot_accuracy(axes, found, "learning_rate", 0, **style)
        ends = spans[name].low.learning_rate, spans[name].high.learning_rate
        axes.axvspan(*ends, color=_COLOR, alpha=0.15, lw=0)
        for end in ends:  # A range of a single learning rate has no width.
            axes.axvline(end, color=_COLOR, alpha=0.4, lw=1.2, zorder=0.9)
        axes.set_title(name, fontsize="small")
        axes.set_xscale("log")
        number_plainly(axes.xaxis)
        axes.set_ylim(0, 102)
    for number in range(len(points), len(panels)):
        panels[number].remove()
        panels[number - columns].tick_params(labelbottom=True)
    figure.suptitle(title, fontsize="medium")
    figure.supxlabel("Learning rate; shaded: usable", fontsize="medium")
    figure.supylabel("Test accuracy after the last epoch (%)", fontsize="medium")
    save(figure, path)


def plot_ratios(
    points: Mapping[str, Sequence[Point]], margin: float, path: Path, title: str = ""
) -> None:
    """Plots each optimizer's ratio of the highest to the lowest usable learning rate.

    Args:
        points: points by the name beside the bar.
        margin: as in `plot_robustness`.
        path: the PNG to write.
        title: title of the figure, as from `rates_title`.
    """
    figure, (bars,) = create_figure(8, panels=1, height=1.4 + 0.28 * len(points))
    widest = 1.0
    for number, (name, found) in enumerate(points.items()):
        span = spanned_range(found, margin)
        widest = max(widest, span.factor)
        bars.barh(name, span.factor - _BARS_START, left=_BARS_START, color=_COLOR)
        at_least = "at least " * any(open_ends(found, span))
        ratio = f"{span.factor:.3g}" if span.factor < 100 else f"{span.factor:,.0f}"
        text = f" {at_least}{ratio}, best {span.best.accuracy.mean:.1f} %"
        bars.text(span.factor, number, text, va="center", fontsize="small")
    bars.set_xscale("log")
    number_plainly(bars.xaxis)
    # The text to the right of the longest bar needs a third of the panel.
    end = _BARS_START * (widest / _BARS_START) ** 1.6
    bars.set_xlim(_BARS_START, max(end, 30 * _BARS_START))
    bars.set_axisbelow(True)
    bars.invert_yaxis()
    unit = "point" if margin == 1 else "points"
    bars.set_xlabel(
        f"Highest / lowest learning rate within {margin:g} {unit} of the best accuracy"
    )
    bars.set_title(title, fontsize="medium")
    save(figure, path)


def _colors(points: Mapping[str, Any]) -> dict[str, Any]:
    """Assigns colors to names, distinct while there are enough."""
    from matplotlib import color_sequences

    colors = color_sequences["tab10" if len(points) <= 10 else "tab20"]
    return {name: colors[n % len(colors)] for n, name in enumerate(points)}


def _plot_accuracy(
    axes: "Axes", points: Sequence[Point], rate: str, number: int | None, **style: Any
) -> None:
    """Plots one optimizer's accuracy with its standard deviation over seeds.

    If `number` is None, the line has no markers and lies behind the others.
    """
    # The effective rate of a run that diverged may not be finite.
    points = [point for point in points if math.isfinite(getattr(point, rate))]
    points = sorted(points, key=lambda point: getattr(point, rate))
    rates = [getattr(point, rate) for point in points]
    means = [point.accuracy.mean for point in points]
    if number is None:
        axes.plot(rates, means, zorder=1, **style)
        return
    axes.errorbar(
        rates,
        means,
        yerr=[point.accuracy.std or 0 for point in points],
        marker=_MARKERS[number % len(_MARKERS)],
        capsize=2,
        **style,
    )
