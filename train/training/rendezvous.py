"""Processes meet before JAX joins them, and watch each other from then on.

JAX's own service ends a process with a native stack trace if nobody comes, the port is
taken or something else listens there. Here each of these is an error in one line, and
the connections stay open: a process that dies closes its own, and the others know.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from train.errors import UserError

_RETRY_SECONDS = 0.5
_MOST_LINE = 1 << 16
# A machine that vanished closes no connection: these find out within a minute.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_LOST_STATUS = 2
_BYE = b"bye\n"


class _Peer(NamedTuple):
    number: int
    connection: socket.socket
    file: IO[bytes]

    def send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self.file.close()
        self.connection.close()


class Peers:
    """The processes that this one is connected to: process 0 to all, the others to it.

    Attributes:
        advice: what to do if one is lost.
    """

    def __init__(self, peers: list[_Peer]):
        self.advice = "Start all processes again."
        self._peers = peers
        self._leaving = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within this context, the loss of a peer ends this process in one line.

        Left without an exception, it says goodbye to the peers.
        """
        for peer in self._peers:
            threading.Thread(target=self._watch, args=(peer,), daemon=True).start()
        try:
            yield
        except BaseException:
            self._leaving = True  # It says itself why it ends.
            raise
        self._leaving = True
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.connection.sendall(_BYE)

    def close(self) -> None:
        """Closes the connections."""
        for peer in self._peers:
            peer.close()

    def _watch(self, peer: _Peer) -> None:
        try:
            said = peer.file.readline(_MOST_LINE)
        except OSError:
            said = b""
        if said == _BYE or self._leaving:
            return
        text = (
            f"\nError: process {peer.number} has ended, and the others cannot go on "
            f"without it. {self.advice}\n"
        )
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        # The main thread may wait in a collective, which nothing interrupts.
        os._exit(_LOST_STATUS)


def meet(
    address: str,
    num_processes: int,
    process_id: int,
    timeout: float,
    versions: dict[str, str | None],
) -> Peers:
    """Waits until all processes have come to process 0.

    Args:
        address: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: of this one.
        timeout: seconds to wait for the others.
        versions: what has to be the same in all.

    Returns:
        The connections, which have to be kept.

    Raises:
        UserError: if not all come, or they do not fit together.
    """
    hello = {"processes": num_processes, "process": process_id, "versions": versions}
    end = time.monotonic() + timeout
    if process_id == 0:
        return Peers(_gather(address, hello, end, timeout))
    return Peers([_join(address, hello, end, timeout)])


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _gather(
    address: str, hello: dict[str, Any], end: float, timeout: float
) -> list[_Peer]:
    """Process 0: lets the others come."""
    _resolve(address)
    with _listen(address) as listener:
        found: dict[int, _Peer] = {}
        expected = set(range(1, hello["processes"]))
        while found.keys() < expected:
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = ", ".join(map(str, sorted(expected - found.keys())))
                raise _refuse(
                    found.values(),
                    f"Not all processes came to {address} within {timeout} s: no word "
                    f"of {missing} of 0 to {hello['processes'] - 1}. Check that all were "
                    "started, with the same --coordinator and --num-processes, or "
                    "raise --connect-timeout.",
                ) from None
            peer, said = _greet(connection, min(5, max(0.1, end - time.monotonic())))
            if peer is None:  # Somebody else, such as a scan of ports.
                continue
            problem = _problem(said, hello, found)
            if problem is not None:
                raise _refuse([*found.values(), peer], problem)
            found[peer.number] = peer
    for peer in found.values():
        peer.send(welcome=True)
    return list(found.values())


def _greet(
    connection: socket.socket, timeout: float
) -> tuple[_Peer | None, dict[str, Any]]:
    """Reads what a process says of itself; None of what is no process of a run."""
    _set_up(connection)
    connection.settimeout(timeout)
    file = connection.makefile("rb")
    said = _read(file)
    connection.settimeout(None)
    if said is None or not isinstance(said.get("process"), int):
        file.close()
        connection.close()
        return None, {}
    return _Peer(said["process"], connection, file), said


def _problem(
    said: dict[str, Any], hello: dict[str, Any], found: dict[int, _Peer]
) -> str | None:
    number = said["process"]
    if said.get("processes") != hello["processes"]:
        return (
            f"Process {number} has --num-processes {said.get('processes')}, process 0 "
            f"has {hello['processes']}. Give the same number to all."
        )
    if number in found or not 0 < number < hello["processes"]:
        return (
            f"Two processes have --process-id {number}. Number them from 0 to "
            f"{hello['processes'] - 1}, each once."
        )
    if said.get("versions") != hello["versions"]:
        return (
            f"Process {number} has other versions than process 0: "
            f"{said.get('versions')}, not {hello['versions']}. Install the same ones."
        )
    return None


def _refuse(peers: Any, problem: str) -> UserError:
    for peer in peers:
        with contextlib.suppress(OSError):
            peer.send(error=problem)
        peer.close()
    return UserError(problem)


def _join(address: str, hello: dict[str, Any], end: float, timeout: float) -> _Peer:
    """Any other process: goes to process 0."""
    _resolve(address)
    while True:
        try:
            connection = socket.create_connection(_split(address), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"Nobody answers at --coordinator {address} after {timeout} s "
                    f"({error}). Check that process 0 runs there and that the port "
                    "is open, or raise --connect-timeout."
                ) from error
        time.sleep(_RETRY_SECONDS)
    _set_up(connection)
    file = connection.makefile("rb")
    peer = _Peer(0, connection, file)
    with contextlib.suppress(OSError):
        peer.send(**hello)
    # Process 0 gives up first, and says why.
    connection.settimeout(max(1, end - time.monotonic()) + 5)
    said = _read(file)
    connection.settimeout(None)
    if said is None or said.get("welcome") is not True:
        peer.close()
    if said is None:
        raise UserError(
            f"What answers at --coordinator {address} is no process 0 of a run. Check "
            "the address, and that no other service has its port."
        )
    if said.get("welcome") is not True:
        raise UserError(f"From process 0: {said.get('error')}")
    return peer


def _read(file: IO[bytes]) -> dict[str, Any] | None:
    """A message; None if it is none."""
    try:
        said = json.loads(file.readline(_MOST_LINE))
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _resolve(address: str) -> None:
    try:
        socket.getaddrinfo(*_split(address))
    except OSError as error:
        raise UserError(
            f"--coordinator {address}: the host cannot be found ({error.strerror}). "
            "Give the name or address of the machine of process 0."
        ) from error


def _listen(address: str) -> socket.socket:
    """Listens on all addresses of this machine, as JAX does afterwards."""
    _, port = _split(address)
    errors: list[OSError] = []
    listeners: list[Callable[[], socket.socket]] = [
        lambda: socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
        ),
        lambda: socket.create_server(("", port)),
    ]
    for listen in listeners:
        try:
            return listen()
        except (OSError, ValueError) as error:
            errors.append(
                OSError(str(error)) if isinstance(error, ValueError) else error
            )
    raise UserError(
        f"--coordinator {address}: process 0 cannot listen on this port "
        f"({errors[-1].strerror or errors[-1]}). Give another port to all processes."
    ) from errors[-1]


def _set_up(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has other names for some.
            option = getattr(socket, name)
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
