"""Plots of one or several runs."""

import io
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# Not pyplot, which looks for a display and keeps every figure.
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from train import files
from train.run.metrics import EpochMetrics

_STYLES = ("-", "--", ":", "-.")
# More names do not fit next to a panel.
_MOST_NAMES = 22
# More names hide the lines of a panel.
_MOST_INSIDE = 5


def plot_test_error(
    runs: Mapping[str, Sequence[Sequence[EpochMetrics]]],
    path: Path,
    control_of: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Plots test error over epochs, one line per optimizer, as in Figure 3.

    Args:
        runs: rows of `metrics.jsonl` of each seed, by name in the legend. With several
            seeds, the line is the mean and the band is one standard deviation.
        path: the PNG to write.
        control_of: maps names of controls, drawn dashed, to the names of the lines
            whose color they get.
    """
    beside = len(runs) > _MOST_INSIDE
    figure, (axes,) = create_figure(10 if beside else 6, panels=1)
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
    save(figure, path)


def plot_multipliers(rows: Sequence[EpochMetrics], path: Path) -> None:
    """Plots INSGD's input powers P and learning rate multipliers by weight.

    If there are many weights, the legend has only those with the smallest and the
    largest final multipliers.

    Args:
        rows: rows of `metrics.jsonl` of a run of INSGD.
        path: the PNG to write.
    """
    figure, (power, multiplier) = create_figure(11, panels=2, sharey=False)
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
            # The legend skips labels that start with an underscore.
            label_of_line = name if name in named else f"_{name}"
            axes.plot(epochs, line, style, marker=".", label=label_of_line)
        axes.set_yscale("log")
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    mean = [row["mean_multiplier"] for row in rows]
    multiplier.plot(epochs, mean, "k", lw=2.5, marker=".", label="mean")
    multiplier.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG without following a symbolic link."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150)
    files.write(path, content.getvalue())


def create_figure(
    width: float, panels: int, sharey: bool = True
) -> tuple[Figure, Sequence[Axes]]:
    """Creates a figure of this width in inches, with panels side by side."""
    figure = Figure(figsize=(width, 4), layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, panels, sharey=sharey, squeeze=False)[0]
    for axes in row:
        axes.grid(alpha=0.3)
    return figure, row
