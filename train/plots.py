"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

# Drawn without pyplot: it looks for a display, and keeps every figure it makes.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.metrics import Row


def plot_test_error(runs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draws test error over epochs, as Figure 3 does, one line for each run.

    Args:
        runs: rows of `metrics.jsonl` by the name in the legend.
        path: the PNG to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, rows in runs.items():
        axes.plot(
            [row["epoch"] for row in rows],
            [100 * (1 - row["test_top1"]) for row in rows],
            marker=".",
            label=name,
        )
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Test error (%)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
