"""An update that is done only if a condition holds."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Value = TypeVar("Value")


def update_if(
    condition: jax.Array, update: Callable[[Value], Value], value: Value
) -> Value:
    """`update(value)` if the condition holds, else the value.

    It is a loop of zero or one iterations: unlike `lax.cond`, it leaves the arrays
    where they are, and does not copy them where they are not updated.
    """
    return jax.lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(condition), update(carry[1])),
        (condition, value),
    )[1]
