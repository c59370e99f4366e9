"""Times of programs that are compared with each other, fairly on a busy machine."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_RESAMPLES = 2000
_SAMPLE_SECONDS = 0.05  # Shorter ones show the clock and the dispatch.


class Times(NamedTuple):
    """Of one run of a program, in each round."""

    seconds: np.ndarray  # shape=(rounds,): on the clock
    processor_seconds: np.ndarray  # shape=(rounds,): of all cores, for this process


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How much longer one program takes than another.

    Attributes:
        of_medians: the median time of the one over that of the other.
        interval: where 95 % of the ratios of medians lie when the rounds are drawn
            anew, with replacement.
        paired: the median of the ratios within a round.
        quartiles: of those ratios.
    """

    of_medians: float
    interval: tuple[float, float]
    paired: float
    quartiles: tuple[float, float]


def interleave(
    programs: Mapping[str, Callable[[int], None]], rounds: int, rng: np.random.Generator
) -> dict[str, Times]:
    """Times programs in turn, in another random order each round.

    What changes slowly, such as the clock rate or the load, falls on all of them; and
    none profits from its place in the order.

    Args:
        programs: by name; each runs as often in a row as it is told, and waits.
        rounds: how often each is timed.
        rng: for the orders.

    Returns:
        The times, by the same names.
    """
    runs = 1
    for program in programs.values():
        program(1)  # Whatever is slow only once.
        started = time.perf_counter()
        program(1)
        seconds = time.perf_counter() - started
        # As often for all, or the longer row would look faster.
        runs = max(runs, int(np.ceil(_SAMPLE_SECONDS / seconds)))
    names = list(programs)
    times = {name: Times(np.empty(rounds), np.empty(rounds)) for name in names}
    for number in range(rounds):
        for index in rng.permutation(len(names)):
            name = names[index]
            begun = time.perf_counter(), time.process_time()
            programs[name](runs)
            ended = time.perf_counter(), time.process_time()
            for kind in range(2):
                times[name][kind][number] = (ended[kind] - begun[kind]) / runs
    return times


def compare(
    times: np.ndarray, reference: np.ndarray, rng: np.random.Generator
) -> Ratio:
    """Compares the times of two programs.

    Args:
        times: of the one, of shape (rounds,), one kind from `interleave`.
        reference: of the other, in the same rounds.
        rng: for the interval.

    Returns:
        Their ratio, with its spread.
    """
    paired = times / reference
    drawn = rng.integers(len(times), size=(_RESAMPLES, len(times)))
    ratios = np.median(times[drawn], axis=1) / np.median(reference[drawn], axis=1)
    return Ratio(
        float(np.median(times) / np.median(reference)),
        _percentiles(ratios, 2.5, 97.5),
        float(np.median(paired)),
        _percentiles(paired, 25, 75),
    )


def _percentiles(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    low, high = np.percentile(values, [low, high])
    return float(low), float(high)
