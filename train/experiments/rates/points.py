"""Accuracy at learning rates, and the range of rates that can be used."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from train.experiments.mean_std import MeanStd

# Points of accuracy below an optimizer's best that still count as usable.
MARGIN = 5.0


class Point(NamedTuple):
    """An optimizer at one learning rate."""

    learning_rate: float
    effective_rate: float  # Times the mean multiplier, over seeds.
    accuracy: MeanStd  # After the last epoch, in percent.
    seeds: int

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**self._asdict(), "accuracy": self.accuracy._asdict()}


class UsableRange(NamedTuple):
    """The rates around an optimizer's best whose accuracy is near it."""

    best: Point
    low: Point
    high: Point

    @property
    def factor(self) -> float:
        """How wide: its highest rate over its lowest."""
        return self.high.learning_rate / self.low.learning_rate

    @property
    def effective_factor(self) -> float:
        """The same of the rates taken."""
        return self.high.effective_rate / self.low.effective_rate


def within_margin(points: Sequence[Point], margin: float) -> list[Point]:
    """Those at most `margin` points of accuracy below the best."""
    best = max(point.accuracy.mean for point in points)
    return [point for point in points if point.accuracy.mean >= best - margin]


def spanned_range(points: Sequence[Point], margin: float) -> UsableRange:
    """From the lowest to the highest rate within `margin` of the best.

    Rates between them may be worse, as one run's luck is: see `within_margin`.
    """
    usable = sorted(within_margin(points, margin))
    best = max(usable, key=lambda point: point.accuracy.mean)
    return UsableRange(best, usable[0], usable[-1])


def open_ends(points: Sequence[Point], span: UsableRange) -> tuple[bool, bool]:
    """Whether the range reaches the lowest, and the highest, of the rates tried."""
    return span.low == min(points), span.high == max(points)


def usable_range(points: Sequence[Point]) -> UsableRange:
    """The unbroken range of rates within `MARGIN` of the best, as far as tried."""
    points, usable = sorted(points), within_margin(points, MARGIN)
    best = spanned_range(points, MARGIN).best
    low = high = points.index(best)
    while low > 0 and points[low - 1] in usable:
        low -= 1
    while high < len(points) - 1 and points[high + 1] in usable:
        high += 1
    return UsableRange(best, points[low], points[high])
