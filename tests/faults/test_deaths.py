"""One of two processes dies at a random time: the other ends, and the run resumes."""

import collections
import signal
import time

import numpy as np
import pytest

from tests.train import processes
from tests.train.results import without_times

# In half of them, the process that writes dies.
DEATHS = 12
OPTIONS = ["--epochs", "6", "--connect-timeout", "120"]
# The time from the first step to the end is about four seconds.
MOST_SECONDS = 4.0
# The other ends at once, as docs/scaling.md promises; a busy machine takes longer.
PROMISED_SECONDS = 60


@pytest.mark.slow
def test_a_death_at_any_time_ends_the_other_and_the_run_resumes(
    tmp_path, cases, report
):
    whole = ["--run-dir", str(tmp_path / "whole")]
    statuses, output = processes.finish(
        processes.of_a_run(*OPTIONS, *whole), tmp_path, timeout=400
    )
    assert statuses == [0, 0], output
    counts, longest = collections.Counter(), 0.0
    for seed in range(cases(DEATHS)):
        dies, run = seed % 2, tmp_path / f"run{seed}"
        delay = np.random.default_rng(seed).uniform(0, MOST_SECONDS)
        commands = processes.of_a_run(
            *OPTIONS, "--run-dir", str(run), die_after=f"{delay}s", dies=dies
        )
        with processes.started(commands, tmp_path) as started:
            status, start = started[dies].wait(400), time.monotonic()
            survivor = started[1 - dies].wait(PROMISED_SECONDS)
            longest = max(longest, time.monotonic() - start)
        output = (tmp_path / f"{1 - dies}.log").read_text()
        assert "Traceback" not in output
        if survivor == 0:
            assert without_times(run) == without_times(tmp_path / "whole")
            counts["after the end"] += 1
            continue
        assert status == -signal.SIGKILL
        assert survivor == 2, output
        assert output.count("Error: ") == 1
        assert f"process {dies} has ended" in output
        assert "python -m train --resume" in output
        statuses, texts = processes.finish(
            processes.of_a_run("--resume", str(run), "--connect-timeout", "120"),
            tmp_path,
            timeout=400,
        )
        assert statuses == [0, 0], texts
        assert without_times(run) == without_times(tmp_path / "whole")
        resumed = "Resuming from step" in texts[0]
        kind = "after a checkpoint" if resumed else "before the first checkpoint"
        counts[f"process {dies} {kind}"] += 1
    report(
        f"{sum(counts.values())} deaths: {dict(sorted(counts.items()))}; the other "
        f"ended within {longest:.1f} s"
    )
