"""Reports of a benchmark as JSON and Markdown."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from train import markdown, provenance
from train.benchmark.measure import StepCost
from train.benchmark.timing import Ratio

_MEBI = 2**20


def to_json(costs: Sequence[StepCost], image_size: int, rounds: int) -> dict[str, Any]:
    """Returns all measurements and their environment."""
    return {
        "environment": provenance.describe()
        | {
            # Of the machine; "cores" counts those that this process may use.
            "cpu_cores": os.cpu_count(),
            # Above the number of cores if other processes competed for them.
            "load_average_at_end": os.getloadavg(),
        },
        "image_size": image_size,
        "rounds": rounds,
        "results": [_result(cost) for cost in costs],
    }


def _result(cost: StepCost) -> dict[str, Any]:
    return {
        "network": cost.workload.network,
        "optimizer": cost.optimizer,
        "batch_size": cost.workload.batch_size,
        "dtype": cost.workload.dtype,
        "overhead": dataclasses.asdict(cost.overhead),
        "control": dataclasses.asdict(cost.control),
        "processor_overhead": _ratio_or_none(cost.processor_overhead),
        "processor_control": _ratio_or_none(cost.processor_control),
        "seconds": {
            name: {
                "median": float(np.median(times)),
                "quartiles": np.percentile(times, [25, 75]).tolist(),
            }
            for name, times in cost.seconds.items()
        },
        "images_per_second": {
            name: cost.images_per_second(name) for name in cost.memory
        },
        "memory": {
            name: dataclasses.asdict(memory) for name, memory in cost.memory.items()
        },
        "flops": cost.flops,
        "utilization": cost.utilization,
        "state_bytes": cost.state_bytes,
        "scaled_weights": cost.scaled_weights,
    }


def _ratio_or_none(ratio: Ratio | None) -> dict[str, Any] | None:
    return None if ratio is None else dataclasses.asdict(ratio)


def to_markdown(costs: Sequence[StepCost]) -> str:
    """Formats a table with one row per workload, and an explanation."""
    other = costs[0].optimizer if costs else "insgd"
    other = "INSGD" if other == "insgd" else other
    columns = [
        "network",
        "batch",
        "dtype",
        "SGD, ms",
        f"{other} / SGD (95 %)",
        "paired (quartiles)",
        "SGD / SGD (95 %)",
        f"{other} / SGD, CPU time (95 %)",
        "SGD / SGD, CPU time (95 %)",
        "images/s",
        "temporary, MiB",
        "temporary / SGD",
        "peak / SGD",
        "extra state, bytes",
        "weights scaled",
        "FLOP utilization",
    ]
    rows = [_cells(cost) for cost in costs]
    # Drop empty columns.
    shown = [any(row[place] for row in rows) for place in range(len(columns))]
    lines = [
        [cell for cell, show in zip(line, shown, strict=True) if show]
        for line in (columns, *rows)
    ]
    table = markdown.table(lines[0], lines[1:])
    return f"{table}\n\n{_LEGEND.format(other=other)}\n"


_LEGEND = (
    "Ratios are of the medians over interleaved rounds, with the 95 % bootstrap "
    "interval over rounds; paired: median and quartiles of the ratios within a round. "
    "SGD / SGD compares two copies of the same program and shows the noise. CPU time "
    "is that of this process on all cores, which other processes hardly affect. "
    "Images/s and temporary memory are those of {other}."
)


def _cells(cost: StepCost) -> list[str]:
    sgd, other = cost.memory["sgd"], cost.memory[cost.optimizer]
    return [
        cost.workload.network,
        str(cost.workload.batch_size),
        cost.workload.dtype,
        f"{1000 * np.median(cost.seconds['sgd']):.2f}",
        _of_medians(cost.overhead),
        _ratio(cost.overhead.paired, cost.overhead.quartiles),
        _of_medians(cost.control),
        _of_medians(cost.processor_overhead),
        _of_medians(cost.processor_control),
        f"{cost.images_per_second(cost.optimizer):.0f}",
        f"{other.temporary / _MEBI:.2f}",
        f"{other.temporary / sgd.temporary:.4f}",
        (
            ""
            if other.peak is None or sgd.peak is None
            else f"{other.peak / sgd.peak:.4f}"
        ),
        str(cost.state_bytes[cost.optimizer] - cost.state_bytes["sgd"]),
        str(cost.scaled_weights),
        "" if cost.utilization is None else f"{100 * cost.utilization:.1f} %",
    ]


def _of_medians(ratio: Ratio | None) -> str:
    return "" if ratio is None else _ratio(ratio.of_medians, ratio.interval)


def _ratio(value: float, spread: tuple[float, float]) -> str:
    return f"{value:.3f} ({spread[0]:.3f} to {spread[1]:.3f})"
