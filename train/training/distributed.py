"""Training in several processes: start, agreement, and which process prints."""

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

# JAX's settings, also set by environment variables of these names in capitals.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
# Time for the watcher thread to report a dead peer.
_WATCH_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process was launched; not part of the run's identity."""

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
                f"{', '.join(by_hand)} must be passed together: add "
                f"{' and '.join(missing)}"
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
        """Whether several processes were requested."""
        return self.distributed or self.coordinator is not None


_peers: rendezvous.Peers | None = None


def start(launch: Launch) -> None:
    """Connects to the other processes. Call before JAX initializes its devices.

    Raises:
        UserError: if they cannot be found.
    """
    global _peers
    if not launch.is_asked_for:
        return
    # With a CPU's few threads, collectives of two concurrently dispatched steps can
    # deadlock.
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
            "--distributed: JAX found no Slurm, Open MPI or Kubernetes environment "
            f"({error}). Pass --coordinator HOST:PORT, --num-processes and "
            "--process-id."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"Not all processes connected within {launch.connect_timeout} s "
            f"({str(error).splitlines()[0]}). Check that all were started, with the "
            "same --coordinator and --num-processes, or raise --connect-timeout."
        ) from error


@contextlib.contextmanager
def peers_watched() -> Iterator[None]:
    """Within this context, ends this process with one line if another one ends.

    Only if the processes were launched by hand: otherwise JAX ends them.
    """
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
    """Sets the advice that `peers_watched` prints when another process ends."""
    if _peers is not None:
        _peers.advice = text


def check_equal(values: dict[str, object]) -> None:
    """Raises, in all processes, unless values are equal in all of them.

    Args:
        values: JSON-serializable values to compare, by name for messages. The names
            must be equal in all processes.

    Raises:
        UserError: naming the first process that differs, and the differences.
    """
    if jax.process_count() == 1:
        return
    values = {"versions": _versions(), **_settings(), **values}
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
                "Start all processes with the same options, data, versions, devices "
                "and settings of JAX."
            )


def _versions() -> dict[str, str | None]:
    return provenance.versions(("jax", "jaxlib", "flax", "optax", "insgd_optax"))


def _settings() -> dict[str, object]:
    """Returns what must be equal: otherwise programs differ and the processes hang."""
    kinds = [device.device_kind for device in jax.local_devices()]
    return {"number of devices": len(kinds), "kinds of devices": sorted({*kinds})} | {
        name: getattr(jax.config, name) for name in _SETTINGS
    }


def is_first() -> bool:
    """Returns whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def from_first(make: Callable[[], str]) -> str:
    """Calls `make` in process 0 and broadcasts the result.

    Args:
        make: called in process 0 only.

    Returns:
        Its result.

    Raises:
        UserError: in all processes, if `make` raised one.
    """
    if jax.process_count() == 1:
        return make()
    error, text = None, ""
    if is_first():
        try:
            text = make()
        except (UserError, OSError) as caught:
            # Broadcast the error, so that the other processes do not hang.
            error, text = caught, str(caught)
    failed, text = bool(_broadcast(int(error is not None))), _broadcast_text(text)
    if error is not None:
        raise error
    if failed:
        raise UserError(f"In process 0: {text}")
    return text


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process. All must call this."""
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
