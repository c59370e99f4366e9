"""Connects processes before JAX does, and watches for the end of peers.

JAX's service ends a process with a native stack trace if a process is missing, or if
the port is in use or belongs to another service. This module turns each of these into a
one-line error. The connections stay open: when a process dies, they are closed, which
the others notice.
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
# A machine that vanishes closes no connection; these detect it within a minute.
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
    """The connected processes: for process 0 all others, for the others process 0.

    Attributes:
        advice: printed when a peer is lost.
    """

    def __init__(self, peers: list[_Peer]):
        self.advice = "Start all processes again."
        self._peers = peers
        self._leaving = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within this context, the loss of a peer ends this process with one line.

        On exit without an exception, tells the peers that this process is finished.
        """
        for peer in self._peers:
            threading.Thread(target=self._watch, args=(peer,), daemon=True).start()
        try:
            yield
        except BaseException:
            self._leaving = True  # This process reports its own error.
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
            f"\nError: process {peer.number} has ended, and the others cannot continue "
            f"without it. {self.advice}\n"
        )
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
        # The main thread may be blocked in a collective, which cannot be interrupted.
        os._exit(_LOST_STATUS)


def meet(
    address: str,
    num_processes: int,
    process_id: int,
    timeout: float,
    versions: dict[str, str | None],
) -> Peers:
    """Waits until all processes are connected to process 0.

    Args:
        address: HOST:PORT of process 0.
        num_processes: number of processes.
        process_id: index of this process.
        timeout: seconds to wait for the others.
        versions: versions that must be equal in all processes.

    Returns:
        The connections, which must be kept open.

    Raises:
        UserError: if a process is missing, or processes do not match.
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
    """Accepts the other processes in process 0."""
    _resolve(address)
    with _listen(address) as listener:
        found: dict[int, _Peer] = {}
        expected = set(range(1, hello["processes"]))
        while found.keys() < expected:
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                absent = sorted(expected - found.keys())
                plural = "es" * (len(absent) > 1)
                raise _refuse(
                    found.values(),
                    f"Process{plural} {', '.join(map(str, absent))} of "
                    f"{hello['processes']} did not connect to {address} within "
                    f"{timeout} s. Check that all "
                    "were started, with the same --coordinator and --num-processes, or "
                    "raise --connect-timeout.",
                ) from None
            peer, said = _greet(connection, min(5, max(0.1, end - time.monotonic())))
            if peer is None:  # Another client, such as a port scan.
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
    """Reads the introduction of a process; returns None for other clients."""
    _set_up(connection)
    connection.settimeout(timeout)
    file = connection.makefile("rb")
    said = _read(file)
    connection.settimeout(None)
    # A bool is an int.
    if said is None or type(said.get("process")) is not int:
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
            f"has {hello['processes']}. Use the same number for all."
        )
    if number in found or not 0 < number < hello["processes"]:
        return (
            f"Two processes have --process-id {number}. Number them from 0 to "
            f"{hello['processes'] - 1}, each once."
        )
    if said.get("versions") != hello["versions"]:
        return (
            f"Process {number} has different versions from process 0: "
            f"{said.get('versions')}, not {hello['versions']}. Install the same "
            "versions."
        )
    return None


def _refuse(peers: Any, problem: str) -> UserError:
    for peer in peers:
        with contextlib.suppress(OSError):
            peer.send(error=problem)
        peer.close()
    return UserError(problem)


def _join(address: str, hello: dict[str, Any], end: float, timeout: float) -> _Peer:
    """Connects this process, which is not process 0, to process 0."""
    _resolve(address)
    while True:
        try:
            connection = socket.create_connection(_split(address), timeout=5)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"No answer from --coordinator {address} within {timeout} s "
                    f"({error}). Check that process 0 runs there and that the port "
                    "is open, or raise --connect-timeout."
                ) from error
        time.sleep(_RETRY_SECONDS)
    _set_up(connection)
    file = connection.makefile("rb")
    peer = _Peer(0, connection, file)
    with contextlib.suppress(OSError):
        peer.send(**hello)
    # Process 0 times out first and sends the reason.
    connection.settimeout(max(1, end - time.monotonic()) + 5)
    said = _read(file)
    connection.settimeout(None)
    if said is None or said.get("welcome") is not True:
        peer.close()
    if said is None:
        raise UserError(
            f"The service at --coordinator {address} is not process 0 of this run. "
            "Check the address, and that no other service uses its port."
        )
    if said.get("welcome") is not True:
        raise UserError(f"From process 0: {said.get('error')}")
    return peer


def _read(file: IO[bytes]) -> dict[str, Any] | None:
    """Reads a message; returns None for anything else."""
    try:
        said = json.loads(file.readline(_MOST_LINE))
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _resolve(address: str) -> None:
    try:
        socket.getaddrinfo(*_split(address))
    # A name with a label too long for DNS is a UnicodeError.
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--coordinator {address}: the host cannot be found ({reason}). "
            "Pass the name or address of the machine of process 0."
        ) from error


def _listen(address: str) -> socket.socket:
    """Listens on all addresses of this machine, as JAX does later."""
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
        f"({errors[-1].strerror or errors[-1]}). Use another port for all processes."
    ) from errors[-1]


def _set_up(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # Some have other names on macOS.
            option = getattr(socket, name)
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
