"""Runs pieces of work in worker processes, and ends each within its time limit."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import plan, results
from benchmarks.results import Results
from benchmarks.settings import Settings
from train import files
from train.errors import UserError
from train.interrupt import StopRequest

# Exit status of a worker, or of the command, if tasks are left.
MORE = 10
SIGNAL_SECONDS = 2.0
_POLL_SECONDS = 0.5
_WORKER = (sys.executable, "-m", "benchmarks.worker")
_LOG = "worker.log"
_LOG_LINES = 8
_QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Instructions for a worker, passed as JSON.

    Attributes:
        out: folder of the results.
        miniature: see `Settings`.
        dataset: see `Settings`.
        wanted: see `plan.tasks`.
        seconds: time limit of the worker.
        is_whole: whether `seconds` is the full limit of a piece, rather than the time
            that is left of `--minutes`.
        command: the command line to record.
        commit: commit to record; None for that of the checkout.
    """

    out: str
    miniature: bool
    dataset: str | None
    wanted: tuple[str, ...]
    seconds: float
    is_whole: bool
    command: str
    commit: str | None

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path(self.out)

    @property
    def settings(self) -> Settings:
        """Settings of the results."""
        return Settings(self.miniature, self.dataset)

    @property
    def grace_seconds(self) -> float:
        """Seconds between the request to stop and the kill."""
        return min(30.0, 0.2 * self.seconds)

    @property
    def working_seconds(self) -> float:
        """Seconds after which the worker is told to stop."""
        return self.seconds - self.grace_seconds


def current(out: Path) -> Path:
    """File with the current task of the worker, in case the worker crashes."""
    return out / "current.json"


def run(piece: Piece, stop: StopRequest) -> int:
    """Runs a worker.

    Args:
        piece: instructions for the process.
        stop: true if a signal asked this command to stop.

    Returns:
        0 if nothing is left to do, else `MORE`.

    Raises:
        UserError: if it ended before its first task.
    """
    out = piece.folder
    current(out).unlink(missing_ok=True)
    began = time.monotonic()
    news = _News(Results(out))
    told_first = told = None
    killed = False
    with _started(piece) as process:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            news.tell()
            now = time.monotonic()
            if not (stop or now - began > piece.working_seconds):
                continue
            told_first = told_first or now
            if now - told_first > piece.grace_seconds:
                killed = True
                process.kill()
                process.wait()
            elif told is None or now - told > SIGNAL_SECONDS:
                # Repeated, since a signal between two training runs may be missed.
                told = now
                process.terminate()
    news.tell()
    if process.returncode in (0, MORE):
        return process.returncode
    if told is not None and process.returncode == -signal.SIGTERM:
        return MORE  # SIGTERM ended it while it was starting.
    if not current(out).exists():
        # It was told to stop while it was still starting, so it did not fail.
        if told is not None:
            return MORE
        raise UserError(f"A worker ended before its first task:\n{_log(out)}")
    _record_end(piece, process.returncode, killed, stopped=bool(stop))
    news.tell()
    return MORE


def _record_end(piece: Piece, status: int, killed: bool, stopped: bool) -> None:
    """Records the task that ended its worker, or that would not end, as failed."""
    values = json.loads(files.read(current(piece.folder)))
    tasks = plan.tasks(piece.settings, piece.folder)
    (task,) = (task for task in tasks if task.name == values["name"])
    store = Results(piece.folder)
    if store.is_done(task.name):
        return
    if killed and (stopped or task.resumable or not values["fresh"]):
        return  # It may well end in another piece.
    how = "took longer than a piece" if killed else f"ended with status {status}"
    store.write(
        task,
        results.FAILED,
        seconds=0.0,
        environment=values["environment"],
        reason=f"{how}. {_log(piece.folder)}",
    )


@contextlib.contextmanager
def _started(piece: Piece) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a worker, and leaves none behind."""
    # Otherwise JAX would preallocate most of the GPU's memory, and PyTorch needs some.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if piece.miniature:
        # Each program runs only a few steps, so most of the time goes to compilation.
        environment["XLA_FLAGS"] = _QUICK_COMPILATION
    environment |= os.environ
    message = json.dumps(dataclasses.asdict(piece))
    with (piece.folder / _LOG).open("ab") as output:
        process = subprocess.Popen(
            [*_WORKER, message],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,  # Stays open as long as this process lives.
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must not reach the worker twice.
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


class _News:
    """Prints what became of tasks, as their files appear."""

    def __init__(self, store: Results):
        self._store = store
        self._times = store.times()

    def tell(self) -> None:
        """Prints what is new."""
        times = self._store.times()
        changed = [name for name in times if times[name] != self._times.get(name)]
        self._times = times
        for name in changed:
            record = self._store.read(name)
            if record is not None:
                reason = (record["reason"] or "").partition("\n")[0][:200]
                print(
                    f"{name}: {record['status']}, {record['seconds']:.1f} s"
                    f"{reason and f' ({reason})'}",
                    flush=True,
                )


def _log(out: Path) -> str:
    """The last lines that workers wrote."""
    text = (out / _LOG).read_bytes().decode(errors="replace")
    lines = [line.rpartition("\r")[2] for line in text.rstrip().split("\n")]
    return "\n".join(lines[-_LOG_LINES:])
