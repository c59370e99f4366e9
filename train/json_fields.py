"""Checks JSON, YAML and the command line against the types of dataclass fields."""

import json
import types
import typing
from pathlib import Path
from typing import Any


class FieldError(Exception):
    """A value that is missing, unknown or of another type; the message names it."""


def check(where: str, value: Any, hint: Any) -> None:
    """Raises a FieldError unless a JSON value represents a value of a type."""
    if not fits(value, hint):
        raise FieldError(f"{where!r} is {_shown(value)}, not {_expected(hint)}")


def check_number(option: str, text: str, hint: Any) -> None:
    """Raises a FieldError if an option takes numbers and its text is not a number."""
    number = _number_type(hint)
    if number is None or text == "None":
        return
    try:
        number(text)
    except ValueError as error:
        raise FieldError(
            f"{option} must be {_expected(number)}, got {text!r}"
        ) from error


def _number_type(hint: Any) -> type[int] | type[float] | None:
    """Returns the type of a field, or of each of its entries, if they are numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _number_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        inner, *others = [each for each in arguments if each is not types.NoneType]
        return None if others else _number_type(inner)
    return hint if hint in (int, float) else None


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a JSON value represents a value of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin in (tuple, list):
        return isinstance(value, list) and all(
            fits(each, arguments[0]) for each in value
        )
    if hint is Path:
        return isinstance(value, str) and "\0" not in value
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:  # bool is a subclass of int.
        return type(value) is int
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
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


def kind(value: Any) -> str:
    """Describes the type of a JSON value that is not an object."""
    names = {list: "a list", str: "a string", bool: "a Boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)  # YAML has dates, too.
    return text if len(text) <= 60 else f"{text[:57]}..."
