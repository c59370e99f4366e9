"""Validates `record.json`, which may come from anywhere."""

import json
from typing import Any

from train import json_fields
from train.config import NOT_STORED, RunConfig

_ENVIRONMENT: dict[str, Any] = {
    "commit": str | None,
    "devices": list[str],
    "parallel": str | None,
    "versions": dict,
    "cores": int | None,
    "chunk_steps": int | None,
}
# Types of the fields that are read, by part of the record.
_PARTS: dict[str, dict[str, Any]] = {
    "config": {},
    "dataset": {
        "name": str,
        "train_images": int,
        "test_images": int,
        "image_shape": list[int],
        "class_names": list[str],
        "fingerprint": str,
        "files": str,
    },
    "preprocessing": {
        "mean": list[float],
        "std": list[float],
        "shorter_side": int | None,
    },
    "own_code": {},
    "environment": _ENVIRONMENT,
}
# Earlier versions did not write these.
_OPTIONAL_PARTS = {"preprocessing", "own_code", "environment"}


def parse(content: bytes) -> dict[str, Any]:
    """Parses a record.

    Raises:
        FieldError: if a field is missing, unknown or of another type.
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise json_fields.FieldError("it is nested too deeply") from error
    except ValueError as error:
        raise json_fields.FieldError(f"it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise json_fields.FieldError(f"it is {json_fields.kind(record)}, not an object")
    resumed = record.get("resumed", [])
    if not isinstance(resumed, list):
        raise json_fields.FieldError(
            f"its 'resumed' is {json_fields.kind(resumed)}, not a list"
        )
    parts = [
        (part, record.get(part, {} if part in _OPTIONAL_PARTS else None), fields)
        for part, fields in _PARTS.items()
    ]
    for part, values, fields in [
        *parts,
        *(("resumed", each, _ENVIRONMENT) for each in resumed),
    ]:
        if not isinstance(values, dict):
            raise json_fields.FieldError(
                f"its {part!r} is {json_fields.kind(values)}, not an object"
            )
        for name, hint in fields.items():
            if name in values:
                json_fields.check(f"{part}.{name}", values[name], hint)
    _check_config(record["config"])
    return record


def _check_config(values: dict[str, Any]) -> None:
    hints = json_fields.hints(RunConfig)
    for name, value in values.items():
        if name not in hints.keys() - NOT_STORED:
            raise json_fields.FieldError(
                f"'config.{name}' is not an option of this version"
            )
        json_fields.check(f"config.{name}", value, hints[name])
