"""JSON as the standard defines it: numbers that are not finite are written as null."""

import json
import math
from collections.abc import Callable
from typing import Any


def encode(value: Any) -> bytes:
    """Encodes a file's content: indented, with null for NaN and infinities."""
    return (json.dumps(to_null(value), indent=2, allow_nan=False) + "\n").encode()


def to_null(value: Any) -> Any:
    """Replaces every number that is not finite by None."""
    return _map(
        value,
        lambda entry: (
            None if isinstance(entry, float) and not math.isfinite(entry) else entry
        ),
    )


def from_null(value: Any) -> Any:
    """Replaces every None by NaN."""
    return _map(value, lambda entry: math.nan if entry is None else entry)


def _map(value: Any, fn: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map(entry, fn) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_map(entry, fn) for entry in value]
    return fn(value)
