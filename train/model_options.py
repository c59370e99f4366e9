"""Parses network options of the form NAME=VALUE."""

import ast
from collections.abc import Iterable
from typing import Any

import models

# Options set elsewhere, and where.
_SET_ELSEWHERE = {
    "dtype": "the compute dtype has its own option",
    "axis_name": "it follows from the devices",
}


def parse(text: str) -> tuple[str, Any]:
    """Parses NAME=VALUE.

    Args:
        text: an option, such as "stem=cifar", "dropout=0.5", "layer_norm=False" or
            "stage_sizes=1x1x1". The value is a Python literal, sizes separated by
            "x", or a string.

    Returns:
        The name and the value.

    Raises:
        ValueError: if the text has another form.
    """
    name, _, value = text.partition("=")
    if not (name and value):
        raise ValueError(f"must be NAME=VALUE, such as stem=cifar, got {text!r}")
    if "x" in value and value.replace("x", "").isdecimal():
        sizes = value.split("x")
        if all(sizes):
            return name, tuple(map(int, sizes))
    try:
        return name, ast.literal_eval(value)
    # The parser may exceed its limits on nesting and digits.
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return name, value


def parse_all(texts: Iterable[str]) -> dict[str, Any]:
    """Parses several options.

    Raises:
        ValueError: if one is malformed or repeated.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, value = parse(text)
        if name in options:
            raise ValueError(f"must name each option once, got {name} twice")
        options[name] = value
    return options


def check(model: str, options: dict[str, Any]) -> None:
    """Raises a `models.NetworkError` unless the network has these options."""
    for name, reason in _SET_ELSEWHERE.items():
        if name in options:
            raise models.OptionError(f"{name} is not an option here: {reason}")
    models.check_options(model, options)
