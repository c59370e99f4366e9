"""Mean and standard deviation over seeds."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


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
