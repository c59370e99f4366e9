"""Plots of one or several runs."""

import io
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train import files
from train.run.metrics import EpochMetrics

if TYPE_CHECKING:  # Matplotlib takes a second to import, so only drawing imports it.
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_STYLES = ("-", "--", ":", "-.")
# More lines than this cannot be told apart; a heat map shows more weights.
_MOST_LINES = 10
# The maximum height of a heat map, and the number of names legible at this height.
_MAP_INCHES = 13.0
_MOST_NAMES = 90
# The legend of more lines than this is beside the panel, not below it.
_MOST_BELOW = 5
# Characters that fit on a line of the legend below a panel.
_LEGEND_CHARACTERS = 70
# Logarithmic axes within this range have plain numbers.
_PLAIN_FROM, _PLAIN_TO = 1e-3, 1e4


def plot_test_error(
    runs: Mapping[str, Sequence[Sequence[EpochMetrics]]],
    path: Path,
    control_of: Mapping[str, str] = types.MappingProxyType({}),
    title: str = "",
) -> None:
    """Plots test error over epochs, a line per optimizer, as in the paper's Figure 3.

    Args:
        runs: rows of `metrics.jsonl` of each seed, by name in the legend. With several
            seeds, the line is the mean and the band is one standard deviation.
        path: the PNG to write.
        control_of: maps the names of lines that are drawn dashed to the line whose
            color they take.
        title: the network and the data.
    """
    beside = len(runs) > _MOST_BELOW
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
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Test error (%)")
    axes.set_ylim(bottom=0, top=1.05 * axes.get_ylim()[1])
    axes.locator_params("x", integer=True, min_n_ticks=1)
    # Long enough to show how a line is dashed.
    style = {"fontsize": "small", "handlelength": 4}
    if beside:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), **style)
    else:
        longest = max(map(len, runs))
        columns = max(1, min(len(runs), _LEGEND_CHARACTERS // (longest + 8)))
        figure.legend(loc="outside lower center", ncols=columns, **style)
    save(figure, path)


def plot_multipliers(rows: Sequence[EpochMetrics], path: Path, title: str = "") -> None:
    """Plots INSGD's input powers P and learning rate multipliers by weight.

    Up to ten weights are drawn as lines. More are drawn as a heat map with a row per
    weight, ordered by name, and a column per epoch.

    Args:
        rows: rows of `metrics.jsonl` of a run of INSGD.
        path: the PNG to write.
        title: the network, the data and the optimizer.
    """
    names = sorted(rows[0]["multipliers"], key=_natural)
    few = len(names) <= _MOST_LINES
    height = 4 if few else min(1.5 + 0.15 * len(names), _MAP_INCHES)
    figure, panels = create_figure(11, panels=2, sharey=not few, height=height)
    labels = "Power P of the input", "Multiplier of the learning rate"
    for axes, quantity, label in zip(
        panels, ("powers", "multipliers"), labels, strict=True
    ):
        if few:
            _draw_lines(axes, rows, names, quantity)
            axes.set_ylabel(label)
        else:
            _draw_map(axes, rows, names, quantity)
            axes.set_title(label, fontsize="medium")
        axes.set_xlabel("Epoch")
        axes.locator_params("x", integer=True, min_n_ticks=1)
    first, last = (row["mean_multiplier"] for row in (rows[0], rows[-1]))
    figure.suptitle(
        (
            f"{title}\nMean multiplier {first:.3g} after epoch {rows[0]['epoch']}, "
            f"{last:.3g} after epoch {rows[-1]['epoch']}"
        ).strip(),
        fontsize="medium",
    )
    if few:
        mean = [row["mean_multiplier"] for row in rows]
        epochs = [row["epoch"] for row in rows]
        panels[1].plot(epochs, mean, "k", lw=2.5, marker=".", label="mean")
        panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    save(figure, path)


def _draw_lines(
    axes: "Axes", rows: Sequence[EpochMetrics], names: Sequence[str], quantity: str
) -> None:
    epochs = [row["epoch"] for row in rows]
    for name in names:
        line = [row[quantity][name] for row in rows]
        axes.plot(epochs, line, marker=".", label=name)
    axes.set_yscale("log")
    number_plainly(axes.yaxis)


def number_plainly(axis: "Axis") -> None:
    """Writes 0.2, not 2x10^-1, on a log axis that lies between 0.001 and 10,000."""
    from matplotlib import rcParams
    from matplotlib.ticker import LogFormatterSciNotation

    class Formatter(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            label = super().__call__(x, pos)
            low, high = sorted(axis.get_view_interval())
            is_narrow = _PLAIN_FROM <= low and high <= _PLAIN_TO
            return f"{x:g}" if label and is_narrow else label

    axis.set_major_formatter(Formatter())
    axis.set_minor_formatter(Formatter(labelOnlyBase=False))
    # Minor ticks are shorter; their labels stay in line with those of major ticks.
    distance = rcParams["xtick.major.size"] + rcParams["xtick.major.pad"]
    axis.set_tick_params(which="minor", pad=distance - rcParams["xtick.minor.size"])


def _draw_map(
    axes: "Axes", rows: Sequence[EpochMetrics], names: Sequence[str], quantity: str
) -> None:
    """Draws a map with a row per weight, a column per epoch, and values as colors."""
    table = np.array([[row[quantity][name] for row in rows] for name in names])
    # Values without a finite logarithm stay white.
    table = np.where(np.isfinite(table) & (table > 0), table, np.nan)
    known = table[np.isfinite(table)]
    low, high = (known.min(), known.max()) if known.size else (1.0, 1.0)
    first, last = rows[0]["epoch"], rows[-1]["epoch"]
    image = axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm="log",
        vmin=low,
        vmax=high if high > low else 1.01 * low,
        extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
    )
    step = -(-len(names) // _MOST_NAMES)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize="x-small")
    axes.grid(False)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    number_plainly(bar.ax.yaxis)


def _natural(name: str) -> tuple[list[tuple[bool, str | int]], ...]:
    """Returns a sort key that puts block_2 before block_10."""
    return tuple(
        [
            (text.isdecimal(), int(text) if text.isdecimal() else text)
            for text in re.split(r"(\d+)", part)
        ]
        for part in name.split("/")
    )


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG without following a symbolic link."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150)
    files.write(path, content.getvalue())


def create_figure(
    width: float,
    panels: int,
    sharey: bool = True,
    *,
    rows: int = 1,
    height: float = 4,
) -> tuple["Figure", Sequence["Axes"]]:
    """Creates a figure, sized in inches, with `rows` rows of `panels` panels each."""
    # Not pyplot, which looks for a display and keeps every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        rows, panels, sharey=sharey, sharex=rows > 1, squeeze=False
    ).ravel()
    for each in axes:
        each.grid(alpha=0.3)
    return figure, list(axes)
