"""`--processes`: workers share runs, and stop, fail and end as one command."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from train import cli
from train.errors import UserError
from train.experiments import series, worker, workers
from train.run import folder as run_folder
from train.run import metrics
from train.run_config import RunConfig

from . import processes
from .results import row

# A worker that trains nothing: it records its share, and marks every second run as
# finished. DO runs first.
STUB = """
import json, os, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
configs = json.loads(path.read_text())
with (path.parent / "claim").open("a") as file:
    file.write(".")
    file.flush()
    number = file.tell() - 1
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
memory = {name: os.environ[name] for name in os.environ if "CLIENT" in name}
share = {"cores": cores, "memory": memory, "arguments": sys.argv[2:]}
(path.parent / f"share-{number}").write_text(json.dumps(share))
def stop(*_):
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("\\r 1/9\\r 9/9\\nworking", flush=True)
DO
for config in configs[number::2]:
    pathlib.Path(config["runs_dir"], str(config["seed"])).touch()
"""


@pytest.fixture
def configs(tmp_path):
    return [RunConfig(seed=seed, runs_dir=tmp_path) for seed in range(5)]


@pytest.fixture
def complete(configs, tmp_path, monkeypatch):
    """Completes `configs` with two workers that first do something."""
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(sys, "argv", ["train", "sweep", "--seeds", "5"])

    def run(do="", count=2):
        stub = (sys.executable, "-c", STUB.replace("DO", do))
        monkeypatch.setattr(workers, "_WORKER", stub)
        return workers.complete(
            configs, count, lambda config: (tmp_path / str(config.seed)).exists()
        )

    return run


def folder(tmp_path):
    (path,) = (tmp_path / "workers").iterdir()
    return path


def shares(tmp_path):
    paths = sorted(folder(tmp_path).glob("share-*"))
    return [json.loads(path.read_text()) for path in paths]


def test_workers_share_runs_cores_and_memory(
    complete, configs, tmp_path, monkeypatch, capsys
):
    for name in workers._MEMORY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    cores = workers._usable_cores()
    assert complete() == 0

    assert workers._usable_cores() == cores
    out, err = capsys.readouterr()
    assert f"{folder(tmp_path)}/worker-*.log" in out
    assert "5/5" in err
    runs = json.loads((folder(tmp_path) / "runs.json").read_text())
    assert [series.run_path(RunConfig.from_json(values)) for values in runs] == [
        series.run_path(config) for config in configs
    ]
    first, second = shares(tmp_path)
    for share in (first, second):
        assert share["memory"] == {"XLA_CLIENT_MEM_FRACTION": "0.450"}
        assert share["arguments"] == ["sweep", "--seeds", "5"]
    if len(cores) > 1:
        assert sorted(first["cores"] + second["cores"]) == cores


@pytest.mark.parametrize("name", workers._MEMORY_SETTINGS)
def test_memory_settings_of_the_user_are_kept(name, complete, tmp_path, monkeypatch):
    for other in workers._MEMORY_SETTINGS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, ".2")
    assert complete() == 0
    assert [share["memory"] for share in shares(tmp_path)] == 2 * [{name: ".2"}]


def test_cores_are_divided_among_workers():
    assert workers._shares([0, 1, 2, 5, 6], 2) == [{0, 1}, {2, 5, 6}]
    assert workers._shares([3, 4], 2) == [{3}, {4}]
    assert workers._shares([3, 4], 3) == [{3}, {4}, {3}]
    assert workers._shares([], 2) == [set(), set()]


def test_a_worker_that_fails_stops_the_others_and_is_quoted(complete, tmp_path, capsys):
    do = """
while sum(log.read_text().count("working") for log in path.parent.glob("*.log")) < 2:
    time.sleep(0.02)
if number:
    print("Error: the disk is full")
    sys.exit(2)
time.sleep(60)
"""
    with pytest.raises(UserError) as caught:
        complete(do)
    output = str(caught.value)
    assert "ended with exit status 2; the others were stopped" in output
    assert "\n   9/9\n  working\n  Error: the disk is full\n" in output
    log = Path(re.search(r"from (/\S+\.log):", output)[1])
    assert "the disk is full" in log.read_text()
    (other,) = set(log.parent.glob("*.log")) - {log}
    assert other.read_text().endswith("working\nsaved\n")


def test_a_worker_that_is_killed_is_a_failure(complete):
    with pytest.raises(UserError, match="ended with signal 9;"):
        complete("if number: os.kill(os.getpid(), 9)\ntime.sleep(60)")


def test_a_worker_that_crashes_is_restarted(complete, tmp_path, capsys):
    """Native code may crash; the worker's runs are completed all the same."""
    do = """
if number == 0:
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
number %= 2
"""
    assert complete(do) == 0
    output = re.findall("Worker . ended with signal 11 .*", capsys.readouterr().err)
    assert len(output) == 1
    assert (
        "was restarted (restart 1 of at most 2 before a run is finished)" in output[0]
    )
    log = Path(re.search(r"(/\S+\.log)", output[0])[1])
    assert log.read_text().count("working") == 2
    pinned = {frozenset(share["cores"]) for share in shares(tmp_path)}
    assert pinned == set(map(frozenset, workers._shares(workers._usable_cores(), 2)))


def test_restarts_are_counted_until_a_run_is_finished(complete, capsys):
    do = """
if number < 4:
    pathlib.Path(configs[0]["runs_dir"], str(number)).touch()
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    assert complete(do, count=1) == 0
    assert capsys.readouterr().err.count("was restarted") == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_worker_is_not_restarted_and_one_that_always_crashes_only_twice(
    complete, capsys, number
):
    do = f"signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), {int(number)})"
    with pytest.raises(UserError, match=f"ended with signal {int(number)};"):
        complete(do, count=1)
    restarts = capsys.readouterr().err.count("was restarted")
    assert restarts == (0 if number == signal.SIGTERM else 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_waits_for_workers_to_save(
    complete, tmp_path, monkeypatch, capsys, number
):
    handler = signal.getsignal(number)

    def sleep(seconds):
        time.sleep(seconds)
        logs = (tmp_path / "workers").glob("*/*.log")
        if not stopped and [path.read_text()[-8:] for path in logs] == 2 * [
            "working\n"
        ]:
            stopped.append(True)
            signal.raise_signal(number)

    stopped = []
    monkeypatch.setattr(workers, "time", Clock(sleep))
    assert complete("time.sleep(60)") == 128 + number
    assert signal.getsignal(number) == handler
    assert f"Stopped by {number.name}; the workers have saved." in (
        capsys.readouterr().out
    )
    for log in folder(tmp_path).glob("*.log"):
        assert log.read_text().endswith("saved\n")


class Clock:
    """The module `time` with another `sleep`."""

    strftime = staticmethod(time.strftime)

    def __init__(self, sleep):
        self.sleep = sleep


def test_an_interrupt_while_waiting_kills_the_workers(complete, tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen

    def spy(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.subprocess, "Popen", spy)
    monkeypatch.setattr(workers, "time", Clock(sleep))
    with pytest.raises(KeyboardInterrupt):
        complete("time.sleep(60)")
    assert [process.returncode for process in started] == 2 * [-signal.SIGKILL]


def test_a_worker_stops_when_its_parent_is_gone(capsys):
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        ours, parents = os.pipe()
        watch = threading.Thread(target=worker.stop_with_parent, args=(ours,))
        watch.start()
        assert not stopped.wait(0.05)
        os.close(parents)
        assert stopped.wait(10)
        watch.join()
        os.close(ours)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "has ended" in capsys.readouterr().err


def test_a_worker_completes_the_runs_of_its_file(
    configs, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([config.to_json() for config in configs]))
    monkeypatch.setattr(sys, "argv", ["worker", str(path), "sweep"])
    monkeypatch.setattr(worker.os, "read", lambda *_: threading.Event().wait())

    def complete(given):
        places.extend(series.run_path(config) for config in given)
        raise UserError("the data are gone")

    places = []
    monkeypatch.setattr(series, "complete", complete)
    assert worker.main() == 2
    assert places == [series.run_path(config) for config in configs]
    assert sys.argv == ["worker", "sweep"]
    assert capsys.readouterr().err == "Error: the data are gone\n"


def test_a_series_passes_unfinished_runs_to_workers(configs, monkeypatch, capsys):
    first = dataclasses.replace(configs[0], run_dir=series.run_path(configs[0]))
    described = first.load_dataset().describe()
    path = run_folder.create(first, described).path
    rows = [json.dumps(row(epoch)) for epoch in range(1, 21)]
    (path / "metrics.jsonl").write_text("\n".join(rows))
    calls = []
    monkeypatch.setattr(
        workers, "complete", lambda *given, is_finished: calls.append(given) or 7
    )
    assert series.complete(configs, processes=2) == 7
    assert series.complete(configs, processes=9) == 7
    assert series.complete(configs[:1], processes=9) == 0
    assert calls == [(configs[1:], 2), (configs[1:], 4)]
    assert "1 of 5 runs are finished." in capsys.readouterr().out
    with pytest.raises(UserError, match="--processes must be at least 1, got 0"):
        series.complete(configs, processes=0)


COMMAND = ["compare", "--optimizers", "sgd", "adam", "--epochs", "1"]


@pytest.mark.slow
def test_two_equal_commands_run_each_run_once(tmp_path):
    """Two commands of two workers, four runs."""
    command = [*COMMAND, "--seeds", "2", "--processes", "2"]
    command += ["--runs-dir", str(tmp_path / "runs")]
    statuses, output = processes.finish([["train", *command]] * 2, tmp_path)
    assert statuses == [0, 0], output

    logs = [path.read_text() for path in (tmp_path / "runs/workers").glob("*/*.log")]
    assert len(logs) == 4
    whole = "".join(logs)
    assert whole.count("Test accuracy") == 4, whole
    assert "Resuming from step" not in whole
    for text in output:
        assert "| sgd " in text
        assert "2/2" in text
    runs = list((tmp_path / "runs").glob("digits-*"))
    assert len(runs) == 4
    for path in runs:
        assert len(metrics.read(path / "metrics.jsonl")) == 1
        record = json.loads((path / "record.json").read_text())
        command = record["environment"]["command"]
        assert command.startswith("python -m train compare --optimizers sgd adam")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_command(tmp_path, number):
    command = [*COMMAND, "--processes", "2", "--epochs", "1000"]
    command += ["--runs-dir", str(tmp_path / "runs")]
    with processes.started([["train", *command]], tmp_path) as (parent,):

        def rows():
            paths = (tmp_path / "runs").glob("digits-*/metrics.jsonl")
            return [len(metrics.read(path)) for path in paths]

        wait_until(lambda: len(rows()) == 2 and min(rows()) >= 1)
        parent.send_signal(number)
        status = parent.wait(60)
        assert status == (128 + number if number == signal.SIGTERM else -number)
        logs = list((tmp_path / "runs/workers").glob("*/*.log"))
        wait_until(
            lambda: all("Stopped by SIGTERM and saved" in p.read_text() for p in logs)
        )
    output = (tmp_path / "0.log").read_text()
    if number == signal.SIGTERM:
        assert "Run the same command again to resume." in output
    # The runs that the workers left can be resumed: no process holds them.
    for path in (tmp_path / "runs").glob("digits-*"):
        with series.RunLock() as lock:
            wait_until(lambda path=path, lock=lock: free(lock, path))


def free(lock, path):
    with contextlib.suppress(series.RunInProgress):
        return lock.take(path)


def wait_until(condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_the_command_leaves_the_devices_to_its_workers(tmp_path):
    code = (
        "import sys; from train import cli; from jax._src import xla_bridge\n"
        "assert cli.main(sys.argv[1:]) == 0\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    command = [*COMMAND, "--processes", "2", "--runs-dir", str(tmp_path)]
    result = processes.python("-c", code, *command)
    assert "2/2" in result.stderr


def test_an_invalid_number_of_processes_is_an_error(tmp_path, capsys):
    command = [*COMMAND, "--processes", "0", "--runs-dir", str(tmp_path)]
    assert cli.main(command) == 2
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err
