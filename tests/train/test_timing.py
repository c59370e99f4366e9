"""Comparison of times: fair orders, and a ratio that finds a real difference."""

import time

import numpy as np
import pytest

from train.benchmark import timing


def test_programs_run_equally_often_in_changing_orders():
    calls = []
    programs = {
        name: lambda times, name=name: calls.append((name, times)) for name in "abc"
    }
    times = timing.interleave(programs, 20, np.random.default_rng(0))

    timed = calls[6:]  # Two runs of each come first.
    rounds = [timed[start : start + 3] for start in range(0, len(timed), 3)]
    assert len(rounds) == 20
    assert all({name for name, _ in one} == set("abc") for one in rounds)
    assert len({tuple(name for name, _ in one) for one in rounds}) > 3
    # Programs too fast for the clock are repeated, all equally often.
    assert len({repeats for _, repeats in timed}) == 1
    assert timed[0][1] > 1
    assert all(
        len(one.seconds) == 20 and min(one.seconds) > 0 for one in times.values()
    )


def test_waiting_is_not_processor_time():
    programs = {"wait": lambda times: time.sleep(0.06), "work": lambda times: spin()}

    def spin():
        end = time.process_time() + 0.06
        while time.process_time() < end:
            pass

    times = timing.interleave(programs, 2, np.random.default_rng(0))
    assert max(times["wait"].processor_seconds) < 0.03
    assert min(times["work"].processor_seconds) >= 0.06
    assert min(times["wait"].seconds) >= 0.06


def test_a_difference_is_found_under_a_varying_load():
    rng = np.random.default_rng(0)
    load = 1 + np.repeat(rng.random(20), 10)
    reference = load * rng.normal(1, 0.02, 200)
    times = 1.1 * load * rng.normal(1, 0.02, 200)

    ratio = timing.compare(times, reference, rng)

    assert ratio.paired == pytest.approx(1.1, abs=0.01)
    assert ratio.quartiles[0] < ratio.paired < ratio.quartiles[1]
    assert ratio.of_medians == pytest.approx(1.1, abs=0.1)
    assert ratio.interval[0] < 1.1 < ratio.interval[1]
