"""One piece: `python -m benchmarks.worker JSON`, started by `python -m benchmarks gpu`.

Runs tasks until none is left that should end in time, or until it receives SIGTERM.
Each piece is a process of its own, so that a task that crashes the process does not
keep the others from running.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.extend

from benchmarks import plan, results
from benchmarks.estimates import Estimates
from benchmarks.pieces import MORE, SIGNAL_SECONDS, Piece, current
from benchmarks.results import Results
from benchmarks.settings import Settings
from benchmarks.task import Failed, Skipped, Stopped, Task
from train import files, provenance
from train.interrupt import StopRequest
from train.run.lock import RunInProgress, RunLock

_SIGNALS_TO_ORPHAN = 15
# An earlier worker whose command was killed ends within this time.
_LOCK_SECONDS = 60.0


def work(piece: Piece) -> int:
    """Runs the tasks in order; returns 0 if none is left, or else `MORE`."""
    began = time.monotonic()
    out = piece.folder
    settings = piece.settings
    if settings.miniature:
        # Shortens compilation, like the XLA flags that `pieces` sets.
        jax.config.update("jax_disable_most_optimizations", True)
    store = Results(out)
    environment = _environment(piece, settings)
    estimates = Estimates(jax.devices()[0].device_kind, store.all())
    too_long = False
    # Whether the next task has a whole piece to itself, the longest time it can get.
    fresh = piece.is_whole
    message = "Stopping after this task, or within it if it saves what it has done."
    with StopRequest(message) as stop, RunLock() as lock:
        _take(lock, out)
        for task in plan.tasks(settings, out, piece.wanted):
            if store.is_done(task.name):
                continue
            if stop:
                return MORE
            left = piece.working_seconds - (time.monotonic() - began)
            # A task that cannot be resumed is started only if it should end in time, or
            # if no later piece would give it more time.
            if not (task.resumable or fresh or estimates.seconds(task) < left):
                too_long = True
                continue
            now = {"name": task.name, "fresh": fresh, "environment": environment}
            files.write(current(out), json.dumps(now).encode())
            if not _attempt(task, store, environment, stop):
                return MORE
            fresh = False
            jax.clear_caches()
    return MORE if too_long else 0


def _take(lock: RunLock, out: Path) -> None:
    """Locks the folder, after an earlier worker has released it."""
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            lock.take(out)
            return
        except RunInProgress:
            if time.monotonic() > end:
                raise
        time.sleep(1)


def _attempt(
    task: Task, store: Results, environment: dict[str, Any], stop: StopRequest
) -> bool:
    """Runs a task and records its outcome; returns False if it was stopped."""
    began = time.perf_counter()
    print(f"== {task.name}: {task.title}", flush=True)
    result, reason, status = None, None, results.FINISHED
    try:
        result = task.run(lambda: bool(stop))
    except Stopped as error:
        status, reason, result = results.STOPPED, str(error), error.result
    except Skipped as error:
        status, reason = results.SKIPPED, str(error)
    except Failed as error:
        status, reason, result = results.FAILED, str(error), error.result
    # Any error is recorded as a result, and the next task starts.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        status, reason = results.FAILED, f"{type(error).__name__}: {error}"[:2000]
    store.write(
        task,
        status,
        seconds=time.perf_counter() - began,
        environment=environment,
        result=result,
        reason=reason,
    )
    return status != results.STOPPED


def _environment(piece: Piece, settings: Settings) -> dict[str, Any]:
    about = provenance.describe()
    return about | {
        "command": piece.command,
        "commit": piece.commit or about["commit"],
        "platform": jax.extend.backend.get_backend().platform_version,
        "cpu_cores": os.cpu_count(),
        "settings": dataclasses.asdict(settings),
        "sizes": dataclasses.asdict(settings.sizes),
    }


def _end_with_parent() -> None:
    """Ends this process soon after the one that started it, however that ended."""
    os.read(0, 1)  # Nothing comes: it returns when the other end is closed.
    for _ in range(_SIGNALS_TO_ORPHAN):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SIGNAL_SECONDS)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    # The `StopRequest` of `work` restores this handler when it ends, so that a repeated
    # SIGTERM does not change the exit status of a worker that is stopping.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(work(Piece(**json.loads(sys.argv[1]))))
