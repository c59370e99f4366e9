"""Processes on this machine, which never outlive their test."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_address():
    """An address that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def of_a_run(*options, die_after="never", dies=1):
    """Commands of the two processes of a run; one may die, see `distributed_run`."""
    address = free_address()
    return [
        ["tests.train.distributed_run", str(die_after) if number == dies else "never"]
        + ["--coordinator", address, "--num-processes", "2"]
        + ["--process-id", str(number), *options]
        for number in range(2)
    ]


@contextlib.contextmanager
def started(commands, folder):
    """Starts `python -m ...` commands; yields the processes, and kills any left over.

    Their output goes to 0.log, 1.log ... in `folder`.
    """
    processes = []
    with contextlib.ExitStack() as stack:
        try:
            for number, command in enumerate(commands):
                log = stack.enter_context((folder / f"{number}.log").open("w"))
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command],
                        cwd=ROOT,
                        env=os.environ | {"JAX_PLATFORMS": "cpu"},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def finish(commands, folder, timeout=300):
    """Runs commands to their end; returns their exit statuses and their output.

    Those that do not end within `timeout` seconds are killed: their status is negative.
    """
    with started(commands, folder) as processes:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
    statuses = [process.returncode for process in processes]
    output = [(folder / f"{number}.log").read_text() for number in range(len(commands))]
    return statuses, output


def python(*arguments, cwd=ROOT):
    """Runs Python with arguments; it must end with status 0."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result
