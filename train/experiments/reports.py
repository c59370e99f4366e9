"""Statistics over seeds, and the files of a report."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train import files, strict_json


class MeanStd(NamedTuple):
    """Mean and sample standard deviation; None for a single value."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


def mean_std(values: Sequence[float]) -> MeanStd:
    """Computes the mean and standard deviation of at least one value."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanStd(statistics.fmean(values), std)


def write(folder: Path, name: str, text: str, values: Any, *pictures: str) -> None:
    """Writes NAME.md and NAME.json, and prints the text and the paths.

    Args:
        folder: existing folder of the report.
        name: name of the files.
        text: the report in Markdown.
        values: anything JSON can hold; NaN is written as null.
        pictures: names of the pictures already in the folder.
    """
    files.write(folder / f"{name}.md", text.encode())
    files.write(folder / f"{name}.json", strict_json.encode(values))
    names = ", ".join([f"{name}.md", f"{name}.json", *pictures])
    print(f"\n{text}\nIn {folder}: {names}")
