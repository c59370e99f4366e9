"""Compares the times of programs fairly on a busy machine."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

_RESAMPLES = 2000
_SAMPLE_SECONDS = 0.05  # Shorter samples would measure the clock and the dispatch.


class Times(NamedTuple):
    """Times of a program, one per round."""

    seconds: np.ndarray  # shape=(rounds,): wall time
    processor_seconds: np.ndarray  # shape=(rounds,): CPU time of this process


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Ratio of the times of two programs.

    Attributes:
        of_medians: ratio of the median times.
        interval: 95 % bootstrap interval over rounds.
        paired: median of the ratios within a round.
        quartiles: quartiles of those ratios.
    """

    of_medians: float
    interval: tuple[float, float]
    paired: float
    quartiles: tuple[float, float]


def repeated(run: Callable[[], Any]) -> Callable[[int], None]:
    """Makes a program for `interleave` from a function that returns arrays."""

    def program(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(run())

    return program


def interleave(
    programs: Mapping[str, Callable[[int], None]], rounds: int, rng: np.random.Generator
) -> dict[str, Times]:
    """Times programs in interleaved rounds, each in a new random order.

    Slow changes, such as in clock rate or load, then affect all programs
    equally, and no program benefits from its position.

    Args:
        programs: functions by name that run a program a given number of times and wait.
        rounds: number of rounds.
        rng: random generator of the orders.

    Returns:
        The times by name.
    """
    runs = 1
    for program in programs.values():
        program(1)  # Warm up.
        started = time.perf_counter()
        program(1)
        seconds = time.perf_counter() - started
        # The same count for all; otherwise the program called more often looks faster.
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
        times: times of one program, of shape (rounds,).
        reference: times of the other in the same rounds.
        rng: random generator of the bootstrap.

    Returns:
        The ratio with its spread.
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
