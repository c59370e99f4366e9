"""Metrics on disk: a line of JSON for each epoch, and TensorBoard on request."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class MetricsWriter:
    """Appends rows to `metrics.jsonl`, each written through at once.

    Args:
        path: the file.
        rows: what it holds already; more recent lines in it are cut off.
        tensorboard: a folder for TensorBoard's files, or None.
    """

    def __init__(self, path: Path, rows: list[Row], tensorboard: Path | None):
        # Rewritten aside, so that a run killed here loses no row.
        partial = path.with_suffix(".partial")
        partial.write_text("".join(_line(row) for row in rows))
        os.replace(partial, path)
        self._file = path.open("a")
        self._tensorboard = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(tensorboard))

    def write(self, row: Row) -> None:
        """Writes a row; not a number becomes null."""
        self._file.write(_line(row))
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in _flat(row).items():
                self._tensorboard.add_scalar(name, value, row["epoch"])
            self._tensorboard.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read(path: Path) -> list[Row]:
    """Reads the rows of a run; null becomes nan. A line cut short ends them."""
    rows: list[Row] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(_map(json.loads(line), _to_nan))
            except ValueError:
                break
    return rows


def to_json(rows: Sequence[Row]) -> list[Row]:
    """Rows as JSON holds them: not a number becomes null."""
    return [_map(row, _to_null) for row in rows]


def _line(row: Row) -> str:
    return json.dumps(_map(row, _to_null), allow_nan=False) + "\n"


def _to_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_nan(value: Any) -> Any:
    return math.nan if value is None else value


def _map(value: Any, fn: Any) -> Any:
    if isinstance(value, dict):
        return {name: _map(entry, fn) for name, entry in value.items()}
    if isinstance(value, list):
        return [_map(entry, fn) for entry in value]
    return fn(value)


def _flat(row: Row, prefix: str = "") -> dict[str, float]:
    """Numbers by name, those of an inner dict as "outer/inner"."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat
