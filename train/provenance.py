"""What a reader of numbers must know about where they came from."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def describe(chunk_steps: int | None = None) -> dict[str, Any]:
    """The command, the commit, the versions and the devices; JSON.

    Args:
        chunk_steps: the steps in the longest of a run's programs.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "insgd_optax")
    return {
        "command": shlex.join(["python", "-m", "train", *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": _cores(),
        "chunk_steps": chunk_steps,
    }


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may change the last bits of a run that goes on, in words.

    Args:
        recorded: from `describe`, when the run was started; of an earlier version,
            which recorded less, what is there is compared.
        now: from `describe`.
    """
    names = {"devices": "devices", "chunk_steps": "steps per compiled call"}
    if all("cpu" in device.lower() for device in now["devices"]):
        # XLA divides sums among as many threads.
        names["cores"] = "CPU cores"
    found = [
        f"{words} were {_short(recorded[name])}, are {_short(now[name])}"
        for name, words in names.items()
        if recorded.get(name) is not None and recorded[name] != now[name]
    ]
    versions = recorded.get("versions", {})
    return found + [
        f"{name} was {versions[name]}, is {now['versions'][name]}"
        for name in ("jax", "jaxlib", "flax", "optax")
        if versions.get(name) not in (None, now["versions"][name])
    ]


def _short(value: Any) -> str:
    """A value in a message; equal devices by their number."""
    if isinstance(value, list) and value:
        kinds = sorted(set(map(str, value)))
        return ", ".join(f"{list(map(str, value)).count(k)} x {k}" for k in kinds)
    return str(value)


def _cores() -> int | None:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # Run from a checkout that is not installed.


def _commit() -> str | None:
    """The checkout's commit, marked if files differ from it; None outside of git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
