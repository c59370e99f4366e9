"""Accuracies at learning rates, and ranges of usable learning rates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from train.experiments.reports import MeanStd

# A rate is usable if its accuracy is within this distance of the best, in percentage
# points.
MARGIN = 5.0


class Point(NamedTuple):
    """Results of an optimizer at one learning rate."""

    learning_rate: float
    effective_rate: float  # Learning rate times mean multiplier, mean over seeds.
    accuracy: MeanStd  # After the last epoch, in percent.
    seeds: int

    def to_json(self) -> dict[str, Any]:
        """Returns the point in JSON-serializable form."""
        return {**self._asdict(), "accuracy": self.accuracy._asdict()}


class UsableRange(NamedTuple):
    """The range of learning rates with an accuracy close to the optimizer's best."""

    best: Point
    low: Point
    high: Point

    @property
    def factor(self) -> float:
        """Highest learning rate divided by the lowest."""
        return self.high.learning_rate / self.low.learning_rate

    @property
    def effective_factor(self) -> float:
        """Effective rate at the highest learning rate divided by that at the lowest."""
        return self.high.effective_rate / self.low.effective_rate


def within_margin(points: Sequence[Point], margin: float) -> list[Point]:
    """Returns the points whose accuracy is at most `margin` below the best."""
    best = max(point.accuracy.mean for point in points)
    return [point for point in points if point.accuracy.mean >= best - margin]


def spanned_range(points: Sequence[Point], margin: float) -> UsableRange:
    """Returns the lowest and the highest rate within `margin` of the best.

    Rates between them may be worse by chance, see `within_margin`.
    """
    usable = sorted(within_margin(points, margin))
    best = max(usable, key=lambda point: point.accuracy.mean)
    return UsableRange(best, usable[0], usable[-1])


def open_ends(points: Sequence[Point], span: UsableRange) -> tuple[bool, bool]:
    """Returns whether the range ends at the lowest and at the highest rate tried."""
    return span.low == min(points), span.high == max(points)


def usable_range(points: Sequence[Point]) -> UsableRange:
    """Returns the contiguous range of rates tried within `MARGIN` of the best."""
    points, usable = sorted(points), within_margin(points, MARGIN)
    best = spanned_range(points, MARGIN).best
    low = high = points.index(best)
    while low > 0 and points[low - 1] in usable:
        low -= 1
    while high < len(points) - 1 and points[high + 1] in usable:
        high += 1
    return UsableRange(best, points[low], points[high])
