"""What is done as one: a result in one file."""

import dataclasses
from collections.abc import Callable
from typing import Any

from train.benchmark.workload import Workload

Result = dict[str, Any]
# Asks whether to stop; a task that can go on later then raises `Stopped`.
Run = Callable[[Callable[[], bool]], Result]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a task takes, for an estimate of its time.

    Attributes:
        programs: training steps that are compiled.
        steps: training steps that are taken.
        epochs: of runs, after each of which the state is tested and saved.
        workload: the network and batch of the steps; None if they are negligible.
        image_size: side of its images.
        optimizers: of the steps, equally many of each.
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
        name: of its file; begins with the letter of its part.
        title: in words.
        run: does it, and returns what JSON holds.
        work: what it takes.
        goes_on: whether it keeps what it has done when it is stopped.
    """

    name: str
    title: str
    run: Run
    work: Work
    goes_on: bool = False

    @property
    def part(self) -> str:
        """The letter of its part, "a" to "f"."""
        return self.name[0]


class Skipped(Exception):
    """A task cannot be done here; says why."""


class Stopped(Exception):
    """A task was stopped, and has kept what it has done.

    Attributes:
        result: of what is done; JSON.
    """

    def __init__(self, result: Result):
        super().__init__("stopped; the same command again goes on")
        self.result = result


class Failed(Exception):
    """A task found something wrong; says what.

    Attributes:
        result: what was found beside; JSON.
    """

    def __init__(self, reason: str, result: Result):
        super().__init__(reason)
        self.result = result
