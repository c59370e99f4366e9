"""The values that a network's options may have, by their annotations."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.errors import OptionError
from models.mobilenet_v3 import Block

# More than any network needs. Far larger sizes would overflow in NumPy.
_MOST = 2**16
_CHOICES = {"stem": ("imagenet", "cifar"), "shortcut": ("projection", "identity")}


def check(network: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Checks values of options that `build` has, before anything is built.

    Args:
        network: name of the network, for the message.
        build: the function or class that makes it.
        options: values by name.

    Raises:
        OptionError: for a value of another type, or out of range.
    """
    parameters = inspect.signature(build).parameters
    for name, value in options.items():
        expected = _expected(name, parameters[name].annotation, value)
        if expected is not None:
            raise OptionError(
                f"The network {network!r} has no {name}={value!r}; {expected}."
            )


def _expected(name: str, annotation: Any, value: Any) -> str | None:
    """Describes the expected value; None if the value is valid."""
    if annotation is bool:
        return None if isinstance(value, bool) else "choose True or False"
    if name in _CHOICES:
        known = isinstance(value, str) and value in _CHOICES[name]
        return None if known else f"choose one of {_quoted(_CHOICES[name])}"
    if annotation is int:
        return None if _is_size(value) else f"give an integer from 1 to {_MOST}"
    if annotation is float:
        return _expected_number(name, value)
    if annotation == Sequence[int]:
        right = isinstance(value, list | tuple) and value and all(map(_is_size, value))
        return None if right else f"give a sequence of integers from 1 to {_MOST}"
    if annotation == Sequence[Block]:
        right = isinstance(value, list | tuple) and value
        right = right and all(isinstance(block, Block) for block in value)
        return None if right else "give a sequence of `models.mobilenet_v3.Block`"
    return None


def _expected_number(name: str, value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "dropout":
        right = number and 0 <= value < 1
        return None if right else "give a rate in [0, 1)"
    right = number and 0 < value <= _MOST and math.isfinite(value)
    return None if right else f"give a number above 0, at most {_MOST}"


def _is_size(value: Any) -> bool:
    integral = isinstance(value, int) and not isinstance(value, bool)
    return integral and 1 <= value <= _MOST


def _quoted(choices: Sequence[str]) -> str:
    return ", ".join(map(repr, choices))
