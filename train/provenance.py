"""Provenance of results: command, commit, versions and devices."""

import collections
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "insgd_optax")


def describe(
    chunk_steps: int | None = None,
    parallel: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Describes this process in JSON-serializable form.

    Args:
        chunk_steps: maximum number of a run's steps per compiled call.
        parallel: a run's device strategy.
        devices: the devices it uses. Default: all.
    """
    used = jax.devices() if devices is None else devices
    return {
        "command": shlex.join(["python", "-m", "train", *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions(_PACKAGES),
        "devices": [device.device_kind for device in used],
        "parallel": parallel,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": num_cores(),
        "chunk_steps": chunk_steps,
    }


def changes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists the changes that may affect the last bits of a resumed run's results.

    Args:
        recorded: what `describe` returned when the run was last started. Entries that
            an earlier version did not record are not compared.
        now: what `describe` returns now.
    """
    names = {
        "commit": "commit",
        "devices": "devices",
        "parallel": "device strategy",
        "chunk_steps": "steps per compiled call",
    }
    if all("cpu" in device.lower() for device in now["devices"]):
        names["cores"] = "CPU cores"  # XLA splits reductions over one thread per core.
    found = [
        f"{words} changed from {_short(recorded[name])} to {_short(now.get(name))}"
        for name, words in names.items()
        if recorded.get(name) is not None and recorded[name] != now.get(name)
    ]
    versions = recorded.get("versions", {})
    return found + [
        f"{name} changed from {versions[name]} to {version}"
        for name, version in now["versions"].items()
        if versions.get(name) not in (None, version)
    ]


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Returns versions by package; None for one that is not installed."""
    return {name: _version(name) for name in packages}


def num_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _short(value: Any) -> str:
    """Formats a value for a message, counting equal devices."""
    if isinstance(value, list) and value:
        numbers = collections.Counter(sorted(map(str, value)))
        return ", ".join(f"{number} x {kind}" for kind, number in numbers.items())
    return str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # A checkout that is not installed.


def _commit() -> str | None:
    """Returns the checkout's commit, marked if it is dirty; None outside of git."""
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
