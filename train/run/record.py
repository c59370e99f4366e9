"""What `record.json` must hold, checked field by field: a run folder may be anything."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from train.config import RunConfig

# By part of the record: the fields that are read by name, and their types.
_PARTS: dict[str, dict[str, Any]] = {
    "config": {},
    "dataset": {"fingerprint": str},
    "environment": {
        "commit": str | None,
        "devices": list[str],
        "versions": dict,
        "cores": int | None,
        "chunk_steps": int | None,
    },
}


class RecordError(Exception):
    """A record that no run of this version wrote."""


def parse(content: bytes) -> dict[str, Any]:
    """Reads a record.

    Raises:
        RecordError: naming the field that is missing, unknown or of another type.
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise RecordError("it is nested too deeply") from error
    except ValueError as error:
        raise RecordError(f"it is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise RecordError(f"it holds {_kind(record)}, not an object")
    for part, fields in _PARTS.items():
        values = record.get(part, {} if part == "environment" else None)
        if not isinstance(values, dict):
            raise RecordError(f"its {part!r} is {_kind(values)}, not an object")
        for name, hint in fields.items():
            if name in values:
                _check(f"{part}.{name}", values[name], hint)
    _check_fields("config", record["config"], RunConfig)
    return record


def _check_fields(where: str, values: dict[str, Any], config: Any) -> None:
    hints = typing.get_type_hints(config, include_extras=True)
    # Not stored: of the process, not of the run.
    known = hints.keys() - {"launch"}
    for name, value in values.items():
        if name not in known:
            raise RecordError(f"'{where}.{name}' is no option that this version has")
        _check(f"{where}.{name}", value, hints[name])


def _check(where: str, value: Any, hint: Any) -> None:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        _check_fields(where, value, hint)
    elif not _fits(value, hint):
        raise RecordError(f"{where!r} is {_shown(value)}, not {_expected(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is one of a type, as JSON holds it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin in (tuple, list):
        return isinstance(value, list) and all(
            _fits(each, arguments[0]) for each in value
        )
    if hint is Path:
        return isinstance(value, str) and "\0" not in value
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:  # As which Python counts True.
        return type(value) is int
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _expected(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (tuple, list):
        return f"a list, each entry {_expected(arguments[0])}"
    names = {
        Path: "a path",
        str: "a string",
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names.get(hint, "an object")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
