"""The classes that a network confuses, as numbers, text and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train import markdown
from train.run import plots

# With more classes than these, the table is unreadable, and the names and the counts do
# not fit in the picture.
_MOST_IN_TABLE = 12
_MOST_NAMED = 40
_MOST_NUMBERED = 20
_WORST = 10
_LONGEST_NAME = 20


def by_class(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Images and accuracy of each class.

    Args:
        counts: int array of shape (classes, classes): images by true class and
            predicted class.
        names: names of the classes.

    Returns:
        For each class, its name, its number of images, and its accuracy, which is None
        for a class without images.
    """
    return [
        {
            "name": name,
            "images": int(row.sum()),
            "accuracy": float(row[number] / row.sum()) if row.sum() else None,
        }
        for number, (name, row) in enumerate(zip(names, counts, strict=True))
    ]


def describe(counts: np.ndarray, names: Sequence[str]) -> str:
    """Formats the matrix; with many classes, only the worst and their confusions."""
    classes = by_class(counts, names)
    if len(names) <= _MOST_IN_TABLE:
        rows = [
            [name, *map(str, row), _percent(each["accuracy"])]
            for name, row, each in zip(names, counts.tolist(), classes, strict=True)
        ]
        header = ["true \\ predicted", *names, "accuracy"]
        return markdown.table(header, rows)
    order = sorted(
        (number for number, each in enumerate(classes) if each["images"]),
        key=lambda number: classes[number]["accuracy"],
    )
    rows = []
    for number in order[:_WORST]:
        others = counts[number].copy()
        others[number] = 0
        most = int(others.argmax())
        taken_for = f"{names[most]} ({others[most]})" if others[most] else ""
        each = classes[number]
        rows.append(
            [each["name"], str(each["images"]), _percent(each["accuracy"]), taken_for]
        )
    table = markdown.table(
        ["class", "images", "accuracy", "most often taken for"], rows
    )
    return (
        f"The {len(rows)} classes with the lowest accuracy, of {len(names)} "
        f"(--output-dir writes all):\n\n{table}"
    )


def plot(counts: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    """Draws the matrix; colors are fractions of each true class, numbers are counts.

    Args:
        counts: int array of shape (classes, classes): images by true class and
            predicted class.
        names: names of the classes.
        title: title of the picture.
        path: the PNG to write.
    """
    total = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    figure, (axes,) = plots.create_figure(_width(len(names)), panels=1)
    figure.set_figheight(_width(len(names)) * 0.85)
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, format="{x:.0%}")
    bar.set_label("Share of the true class")
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    axes.set_title(title, wrap=True)
    if len(names) <= _MOST_NAMED:
        shown = [_short(name) for name in names]
        longest = max(map(len, shown))
        axes.set_xticks(range(len(names)), shown, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(len(names)), shown)
    if len(names) <= _MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                text = f"{count}"
                axes.text(column, row, text, ha="center", va="center", color=color)
    plots.save(figure, path)


def _width(num_classes: int) -> float:
    """Returns the width of the picture in inches."""
    return min(max(6.0, 2 + 0.45 * min(num_classes, _MOST_NAMED)), 14.0)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _percent(share: float | None) -> str:
    return "no images" if share is None else f"{100 * share:.2f} %"
