"""The memory of one process does not grow with the number of its runs."""

import os
import weakref

import pytest

from train.experiments import series
from train.run.experiment import Experiment
from train.run_config import RunConfig

RUNS = 100
# In MB, for all runs.
MOST_GROWTH = 50
FIRST = 5


def resident():
    """The memory of this process, in MB."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_finished_runs_release_their_memory(tmp_path, monkeypatch, cases, report):
    experiments, alive, memory = weakref.WeakSet(), [], []
    start, close = Experiment.start, Experiment.close

    def start_and_count(self):
        experiments.add(self)
        alive.append(len(experiments))
        return start(self)

    def close_and_measure(self):
        close(self)
        memory.append(resident())

    monkeypatch.setattr(Experiment, "start", start_and_count)
    monkeypatch.setattr(Experiment, "close", close_and_measure)
    runs = cases(RUNS)
    configs = [
        RunConfig(runs_dir=tmp_path, seed=seed, epochs=1, batch_size=16, parallel="jit")
        for seed in range(runs)
    ]
    assert series.complete(configs) == 0
    # The first runs import and compile what all of them use.
    growth = memory[-1] - memory[min(FIRST, runs // 2)]
    report(
        f"{runs} runs: memory grew by {growth:.0f} MB to {memory[-1]:.0f} MB, at most "
        f"{max(alive)} at once in it"
    )
    assert alive == [1] * runs
    assert growth < MOST_GROWTH
