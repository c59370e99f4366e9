"""Encodes and validates `record.json`, which may come from anywhere."""

import json
import math
import typing
from typing import Any

from train import json_fields, strict_json
from train.config import NOT_STORED
from train.run import checksums
from train.run_config import RunConfig

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


_CHECKSUM = "sha256"


def encode(record: dict[str, Any]) -> bytes:
    """Encodes a record, with a checksum of its contents."""
    return strict_json.encode(record | {_CHECKSUM: _checksum(record)})


def verify(record: dict[str, Any]) -> None:
    """Removes the checksum, which earlier versions did not write, and compares it.

    Raises:
        FieldError: if the contents are not those that were written.
    """
    checksum = _checksum(record)
    if record.pop(_CHECKSUM, checksum) != checksum:
        raise json_fields.FieldError(
            f"its contents do not match its {_CHECKSUM!r} (if you edited it, remove "
            f"its {_CHECKSUM!r})"
        )


def _checksum(record: dict[str, Any]) -> str:
    values = {name: part for name, part in record.items() if name != _CHECKSUM}
    return checksums.of_contents((), strict_json.to_null(values))


def parse(content: bytes) -> dict[str, Any]:
    """Parses a record, without comparing its checksum: see `verify`.

    Raises:
        FieldError: if a part is missing or unknown, or a field has the wrong type or is
            out of range.
    """
    try:
        record = json.loads(content, parse_constant=_refuse)
    except RecursionError as error:
        raise json_fields.FieldError("it is nested too deeply") from error
    except ValueError as error:
        raise json_fields.FieldError(f"it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise json_fields.FieldError(f"it is {json_fields.kind(record)}, not an object")
    if unknown := record.keys() - {*_PARTS, "resumed", _CHECKSUM}:
        raise json_fields.FieldError(f"its {min(unknown)!r} is not part of a record")
    resumed = record.get("resumed", [])
    if not isinstance(resumed, list):
        raise json_fields.FieldError(
            f"its 'resumed' is {json_fields.kind(resumed)}, not a list"
        )
    if missing := _PARTS.keys() - _OPTIONAL_PARTS - record.keys():
        raise json_fields.FieldError(f"it has no {min(missing)!r}")
    parts = [(part, record.get(part, {}), fields) for part, fields in _PARTS.items()]
    for part, values, fields in [
        *parts,
        *(
            (f"resumed[{index}]", each, _ENVIRONMENT)
            for index, each in enumerate(resumed)
        ),
    ]:
        if not isinstance(values, dict):
            raise json_fields.FieldError(
                f"its {part!r} is {json_fields.kind(values)}, not an object"
            )
        for name, hint in fields.items():
            if name in values:
                json_fields.check(f"{part}.{name}", values[name], hint)
    _check_data(record["dataset"], record.get("preprocessing"))
    _check_config(record["config"])
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


def _check_data(dataset: dict[str, Any], preprocessing: dict[str, Any] | None) -> None:
    """Raises unless a network can take the data, of which parts may be missing."""
    for name in ("train_images", "test_images"):
        if dataset.get(name, 1) < 1:
            raise _out_of_range(f"dataset.{name}", dataset[name], "at least 1")
    shape = dataset.get("image_shape", [1, 1, 1])
    if len(shape) != 3 or min(shape) < 1:
        what = "a height, a width and a number of channels"
        raise _out_of_range("dataset.image_shape", shape, what)
    if not dataset.get("class_names", [""]):
        raise json_fields.FieldError("its 'dataset.class_names' is empty")
    if preprocessing is None:
        return
    for name in ("mean", "std"):
        if name not in preprocessing:
            raise json_fields.FieldError(f"its 'preprocessing' has no {name!r}")
        values = preprocessing[name]
        if not all(map(math.isfinite, values)) or (
            "image_shape" in dataset and len(values) != shape[-1]
        ):
            what = "a number for each channel"
            raise _out_of_range(f"preprocessing.{name}", values, what)
    if min(preprocessing["std"], default=1) <= 0:
        raise _out_of_range("preprocessing.std", preprocessing["std"], "above 0")


def _out_of_range(where: str, value: Any, expected: str) -> json_fields.FieldError:
    return json_fields.FieldError(f"{where!r} is {json.dumps(value)}, not {expected}")


def _check_config(values: dict[str, Any]) -> None:
    hints = typing.get_type_hints(RunConfig)
    for name, value in values.items():
        if name not in hints.keys() - NOT_STORED:
            raise json_fields.FieldError(
                f"'config.{name}' is not an option of this version"
            )
        json_fields.check(f"config.{name}", value, hints[name])
