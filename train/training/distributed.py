"""Several processes that train as one: how they find each other, and who speaks."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from train import provenance
from train.errors import UserError
from train.training import rendezvous

# How long the watch has to notice a process that is gone.
_WATCH_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process was started; no part of what the run is."""

    distributed: bool = False
    """Join other processes, found through Slurm, Open MPI or Kubernetes."""
    coordinator: str | None = None
    """HOST:PORT of process 0, when processes are launched by hand."""
    num_processes: int | None = None
    """Number of processes, when they are launched by hand."""
    process_id: int | None = None
    """Index of this process, from 0, when processes are launched by hand."""
    connect_timeout: int = 60
    """Seconds to wait for the other processes."""

    def check(self) -> None:
        """Raises a ValueError unless the options fit together."""
        by_hand = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        missing = [name for name, value in by_hand.items() if value is None]
        if missing and len(missing) < len(by_hand):
            raise ValueError(
                f"{', '.join(by_hand)} belong together: give {' and '.join(missing)} "
                "too"
            )
        if self.connect_timeout < 1:
            raise ValueError(
                f"--connect-timeout must be at least 1, got {self.connect_timeout}"
            )
        if (
            self.coordinator is None
            or self.num_processes is None
            or self.process_id is None
        ):
            return
        _, colon, port = self.coordinator.rpartition(":")
        if not (colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                "--coordinator must be HOST:PORT, such as node1:1234, got "
                f"{self.coordinator!r}"
            )
        if self.num_processes < 1:
            raise ValueError(
                f"--num-processes must be at least 1, got {self.num_processes}"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id must be from 0 to {self.num_processes - 1} with "
                f"--num-processes {self.num_processes}, got {self.process_id}"
            )

    @property
    def is_asked_for(self) -> bool:
        """Whether there are to be several processes."""
        return self.distributed or self.coordinator is not None


_peers: rendezvous.Peers | None = None


def start(launch: Launch) -> None:
    """Joins the other processes, before anything asks JAX for its devices.

    Raises:
        UserError: if they cannot be found.
    """
    global _peers
    if not launch.is_asked_for:
        return
    # On a CPU's few threads the collectives of two steps under way at once may wait for
    # each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if (
        launch.coordinator is not None
        and launch.num_processes is not None
        and launch.process_id is not None
    ):
        _peers = rendezvous.meet(
            launch.coordinator,
            launch.num_processes,
            launch.process_id,
            launch.connect_timeout,
            _versions(),
        )
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.num_processes,
            launch.process_id,
            initialization_timeout=launch.connect_timeout,
        )
    except ValueError as error:
        raise UserError(
            "--distributed: JAX found no Slurm, Open MPI or Kubernetes to tell it of "
            f"the other processes ({error}). Give --coordinator HOST:PORT, "
            "--num-processes and --process-id."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"Not all processes came within {launch.connect_timeout} s "
            f"({str(error).splitlines()[0]}). Check that all were started, with the "
            "same --coordinator and --num-processes, or raise --connect-timeout."
        ) from error


@contextlib.contextmanager
def peers_watched() -> Iterator[None]:
    """Within this context, the end of another process ends this one in one line."""
    if _peers is None:
        yield
        return
    with _peers.watched():
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                # Probably a collective with a dead peer, which the watcher thread is
                # about to report.
                time.sleep(_WATCH_SECONDS)
            raise


def advise(text: str) -> None:
    """Sets what is said if another process ends."""
    if _peers is not None:
        _peers.advice = text


def check_equal(values: dict[str, object]) -> None:
    """Raises, in all processes, unless they were started alike.

    Args:
        values: by a name for messages; JSON. All processes ask with the same names.

    Raises:
        UserError: naming the first process that differs, and in what.
    """
    if jax.process_count() == 1:
        return
    values = {"versions": _versions(), **values}
    mine = np.frombuffer(json.dumps(values).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(mine), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(mine)] = mine
    texts = multihost_utils.process_allgather(padded)
    first, *others = (
        json.loads(bytes(text[:length]))
        for text, length in zip(np.asarray(texts), lengths, strict=True)
    )
    for number, other in enumerate(others, start=1):
        differences = [
            f"{name} is {other.get(name)}, not {first[name]}"
            for name in first
            if other.get(name) != first[name]
        ]
        if differences:
            raise UserError(
                f"Process {number} differs from process 0: {'; '.join(differences)}. "
                "Start all processes with the same options, data and versions."
            )


def _versions() -> dict[str, str | None]:
    return provenance.versions(("jax", "jaxlib", "flax", "optax", "insgd_optax"))


def is_first() -> bool:
    """Whether this is the process that writes and speaks: the first, or the only."""
    return jax.process_index() == 0


def from_first(make: Callable[[], str]) -> str:
    """What the first process makes, in every process.

    Args:
        make: called in the first process alone.

    Returns:
        What it returned there.

    Raises:
        UserError: in all of them, if it raised one there.
    """
    if jax.process_count() == 1:
        return make()
    error, text = None, ""
    if is_first():
        try:
            text = make()
        except (UserError, OSError) as caught:
            # The others wait for an answer: they get the error for one.
            error, text = caught, str(caught)
    failed, text = bool(_broadcast(int(error is not None))), _broadcast_text(text)
    if error is not None:
        raise error
    if failed:
        raise UserError(f"In the first process: {text}")
    return text


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _broadcast(number: int) -> int:
    return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def _broadcast_text(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    length = _broadcast(len(data))
    padded = np.zeros(length, np.uint8)
    padded[: len(data)] = data[:length]
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode()
