"""Tasks: units of work, each with its result in one file."""

import dataclasses
from collections.abc import Callable
from typing import Any

from train.benchmark.workload import Workload

Result = dict[str, Any]
# Runs a task. The argument is a function that returns whether to stop; if it returns
# True, a task that can be resumed raises `Stopped`.
Run = Callable[[Callable[[], bool]], Result]


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a task, from which its time is estimated.

    Attributes:
        programs: training steps that are compiled.
        steps: training steps that are taken.
        epochs: epochs of runs; the state is tested and saved after each.
        workload: the network and batch of the steps; None if they are negligible.
        image_size: side of its images.
        optimizers: names of the optimizers, which take equally many steps and have
            equally many programs.
    """

    programs: int
    steps: int = 0
    epochs: int = 0
    workload: Workload | None = None
    image_size: int = 32
    optimizers: tuple[str, ...] = ("sgd",)


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to measure.

    Attributes:
        name: name of its file; begins with the letter of its part.
        title: description for people.
        run: runs the task and returns a result that JSON can hold.
        work: the work it takes, from which its time is estimated.
        resumable: whether it can be resumed after it was stopped.
    """

    name: str
    title: str
    run: Run
    work: Work
    resumable: bool = False

    @property
    def part(self) -> str:
        """The letter of its part, "a" to "f"."""
        return self.name[0]


class Skipped(Exception):
    """A task cannot be done here; says why."""


class Stopped(Exception):
    """A task was stopped, and has kept what it has done.

    Attributes:
        result: the JSON-serializable result so far.
    """

    def __init__(self, result: Result):
        super().__init__("stopped; run the same command again to resume")
        self.result = result


class Failed(Exception):
    """A task found something wrong; says what.

    Attributes:
        result: what was measured nevertheless; JSON-serializable.
    """

    def __init__(self, reason: str, result: Result):
        super().__init__(reason)
        self.result = result
