"""Which learning rates to try: a grid, then between those that can be used and not."""

import itertools
import math
from collections.abc import Sequence

from train.experiments.rates.points import Point, within_margin


def grid(center: float, decades: float, per_decade: int) -> list[float]:
    """Rates around one of them, evenly in their logarithm.

    Args:
        center: one of the rates, > 0.
        decades: the most that lie between the lowest and the highest; as many rates
            are on each side.
        per_decade: how many steps there are in a factor of ten.

    Returns:
        The rates, rising, to three digits.
    """
    most = math.floor(decades * per_decade / 2)
    return [_rounded(center * 10 ** (k / per_decade)) for k in range(-most, most + 1)]


def refined(
    points: Sequence[Point], margin: float, gap_in_decades: float
) -> list[float]:
    """Rates to try next: half way from a usable rate to a neighbour that is not.

    Args:
        points: what was tried.
        margin: how far below the best accuracy is usable, in points.
        gap_in_decades: neighbours no farther apart than this are near enough.

    Returns:
        The rates, to three digits; none when all gaps are small enough, or as small
            as three digits can tell.
    """
    points = sorted(points)
    usable = within_margin(points, margin)
    tried, rates = {point.learning_rate for point in points}, []
    for low, high in itertools.pairwise(points):
        decades = math.log10(high.learning_rate / low.learning_rate)
        # The rates are rounded: without the tolerance some would be halved once more.
        if (low in usable) != (high in usable) and decades > 1.05 * gap_in_decades:
            between = _rounded(math.sqrt(low.learning_rate * high.learning_rate))
            if between not in tried:
                rates.append(between)
    return rates


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
