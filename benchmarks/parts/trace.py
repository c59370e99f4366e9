"""(a, b) What the device does during steps, according to JAX's profiler."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.parts import smoke
from benchmarks.parts.smoke import Case
from benchmarks.task import Failed, Result

_LONGEST = 15


def profile(case: Case, chunk_steps: int) -> Result:
    """Profiles the second chunk of a case.

    Returns:
        See `summarize`.

    Raises:
        Failed: if a chunk of several steps made at least one copy per step between host
            and device.
    """
    experiment = smoke.create(case, chunk_steps)
    loop_state = experiment.train_chunk(experiment.start(), 0, chunk_steps)
    jax.block_until_ready(loop_state)
    found = profile_of(
        lambda: jax.block_until_ready(
            experiment.train_chunk(loop_state, chunk_steps, chunk_steps)
        )
    )
    found |= {
        "network": case.workload.network,
        "batch_size": case.workload.batch_size,
        "dtype": case.workload.dtype,
        "optimizer": case.optimizer,
        "steps": chunk_steps,
    }
    # A chunk may end with the transfer of a scalar; steps must not have one each.
    copies = sum(found["copies_with_host"].values())
    if copies >= chunk_steps > 1:
        raise Failed(f"{copies} copies between host and device in a chunk", found)
    return found


def profile_of(run: Callable[[], Any]) -> Result:
    """Profiles a function that waits for the device; for the result see `summarize`."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return summarize(jax.profiler.ProfileData.from_file(str(path)).planes)


def summarize(planes: Any) -> Result:
    """Summarizes the events of accelerators in a trace.

    Args:
        planes: planes of a `jax.profiler.ProfileData`.

    Returns:
        "events", how many there are on the devices' streams; "device_seconds", the sum
        of their durations; "copies_with_host", by kind; "busy", the share of the time
        from the first event to the last in which a device does something; and
        "longest", the total seconds by name of event, for the names with the most.
        Without an accelerator there are no events and "busy" is None.
    """
    spans: list[tuple[float, float]] = []
    seconds: collections.Counter[str] = collections.Counter()
    copies: collections.Counter[str] = collections.Counter()
    for plane in planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            # Other lines repeat the streams' events by operation and by module.
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
                seconds[event.name] += event.duration_ns / 1e9
                for kind in ("MemcpyD2H", "MemcpyH2D"):
                    copies[kind] += kind in event.name
    return {
        "events": len(spans),
        "device_seconds": sum(seconds.values()),
        "copies_with_host": dict(copies),
        "busy": _busy(spans) if spans else None,
        "longest": dict(seconds.most_common(_LONGEST)),
    }


def _busy(spans: list[tuple[float, float]]) -> float:
    spans = sorted(spans)
    first, end = spans[0][0], spans[0][0]
    covered = 0.0
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / (end - first) if end > first else 1.0
