"""Files of options, for --config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from train import json_fields
from train.errors import UserError, did_you_mean

# The option that names a file of options; it cannot be used within such a file.
OPTION = "config"
# `to_text` leaves out paths, which differ between machines.
_PLACES = {"runs_dir", "run_dir", "resume", "cache_dir"}


class _Loader(yaml.SafeLoader):
    """Reads 010 as 10; YAML 1.1 would read it as 8."""

    def construct_yaml_int(self, node: Any) -> int:
        try:
            return int(node.value)
        except ValueError:  # Such as 0x10.
            return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read(path: Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a file of options.

    Args:
        path: a YAML file that maps names of options to values.
        types: the types of the options, by field name.

    Returns:
        The values by the names of fields.

    Raises:
        UserError: naming what is wrong in the file.
    """
    try:
        text = path.expanduser().read_text()
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path} is not a YAML file: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"--config {path} holds {json_fields.kind(values)}, not names of options "
            "with their values, such as epochs: 5"
        )
    # A dictionary holds only the last of several equal keys.
    nodes: Any = yaml.compose(text, yaml.SafeLoader)
    fields = set()
    for node, _ in nodes.value:
        if (field := _field(node.value)) in fields:
            key = str(node.value)
            raise UserError(f"--config {path}: {key!r} is set twice. Remove one line.")
        fields.add(field)
    types = {name: hint for name, hint in types.items() if name != OPTION}
    found = {}
    for key, value in values.items():
        field = _field(key)
        if field not in types:
            raise UserError(
                f"--config {path}: there is no option {str(key)!r}."
                f"{did_you_mean(field.replace('_', '-'), types)}"
            )
        value = _as_number(value, types[field])
        try:
            json_fields.check(str(key), value, types[field])
        except json_fields.FieldError as error:
            raise UserError(f"--config {path}: {error}") from error
        found[field] = value
    return found


def _field(key: Any) -> str:
    """The field that a key of the file names, with dashes or underscores."""
    return str(key).replace("-", "_")


def to_text(values: Mapping[str, Any], path: str) -> str:
    """Returns the text of a file of options that repeats a run.

    Args:
        values: JSON-serializable values of the options, by field name.
        path: path of the file, which the command in its first line names.
    """
    told = {
        name: value
        for name, value in values.items()
        if name not in _PLACES and value is not None
    }
    return f"# Repeats this run: python -m train --config {path}\n" + yaml.safe_dump(
        _plain(told), sort_keys=False
    )


def _as_number(value: Any, hint: Any) -> Any:
    """Converts a number that YAML 1.1 reads as text, such as 5e-4."""
    if isinstance(value, str) and not json_fields.fits(value, hint):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if json_fields.fits(number, hint) else value
    return value


def _plain(value: Any) -> Any:
    """Converts tuples to lists for YAML."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value
