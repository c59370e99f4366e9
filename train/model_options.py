"""Options of a network as text, NAME=VALUE, and as what the network takes."""

import ast
from collections.abc import Iterable
from typing import Any

import models

# What each run sets by itself, and with what.
_SET_ELSEWHERE = {
    "dtype": "the compute dtype has its own option",
    "axis_name": "it follows from the devices",
}


def parse(text: str) -> tuple[str, Any]:
    """Reads NAME=VALUE.

    Args:
        text: such as "stem=cifar", "dropout=0.5", "layer_norm=False" or
            "stage_sizes=1x1x1". The value is a Python literal, a list of sizes, or
            else the text itself.

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
    # The parser runs out of stack, or of digits, before it finds a value.
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return name, value


def parse_all(texts: Iterable[str]) -> dict[str, Any]:
    """Reads options, each given once.

    Raises:
        ValueError: if one has another form, or is given twice.
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
            raise models.OptionError(f"{name} is no option here: {reason}")
    models.check_options(model, options)
