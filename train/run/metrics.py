"""Reads and writes metrics: one line of JSON per epoch, and optionally TensorBoard."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util

from train import files, json_fields, strict_json
from train.errors import UserError

EpochMetrics = dict[str, Any]

# Required fields of a row.
_TYPES = {
    "epoch": int,
    "step": int,
    "learning_rate": float,
    "train_loss": float,
    "train_top1": float,
    "test_loss": float,
    "test_top1": float,
    "test_top5": float,
}
_OF_INSGD = {
    "multipliers",
    "powers",
    "mean_multiplier",
    "weights_at_floor",
    "at_floor",
}
_MOST_SHOWN = 5


def score(row: EpochMetrics) -> float:
    """Returns the accuracy that selects the best epoch: validation, or else test."""
    return row["val_top1"] if "val_top1" in row else row["test_top1"]


def best(rows: Sequence[EpochMetrics]) -> EpochMetrics:
    """Returns the epoch with the highest score; of equal ones the latest.

    Its checkpoint is kept, in addition to the latest two.
    """
    return max(reversed(rows), key=score)


def selected_on(row: EpochMetrics) -> str:
    """Names the split that the best epoch of a run is selected on."""
    return "validation" if "val_top1" in row else "test"


class MetricsWriter:
    """Appends rows to `metrics.jsonl`, flushing each.

    Args:
        path: the file.
        rows: rows that it starts with; other lines in it are dropped.
        tensorboard: folder of TensorBoard's files, or None.
    """

    def __init__(self, path: Path, rows: list[EpochMetrics], tensorboard: Path | None):
        # Replaced atomically, so that a run killed here loses no row.
        files.write(path, "".join(_line(row) for row in rows).encode())
        self._path = path
        self._file = files.open_to_append(path)
        self._tensorboard = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            # TensorBoard's steps are epochs. Those that a crashed run wrote and that
            # are trained again are purged.
            self._tensorboard = SummaryWriter(
                str(tensorboard), purge_step=len(rows) + 1
            )

    def write(self, row: EpochMetrics) -> None:
        """Writes a row, with null for numbers that are not finite.

        Raises:
            UserError: if it cannot be written.
        """
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}. Free some space or "
                "restore access, then use --resume, which repeats the epoch."
            ) from error
        if self._tensorboard is not None:
            for name, value in traverse_util.flatten_dict(row, sep="/").items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, row["epoch"])
            self._tensorboard.flush()

    def close(self) -> None:
        """Closes the files."""
        with contextlib.suppress(OSError):  # A line could not be written.
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class Recovered(NamedTuple):
    """Rows of a resumed run, and warnings about the file."""

    rows: list[EpochMetrics]
    warnings: list[str]


def read(path: Path) -> list[EpochMetrics]:
    """Reads the rows before the first damaged line, with NaN for null."""
    rows: list[EpochMetrics] = []
    for row in _read_lines(path):
        if row is None:
            break
        rows.append(row)
    return rows


def recover(path: Path, step: int, copy: Sequence[EpochMetrics] | None) -> Recovered:
    """Returns the rows up to a checkpoint, taken from its copy if it has one.

    Args:
        path: the file.
        step: step of the checkpoint from which the run is resumed.
        copy: rows in that checkpoint, from `to_json`; None if an earlier version saved
            it.
    """
    found = _read_lines(path)
    damaged = [number for number, row in enumerate(found, start=1) if row is None]
    whole = [row for row in found if row is not None]
    if copy is None:
        rows = [row for row in whole if row["step"] <= step]
        epochs = [row["epoch"] for row in rows]
        lost = sorted(set(range(1, max(epochs, default=0) + 1)) - set(epochs))
        warnings = [f"{path}: {_lines_are(damaged)} damaged."] if damaged else []
        if lost:
            warnings.append(
                f"{path}: the metrics of epoch{'s' * (len(lost) > 1)} "
                f"{_numbers(lost)} are lost: an earlier version saved the checkpoint, "
                "without a copy of them."
            )
        return Recovered(rows, warnings)
    rows = [strict_json.from_null(row) for row in copy]
    end = len(rows)
    repaired = [
        number
        for number, row in enumerate(rows, start=1)
        if number > len(found)
        or (written := found[number - 1]) is None
        or _line(written) != _line(row)
    ]
    warnings = []
    if repaired:
        warnings.append(
            f"{path}: {_lines_are(repaired)} missing or damaged; restored from the "
            f"checkpoint of step {step}."
        )
    if later := [number for number in damaged if number > end]:
        warnings.append(
            f"{path}: {_lines_are(later)} damaged. Training resumes from step {step}, "
            "before these epochs."
        )
    return Recovered(rows, warnings)


def read_whole(
    path: Path, epochs: int, copy: Sequence[EpochMetrics] | None
) -> list[EpochMetrics] | None:
    """Returns a row per epoch; None if one is missing or differs from its copy.

    Args:
        path: the file.
        epochs: number of epochs.
        copy: rows in the latest checkpoint, from `to_json`, or None.
    """
    rows = read(path)[:epochs]
    if [row["epoch"] for row in rows] != list(range(1, epochs + 1)):
        return None
    return rows if copy is None or to_json(rows) == list(copy[:epochs]) else None


def _read_lines(path: Path) -> list[EpochMetrics | None]:
    """Reads the rows of a file, with None for damaged lines."""
    content = files.read(path) if os.path.lexists(path) else b""
    return [_parse(line) for line in content.splitlines()]


def _parse(line: bytes) -> EpochMetrics | None:
    try:
        row = strict_json.from_null(json.loads(line))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _is_row(row) else None


def _is_row(row: EpochMetrics) -> bool:
    """Returns whether a row has all required fields, of the right types."""
    if not all(json_fields.fits(row.get(name), hint) for name, hint in _TYPES.items()):
        return False
    if not (row["epoch"] >= 1 and row["step"] >= 1):
        return False
    if not json_fields.fits(row.get("val_top1", 0), float):
        return False
    if "multipliers" not in row:
        return not row.keys() & _OF_INSGD
    by_weight = row["multipliers"], row.get("powers")
    return (
        row.keys() >= _OF_INSGD
        and json_fields.fits(row["mean_multiplier"], float)
        and json_fields.fits(row["weights_at_floor"], int)
        and json_fields.fits(row["at_floor"], list[str])
        and all(
            isinstance(values, dict)
            and values
            and all(json_fields.fits(value, float) for value in values.values())
            for values in by_weight
        )
    )


def _lines_are(numbers: Sequence[int]) -> str:
    verb = "line {} is" if len(numbers) == 1 else "lines {} are"
    return verb.format(_numbers(numbers))


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_MOST_SHOWN]))
    more = len(numbers) - _MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def to_json(rows: Sequence[EpochMetrics]) -> list[EpochMetrics]:
    """Returns JSON-serializable rows, with None for numbers that are not finite."""
    return [strict_json.to_null(row) for row in rows]


def _line(row: EpochMetrics) -> str:
    return json.dumps(strict_json.to_null(row), allow_nan=False) + "\n"
