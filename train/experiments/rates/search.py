"""Selects learning rates: a grid, then bisection at the ends of the usable range."""

import itertools
import math
from collections.abc import Sequence

from train.experiments.rates.points import Point, within_margin


def grid(center: float, decades: float, per_decade: int) -> list[float]:
    """Returns a logarithmic grid of learning rates, centered on `center`.

    Args:
        center: center of the grid, > 0.
        decades: maximum width of the grid in decades.
        per_decade: number of steps per factor of ten.

    Returns:
        The learning rates in ascending order, rounded to three digits.
    """
    most = math.floor(decades * per_decade / 2)
    return [_rounded(center * 10 ** (k / per_decade)) for k in range(-most, most + 1)]


def refined(
    points: Sequence[Point], margin: float, gap_in_decades: float
) -> list[float]:
    """Bisects, on a logarithmic scale, between usable rates and unusable neighbors.

    Args:
        points: points tried so far.
        margin: largest distance of a usable accuracy from the best, in percentage
            points.
        gap_in_decades: maximum gap between a usable rate and an unusable neighbor.

    Returns:
        New learning rates, rounded to three digits; empty when all gaps are small
            enough or cannot be divided with three digits.
    """
    points = sorted(points)
    usable = within_margin(points, margin)
    tried, rates = {point.learning_rate for point in points}, []
    for low, high in itertools.pairwise(points):
        decades = math.log10(high.learning_rate / low.learning_rate)
        # The tolerance covers the rounding of the rates.
        if (low in usable) != (high in usable) and decades > 1.05 * gap_in_decades:
            between = _rounded(math.sqrt(low.learning_rate * high.learning_rate))
            if between not in tried:
                rates.append(between)
    return rates


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
