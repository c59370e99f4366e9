"""Locks on runs: two commands never write the same one, and share a series."""

import dataclasses
import json
import signal
import subprocess
import sys

import pytest

from train import cli
from train.errors import UserError
from train.experiments import series
from train.run import folder as run_folder
from train.run.lock import RunInProgress, RunLock
from train.run_config import RunConfig

from .results import row

HOLD = """
import pathlib, sys, time
from train.run.lock import RunLock
with RunLock() as lock:
    lock.take(pathlib.Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_lock_holds_a_folder_at_a_time(tmp_path):
    with RunLock() as lock:
        assert lock.take(tmp_path) == tmp_path
        assert lock.take(tmp_path) == tmp_path
        with RunLock() as other, pytest.raises(RunInProgress, match="is in progress"):
            other.take(tmp_path)
    with RunLock() as other:
        other.take(tmp_path)


def test_a_killed_process_holds_no_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with RunLock() as lock:
                with pytest.raises(RunInProgress, match=f"process {process.pid} on"):
                    lock.take(tmp_path)
                process.send_signal(signal.SIGKILL)
                process.wait()
                lock.take(tmp_path)
        finally:
            process.kill()


def test_a_folder_that_was_replaced_is_noticed(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    with RunLock() as lock:
        lock.take(path)
        lock.check()
        path.rename(tmp_path / "moved")
        path.mkdir()
        (path / "lock").write_text("")
        with pytest.raises(UserError, match="was moved, removed or replaced"):
            lock.check()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("!")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with RunLock() as lock, pytest.raises(UserError, match="lock is a symbolic link"):
        lock.take(tmp_path)
    assert (tmp_path / "precious").read_text() == "!"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("train.run.lock.fcntl.flock", refuse)
    with (
        RunLock() as lock,
        pytest.raises(UserError, match="does not support locks.*--runs-dir"),
    ):
        lock.take(tmp_path)


def test_a_run_in_progress_is_not_resumed(tmp_path, capsys):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), {}).path
    with RunLock() as lock:
        lock.take(path)
        assert cli.main(["--resume", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: The run {path} is in progress: process ")
    assert "then resume it" in err


@pytest.fixture
def configs(tmp_path):
    return [RunConfig(seed=seed, epochs=1, runs_dir=tmp_path) for seed in range(3)]


@pytest.fixture
def ran(monkeypatch):
    """Makes runs finish at once; lists their seeds in the order in which they ran."""
    seeds = []

    def run(config, lock):
        seeds.append(config.seed)
        with RunLock() as other, pytest.raises(RunInProgress):
            other.take(config.run_dir or config.resume)
        write_metrics(config, config.run_dir or config.resume)
        return 0

    monkeypatch.setattr(series, "run", run)
    monkeypatch.setattr(series, "keep_compiled", lambda folder: None)
    return seeds


def write_metrics(config, path):
    record = {"config": config.to_json(), "dataset": {}, "environment": {}}
    (path / "record.json").write_text(json.dumps(record))
    (path / "metrics.jsonl").write_text(json.dumps(row(config.epochs)) + "\n")


def held(config):
    """A lock on a run's folder, as if another process held it."""
    path = series.run_path(config)
    path.mkdir(exist_ok=True)
    lock = RunLock()
    lock.take(path)
    return lock


@pytest.mark.parametrize("other_finishes", [True, False])
def test_a_series_waits_for_runs_of_others_and_takes_over_unfinished_ones(
    configs, ran, monkeypatch, capsys, other_finishes
):
    first, _, third = configs
    locks = {0: held(first), 2: held(third)}
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:  # The runs of the other process end one by one.
            if other_finishes:
                write_metrics(third, series.run_path(third))
            locks[2].__exit__()
        if len(sleeps) == 6:
            locks[0].__exit__()

    monkeypatch.setattr(series.time, "sleep", sleep)
    assert series.complete(configs) == 0

    assert ran == ([1, 0] if other_finishes else [1, 2, 0])
    assert all(series.finished_metrics(config) for config in configs)
    out = capsys.readouterr().out
    assert out.count("Waiting for runs held by other processes:") == 1
    assert str(series.run_path(third)) in out
    assert "Run 2 of 3 to do:" in out


def test_a_finished_run_is_not_waited_for(configs, ran, monkeypatch):
    """The process that holds it may be drawing its pictures, or extending it."""
    first = configs[0]
    with held(first):

        def sleep(seconds):
            assert series.finished_metrics(first) is None
            write_metrics(first, series.run_path(first))

        monkeypatch.setattr(series.time, "sleep", sleep)
        assert series.complete(configs) == 0
    assert ran == [1, 2]


def test_a_run_that_another_process_finished_is_not_run(configs, ran, monkeypatch):
    finish = series.run

    def run(config, lock):
        if config.seed == 0:
            last = configs[2]
            series.run_path(last).mkdir()
            write_metrics(last, series.run_path(last))
        return finish(config, lock)

    monkeypatch.setattr(series, "run", run)
    assert series.complete(configs) == 0
    assert ran == [0, 1]


def test_a_folder_that_holds_only_a_lock_takes_a_new_run(configs, ran):
    held(configs[0]).__exit__()
    assert [path.name for path in series.run_path(configs[0]).iterdir()] == ["lock"]
    config = dataclasses.replace(configs[0], run_dir=series.run_path(configs[0]))
    assert run_folder.create(config, {}).path == config.run_dir
    with pytest.raises(UserError, match="already exists"):
        run_folder.create(config, {})


def test_a_stopped_run_ends_the_series_and_releases_its_lock(configs, ran, monkeypatch):
    monkeypatch.setattr(series, "run", lambda config, lock: 128 + signal.SIGTERM)
    assert series.complete(configs) == 128 + signal.SIGTERM
    held(configs[0]).__exit__()
