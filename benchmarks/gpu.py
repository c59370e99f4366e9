"""`python -m benchmarks gpu`: runs the measurements in worker processes."""

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import jax
import tyro

from benchmarks import estimates, images, pieces, plan, settings
from benchmarks.pieces import MORE, Piece
from benchmarks.results import Results
from benchmarks.settings import Settings
from train import markdown
from train.config import option
from train.data import registry
from train.errors import UserError
from train.interrupt import StopRequest


@dataclasses.dataclass(frozen=True)
class GpuConfig:
    """Measure on an accelerator; run the same command again to resume."""

    out: Path
    """Folder of the results; created if it does not exist."""
    minutes: float = 45
    """Minutes after which to stop."""
    piece_minutes: float = 9
    """Maximum minutes of each worker process; workers run one after another."""
    only: Annotated[str, tyro.conf.arg(metavar="PART|TASK,...")] = ",".join(plan.PARTS)
    """Parts to run, such as b,c, or tasks, such as b-resnet20-* (see --dry-run)."""
    data: Path | None = None
    """Folder of images, train/CLASS/ and test/CLASS/, for parts c to f."""
    miniature: bool = False
    """Run everything on a CPU in minutes, at tiny sizes and on generated images."""
    dry_run: bool = False
    """Print the plan with estimated times, and run nothing."""
    device_kind: str | None = None
    """Device that --dry-run assumes, such as "NVIDIA H100". Default: this machine's."""
    retry_failed: bool = False
    """Run failed tasks again."""
    commit: str | None = None
    """Commit to record, for copies without .git. Default: that of the checkout."""

    def __post_init__(self) -> None:
        for name in ("minutes", "piece_minutes"):
            value = getattr(self, name)
            if not 0 < value < 1e6:
                raise ValueError(
                    f"{option(name)} must be above 0 and below 1,000,000, got {value}"
                )
        tasks = plan.tasks(Settings(self.miniature, None), self.out)
        unknown = [
            pattern
            for pattern in self.wanted
            if not any(plan.matches(task, pattern) for task in tasks)
        ]
        if unknown or not self.wanted:
            raise ValueError(
                f"--only takes parts from {','.join(plan.PARTS)}, or names of tasks as "
                f"--dry-run shows them, such as b-resnet20-*; got {self.only!r}"
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """Parts and patterns of tasks' names."""
        return tuple(self.only.replace(",", " ").split())


def gpu(config: GpuConfig) -> int:
    """Runs what is missing, or prints the plan.

    Returns:
        0 if nothing is left to do; `MORE` if something is; or 128 plus the number of
        the signal that stopped it.

    Raises:
        UserError: if a worker cannot start, or the folder has other settings.
    """
    out = config.out.expanduser().absolute()
    if config.dry_run:
        dry_run(config, out)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    dataset = None
    if config.miniature:
        dataset = f"folder:{images.make(out / 'images')}"
    elif config.data is not None:
        if not config.data.expanduser().is_dir():
            raise UserError(f"--data {config.data} is not a folder")
        dataset = registry.absolute(f"folder:{config.data}")
    held = settings.keep(out, Settings(config.miniature, dataset))
    store = Results(out)
    if config.retry_failed:
        store.forget_failures()
    whole = 60 * min(config.minutes, config.piece_minutes)
    end = time.monotonic() + 60 * config.minutes
    with StopRequest("Stopping; what is finished is saved.") as stop:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                print("The time is up. Run the same command again to resume.")
                return MORE
            piece = Piece(
                out=str(out),
                miniature=held.miniature,
                dataset=held.dataset,
                wanted=config.wanted,
                seconds=min(whole, left),
                # A tolerance: if --minutes allows only one piece, starting the command
                # has already taken a moment of it.
                is_whole=left > 0.95 * whole,
                command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
                commit=config.commit,
            )
            status = pieces.run(piece, stop)
            if stop.signal is not None:
                print(
                    f"Stopped by {stop.signal.name}. Run the same command again to "
                    "resume."
                )
                return 128 + stop.signal
            if status == 0:
                print(f"Finished. Tables: python -m benchmarks report --out {out}")
                return 0


def dry_run(config: GpuConfig, out: Path) -> None:
    """Prints the tasks with their estimated times."""
    store = Results(out)
    # JAX initializes devices only in a dry run: the workers need the GPU's memory.
    kind = config.device_kind or jax.devices()[0].device_kind
    estimate = estimates.Estimates(kind, store.all())
    rows, total = [], 0.0
    for task in plan.tasks(Settings(config.miniature, None), out, config.wanted):
        record = store.read(task.name)
        seconds = estimate.seconds(task)
        total += 0 if store.is_done(task.name) else seconds
        cells = (_minutes(seconds), _minutes(total), record["status"] if record else "")
        rows.append((task.name, task.title, *cells))
    header = ("Task", "What", "Minutes", "Cumulative, to do", "Status")
    print(f"{markdown.table(header, rows)}\n\nOn {kind}. {estimates.EXPLANATION}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"
