"""Two panels with the same curves: over steps or epochs, and over time."""

from collections.abc import Iterable

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw(
    curves: Iterable[tuple[str, np.ndarray, np.ndarray, float]],
    x: str,
    time: str,
    y: str,
) -> tuple[Figure, list[Axes]]:
    """Draws means over seeds as lines, and bands from the lowest to the highest.

    Args:
        curves: for each line its label, the steps, the values of shape (seeds, steps)
            and the time of a step.
        x: label of the left panel's horizontal axis.
        time: label of the right panel's horizontal axis.
        y: label of the vertical axes.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for label, steps, values, time_of_step in curves:
        for ax, scale in zip(axes, (1, time_of_step), strict=True):
            (line,) = ax.plot(steps * scale, values.mean(0), label=label)
            band = values.min(0), values.max(0)
            color = line.get_color()
            ax.fill_between(steps * scale, *band, color=color, alpha=0.15)
    axes[0].set(xlabel=x, ylabel=y)
    axes[1].set_xlabel(time)
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, list(axes)


def save(figure: Figure, image: str) -> None:
    """Writes a figure to a file."""
    figure.tight_layout()
    figure.savefig(image, dpi=150)
