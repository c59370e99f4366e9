"""Options that may be plain numbers, traced values or schedules."""

import math
import numbers
from typing import Any, TypeGuard

import numpy as np

_SCHEDULED = "learning_rate", "weight_decay"  # The options that may be schedules.


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a concrete real number, not a `jax.Array` or a tracer."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and np.isrealobj(value)
    return isinstance(value, numbers.Real)


def check_scalar(**options: Any) -> None:
    """Raises unless each option is a real scalar: a number, an array or a tracer."""
    for name, value in options.items():
        if callable(value):
            raise TypeError(
                f"{name} is a function, but must be a number: for a schedule, use"
                " optax.inject_hyperparams"
            )
        if np.shape(value) != ():
            raise ValueError(
                f"{name} has shape {np.shape(value)}, but must be a scalar"
            )
        if not (is_number(value) or hasattr(value, "dtype")):
            raise TypeError(f"{name}={value!r} must be a number")


def check_fraction(*, below_one: bool = True, **options: Any) -> None:
    """Raises if a concrete option is outside [0, 1), or [0, 1] without `below_one`."""
    for name, value in options.items():
        if is_number(value) and not (0 <= value < 1 or value == 1 and not below_one):
            end = ")" if below_one else "]"
            raise ValueError(f"{name}={value} must lie in [0, 1{end}")


def check_whole_number(name: str, value: Any, *, least: int, hint: str = "") -> int:
    """Returns a value as an int; raises unless it is a whole number >= `least`."""
    # `Integral` includes NumPy's integers, but no array.
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or value < least:
        raise ValueError(
            f"{name}={value!r} must be a whole number of at least {least}{hint}"
        )
    return int(value)


def check_not_negative(**options: Any) -> None:
    """Raises if an option is negative, None or a string."""
    for name, value in options.items():
        if value is None or isinstance(value, str):
            kinds = "a number or a schedule" if name in _SCHEDULED else "a number"
            raise TypeError(f"{name}={value!r} must be {kinds}")
        if is_number(value) and not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0")


def check_lower_bound(**options: Any) -> None:
    """Raises if a lower bound on the loss is None or nan."""
    for name, value in options.items():
        if value is None or is_number(value) and math.isnan(value):
            raise ValueError(f"{name}={value} must be a number")
