"""Workers, and the process that starts them: each task's outcome is recorded."""

import dataclasses
import json
import sys
import time

import pytest

from benchmarks import pieces, plan, results, worker
from benchmarks.pieces import MORE, Piece
from benchmarks.results import Results
from benchmarks.task import Failed, Skipped, Stopped, Task, Work
from train.errors import UserError

SHORT, LONG = Work(programs=0), Work(programs=100)


@pytest.fixture
def piece(tmp_path):
    parts = tuple("abc")
    return Piece(str(tmp_path), True, None, parts, 60.0, True, "command", "commit")


def task(name, run=lambda stopped: {"value": 1}, work=SHORT, resumable=False):
    return Task(name, f"Task {name}", run, work, resumable)


def raising(error):
    def run(stopped):
        raise error

    return run


@pytest.fixture
def planned(monkeypatch):
    """Replaces the tasks of the plan."""

    def replace(*tasks):
        monkeypatch.setattr(plan, "tasks", lambda *_: list(tasks))

    return replace


def statuses(piece):
    return {r["name"]: r["status"] for r in Results(piece.folder).all()}


def test_a_worker_records_the_outcome_of_each_task(piece, planned):
    planned(
        task("a-good", lambda stopped: {"loss": float("nan"), "pair": (1, 2)}),
        task("a-wrong", raising(Failed("wrong", {"seen": 2}))),
        task("a-broken", raising(RuntimeError("out of memory"))),
        task("a-absent", raising(Skipped("needs PyTorch"))),
    )

    assert worker.work(piece) == 0

    store = Results(piece.folder)
    assert statuses(piece) == {
        "a-good": "finished",
        "a-wrong": "failed",
        "a-broken": "failed",
        "a-absent": "skipped",
    }
    good = store.read("a-good")
    assert good["result"] == {"loss": None, "pair": [1, 2]}
    assert store.read("a-wrong")["result"] == {"seen": 2}
    assert "RuntimeError: out of memory" in store.read("a-broken")["reason"]
    environment = good["environment"]
    assert environment["command"] == "command"
    assert environment["commit"] == "commit"
    assert environment["devices"]
    assert environment["versions"]["jax"]
    assert environment["settings"] == {"miniature": True, "dataset": None}
    # Finished tasks are not repeated; skipped ones are tried again.
    planned(task("a-good", raising(AssertionError)), task("a-absent"))
    assert worker.work(piece) == 0
    assert statuses(piece)["a-absent"] == "finished"
    assert store.read("a-good") == good


def test_a_stopped_task_resumes_in_the_next_piece(piece, planned):
    planned(task("c-runs", raising(Stopped({"epochs": 3})), resumable=True))
    assert worker.work(piece) == MORE
    store = Results(piece.folder)
    record = store.read("c-runs") | {"seconds": 100.0}
    store.path("c-runs").write_text(json.dumps(record))
    assert record["status"] == "stopped"
    assert not store.is_done("c-runs")

    planned(task("c-runs", resumable=True))
    assert worker.work(piece) == 0
    assert store.read("c-runs")["status"] == "finished"
    assert store.read("c-runs")["seconds"] >= 100


def test_a_task_that_cannot_stop_needs_enough_time_or_a_whole_piece(piece, planned):
    tasks = [task("a-long", work=LONG), task("a-short"), task("b-long", work=LONG)]
    planned(*tasks, task("c-runs", work=LONG, resumable=True))
    # In the remaining time of a call, a long task starts only if it can be resumed.
    rest = dataclasses.replace(piece, is_whole=False)
    assert worker.work(rest) == MORE
    assert statuses(piece).keys() == {"a-short", "c-runs"}
    # The first task gets a whole piece, the longest time available.
    assert worker.work(piece) == MORE
    assert statuses(piece).keys() == {"a-long", "a-short", "c-runs"}
    assert worker.work(piece) == 0
    assert statuses(piece)["b-long"] == "finished"


WORKER = """
import json, os, pathlib, signal, sys, time
piece = json.loads(sys.argv[1])
def begin(fresh):
    now = {{"name": "a-task", "fresh": fresh, "environment": {{}}}}
    (pathlib.Path(piece["out"]) / "current.json").write_text(json.dumps(now))
print("last words", flush=True)
{body}
"""


@pytest.fixture
def run_worker(piece, planned, monkeypatch, tmp_path):
    """Runs a two-second piece with a worker script of its own."""

    def run(body, resumable=False):
        planned(task("a-task", resumable=resumable))
        script = tmp_path / "script.py"
        script.write_text(WORKER.format(body=body))
        monkeypatch.setattr(pieces, "_WORKER", (sys.executable, str(script)))
        short = dataclasses.replace(piece, seconds=2.0)
        return pieces.run(short, stop=False)

    return run


def test_a_task_whose_process_aborts_has_failed(run_worker, piece, capsys):
    assert run_worker("begin(True); os.abort()") == MORE
    record = Results(piece.folder).read("a-task")
    assert record["status"] == results.FAILED
    assert "ended with status -6. last words" in record["reason"]
    assert "a-task: failed" in capsys.readouterr().out


SLEEPER = "signal.signal(signal.SIGTERM, signal.SIG_IGN); begin({}); time.sleep(30)"


@pytest.mark.parametrize(
    ("fresh", "resumable", "failed"),
    [(True, False, True), (False, False, False), (True, True, False)],
)
def test_a_task_that_ignores_sigterm_is_killed(
    run_worker, piece, fresh, resumable, failed
):
    began = time.monotonic()
    assert run_worker(SLEEPER.format(fresh), resumable) == MORE
    assert time.monotonic() - began < 15
    record = Results(piece.folder).read("a-task")
    if failed:
        assert "took longer than a piece" in record["reason"]
    else:
        assert record is None


@pytest.mark.parametrize(
    "handler", ["lambda *_: os._exit(10)", "signal.SIG_DFL"], ids=["stops", "dies"]
)
def test_a_worker_that_exits_on_sigterm_leaves_no_result(run_worker, piece, handler):
    body = f"begin(True); signal.signal(signal.SIGTERM, {handler}); time.sleep(30)"
    assert run_worker(body) == MORE
    assert not Results(piece.folder).all()


def test_a_worker_that_ends_before_its_first_task_is_an_error(run_worker):
    with pytest.raises(UserError, match="ended before its first task:\nlast words"):
        run_worker("sys.exit(1)")
