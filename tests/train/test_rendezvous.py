"""Processes that connect, are missing, or differ; mostly threads of one process."""

import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from train import cli
from train.errors import UserError
from train.training import rendezvous

from .processes import free_address

VERSIONS = {"jax": "1"}


def meet(address, process_id, num_processes=2, timeout=20, versions=VERSIONS):
    return rendezvous.meet(address, num_processes, process_id, timeout, versions)


def outcomes(*calls):
    """The result or the error of each call; the calls are made concurrently."""
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(call) for call in calls]
        found = [future.exception() or future.result() for future in futures]
    for each in found:
        if isinstance(each, rendezvous.Peers):
            each.close()
    return found


def test_all_processes_are_connected():
    address = free_address()
    found = outcomes(*(lambda n=n: meet(address, n, 3) for n in (2, 0, 1)))
    assert all(isinstance(each, rendezvous.Peers) for each in found)
    assert sorted(len(each._peers) for each in found) == [1, 1, 2]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"num_processes": 3}, "Process 1 has --num-processes 3, process 0 has 2"),
        ({"versions": {"jax": "2"}}, "Process 1 has different versions from process 0"),
    ],
)
def test_both_processes_report_that_they_differ(second, words):
    address = free_address()
    found = outcomes(lambda: meet(address, 0), lambda: meet(address, 1, **second))
    assert all(isinstance(error, UserError) for error in found)
    assert all(words in str(error) for error in found)


def test_a_duplicate_process_id_is_named():
    address = free_address()
    found = outcomes(*(lambda n=n: meet(address, n, 3) for n in (0, 1, 1)))
    assert all("Two processes have --process-id 1" in str(error) for error in found)


def test_missing_processes_are_named():
    address = free_address()
    first, second = outcomes(
        lambda: meet(address, 0, 4, timeout=1), lambda: meet(address, 2, 4, timeout=1)
    )
    words = f"Processes 1, 3 of 4 did not connect to {address} within 1 s"
    assert words in str(first)
    assert words in str(second)


def options(address, process_id):
    return [
        *("--coordinator", address, "--num-processes", "2"),
        *("--process-id", str(process_id), "--connect-timeout", "1"),
    ]


def refused(address, process_id, capsys):
    """The one-line error of the command line."""
    assert cli.main(options(address, process_id)) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("process_id", [0, 1])
# DNS has no names of that length.
@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 70}.invalid"])
def test_a_host_that_cannot_be_found_is_an_error(host, process_id, capsys):
    error = refused(f"{host}:1234", process_id, capsys)
    assert f"--coordinator {host}:1234: the host cannot be found" in error


def test_a_port_that_is_taken_is_an_error(capsys):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "cannot listen on this port" in refused(address, 0, capsys)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"", b"[1]\n"])
def test_another_service_at_the_address_is_an_error(answer, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        error = refused(f"127.0.0.1:{server.getsockname()[1]}", 1, capsys)
        thread.join()
    assert "is not process 0 of this run" in error


def test_a_client_that_is_not_a_process_is_ignored():
    address = free_address()
    host, port = address.split(":")

    def scan():
        while True:
            try:
                with socket.create_connection((host, int(port))) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return meet(address, 1)
            except ConnectionRefusedError:
                continue

    found = outcomes(lambda: meet(address, 0), scan)
    assert all(isinstance(each, rendezvous.Peers) for each in found)


MEET = """
import sys, time
from train.training import rendezvous
peers = rendezvous.meet(sys.argv[1], 2, int(sys.argv[2]), 30, {})
peers.advice = "Resume it."
with peers.watched():
    print("met", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("first_dies", [True, False])
@pytest.mark.parametrize("dies", [True, False])
def test_the_death_of_a_process_ends_the_other_but_a_normal_exit_does_not(
    first_dies, dies
):
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEET, address, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["met\n"] * 2
        ends, stays = processes if first_dies else processes[::-1]
        if dies:
            ends.kill()
        else:
            ends.communicate("\n", timeout=20)
            with pytest.raises(subprocess.TimeoutExpired):
                stays.wait(0.3)
        if dies:
            stays.wait(20)
        _, err = stays.communicate(None if dies else "\n", timeout=20)
        assert stays.returncode == (2 if dies else 0)
        gone = 0 if first_dies else 1
        assert (f"Error: process {gone} has ended" in err) == dies
        assert ("Resume it." in err) == dies
    finally:
        for process in processes:
            process.kill()
            process.communicate()
