"""Worker processes that share the runs of a series on this machine."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from train import files
from train import progress as progress_bars
from train.errors import UserError
from train.interrupt import StopRequest
from train.markdown import counted
from train.run_config import RunConfig

# Option of all commands that run a series.
Processes = Annotated[
    int,
    tyro.conf.arg(
        help=(
            "Number of worker processes, which share the runs, the CPU cores and the "
            "accelerator's memory."
        )
    ),
]

_WORKER = (sys.executable, "-m", "train.experiments.worker")
_POLL_SECONDS = 1.0
# Runs take minutes, and a file keeps every update.
_BAR_SECONDS = 10.0
_MEMORY_SETTINGS = (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",  # Former name.
    "XLA_PYTHON_CLIENT_PREALLOCATE",
)
# Fraction of an accelerator's memory that all workers use together.
_MEMORY = 0.9
_LINES_SHOWN = 10
# A run that crashes a worker every time must not be repeated all night.
_MOST_RESTARTS = 2
# Signals by which someone stops a worker; others are crashes, or lack of memory.
_STOPPED_BY = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}


class _Worker:
    """A worker process, which can be restarted.

    Attributes:
        process: the process.
        log: the file of its output.
        restarts: number of restarts since a run was last finished.
    """

    def __init__(
        self, number: int, runs: Path, cores: set[int], environment: dict[str, str]
    ):
        self.log = runs.parent / f"worker-{number}.log"
        self.restarts = 0
        self._number, self._runs = number, runs
        self._cores, self._environment = cores, environment
        self.process = self._start()

    @property
    def how_it_ended(self) -> str:
        """The signal or exit status of the process."""
        status = self.process.returncode
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def restart_after_crash(self) -> bool:
        """Restarts an ended process if native code may have crashed by chance.

        Returns:
            Whether it was restarted.
        """
        number = -self.process.returncode
        if number <= 0 or number in _STOPPED_BY or self.restarts == _MOST_RESTARTS:
            return False
        self.restarts += 1
        progress_bars.write(
            f"Worker {self._number} ended with {self.how_it_ended} and was restarted "
            f"(restart {self.restarts} of at most {_MOST_RESTARTS} before a run is "
            f"finished). Output: {self.log}",
            file=sys.stderr,
        )
        self.end()
        self.process = self._start()
        return True

    def end(self) -> None:
        """Kills the process, if it still runs."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _start(self) -> subprocess.Popen:
        with self.log.open("a") as output, _pinned(self._cores):
            return subprocess.Popen(
                [*_WORKER, str(self._runs), *sys.argv[1:]],
                env=os.environ | self._environment,
                # Stays open while this process lives, see `worker.stop_with_parent`.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def complete(
    configs: Sequence[RunConfig],
    processes: int,
    is_finished: Callable[[RunConfig], bool],
) -> int:
    """Completes runs in worker processes and shows a progress bar.

    A worker that crashes, for example in native code, is restarted and resumes its run.

    Must be called before this process initializes JAX's devices, which would take most
    of an accelerator's memory.

    Args:
        configs: the missing runs.
        processes: number of workers, at least 1.
        is_finished: returns whether a run is finished.

    Returns:
        0, or 128 plus the number of the signal that stopped this process.

    Raises:
        UserError: if a worker fails. The others were stopped and have saved.
    """
    folder = _make_folder(configs[0].runs_dir.expanduser().absolute())
    runs = folder / "runs.json"
    files.write(runs, json.dumps([config.to_json() for config in configs]).encode())
    started = counted(processes, "worker")
    print(f"Started {started}. Output: {folder}/worker-*.log")
    failed, stopping, left = None, False, list(configs)
    with (
        StopRequest("Stopping the workers, which save checkpoints first.") as stop,
        _started(runs, processes) as workers,
        progress_bars.bar(
            total=len(configs), unit="run", mininterval=_BAR_SECONDS
        ) as bar,
    ):
        running = True
        while running:
            time.sleep(_POLL_SECONDS)
            for worker in workers:
                failing = worker.process.poll() and failed is None and not stop
                if failing and not worker.restart_after_crash():
                    failed = worker
            running = any(worker.process.returncode is None for worker in workers)
            if (stop or failed) and not stopping:
                stopping = True
                # After Ctrl-C they also received SIGINT and are already saving.
                for worker in workers:
                    worker.process.terminate()
            still_left = [config for config in left if not is_finished(config)]
            bar.update(len(left) - len(still_left))
            if len(still_left) < len(left):
                for worker in workers:
                    worker.restarts = 0
            left = still_left
    if failed is not None:
        raise UserError(_report(failed))
    if stop.signal is not None:
        print(
            f"Stopped by {stop.signal.name}; the workers have saved. Run the same "
            "command again to resume."
        )
        return 128 + stop.signal
    return 0


def _make_folder(runs_dir: Path) -> Path:
    """Creates the folder of the workers' logs; other processes may share `runs_dir`."""
    started = time.strftime("%Y%m%d-%H%M%S")
    name = f"{started}-{socket.gethostname()}-{os.getpid()}"
    folder = runs_dir / "workers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _started(runs: Path, processes: int) -> Iterator[list[_Worker]]:
    """Starts the workers; kills them at the end."""
    workers: list[_Worker] = []
    environment = _memory_share(processes)
    try:
        for number, cores in enumerate(_shares(_usable_cores(), processes), start=1):
            workers.append(_Worker(number, runs, cores, environment))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _memory_share(processes: int) -> dict[str, str]:
    """Returns the environment that limits each worker's share of device memory."""
    if any(name in os.environ for name in _MEMORY_SETTINGS):
        return {}
    return {_MEMORY_SETTINGS[0]: f"{_MEMORY / processes:.3f}"}


def _usable_cores() -> list[int]:
    """Returns the cores that this process may use; none where cores cannot be set."""
    # Not on macOS.
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _shares(cores: Sequence[int], processes: int) -> list[set[int]]:
    """Divides the cores among the workers; with too few, several workers share one."""
    if not cores:
        return [set()] * processes
    if len(cores) < processes:
        return [{cores[number % len(cores)]} for number in range(processes)]
    # Adjacent cores share caches.
    bounds = [len(cores) * number // processes for number in range(processes + 1)]
    return [set(cores[first:end]) for first, end in itertools.pairwise(bounds)]


@contextlib.contextmanager
def _pinned(cores: set[int]) -> Iterator[None]:
    """Pins this thread, and thereby the processes it starts, to some cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _report(worker: _Worker) -> str:
    text = worker.log.read_bytes().decode(errors="replace")
    # The last state of a progress bar.
    lines = [line.rpartition("\r")[2].rstrip() for line in text.rstrip().split("\n")]
    shown = "\n".join(f"  {line}" for line in lines[-_LINES_SHOWN:])
    return (
        f"A worker ended with {worker.how_it_ended}; the others were stopped and have "
        f"saved. Its last lines, from {worker.log}:\n{shown}\nRun the same command "
        "again to resume."
    )
