"""Runs killed at random times and resumed end like an uninterrupted run."""

import collections
import json
import shutil
import signal

import numpy as np
import pytest

from tests.train import processes
from train import cli
from train.run.checkpoints import latest_rows

KILLS = 30
EPOCHS = 12
OPTIONS = ["--parallel", "jit", "--batch-size", "16", "--epochs", str(EPOCHS)]
# The time from the first epoch's metrics to the end is about two seconds.
MOST_SECONDS = 2.0


def rows(path):
    """The metrics on disk, without their times."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_metrics_of_an_uninterrupted_run(
    tmp_path, cases, report
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli.main([*OPTIONS, "--run-dir", str(whole)]) == 0
    expected = rows(whole)
    counts = collections.Counter()
    for seed in range(cases(KILLS)):
        shutil.rmtree(run, ignore_errors=True)
        delay = np.random.default_rng(seed).uniform(0, MOST_SECONDS)
        command = ["tests.faults.killed_run", str(delay), *OPTIONS]
        (status,), output = processes.finish(
            [[*command, "--run-dir", str(run)]], tmp_path
        )
        assert status in (0, -signal.SIGKILL), output
        inside = any((run / "checkpoints").glob("*tmp*"))
        kind = "while saving" if inside else "between saves"
        counts["finished before" if status == 0 else kind] += 1
        assert cli.main(["--resume", str(run)]) == 0
        assert rows(run) == expected
        # The copy of the metrics in the latest checkpoint is complete.
        assert len(latest_rows(run / "checkpoints")) == EPOCHS
        assert not (run / "damaged-checkpoints").exists()
    report(f"{sum(counts.values())} kills: {dict(sorted(counts.items()))}")
