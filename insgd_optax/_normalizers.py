"""From a layer's input power P to the divisor of its gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from insgd_optax._numbers import is_number

Normalizer = str | Callable[[jax.Array], jax.Array]


def divisor_function(normalizer: Normalizer, eps: Any) -> Callable[[Any], jax.Array]:
    """Returns P -> f(P), with f = 1 where P is 0, which means that none is known yet.

    Raises:
        ValueError: if the normalizer is not known or eps is not positive.
    """
    if is_number(eps) and not eps > 0:
        raise ValueError(f"eps={eps} must be greater than 0")
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "log": lambda power: jnp.maximum(jnp.log(power), eps),
        "power": lambda power: eps + power,
        "log1p": lambda power: 1 + jnp.log1p(power),
    }
    if callable(normalizer):
        function = normalizer
    elif not isinstance(normalizer, str):
        raise TypeError(
            f"normalizer is a {type(normalizer).__name__}: give a name or a function"
            " from P to the divisor; optax.inject_hyperparams takes a function for a"
            ' schedule unless it is told static_args=("normalizer",)'
        )
    elif normalizer in functions:
        function = functions[normalizer]
    else:
        raise ValueError(
            f"normalizer={normalizer!r} is not known: give one of {sorted(functions)},"
            " or a function from P to the divisor"
        )

    def divisor(power: jax.Array) -> jax.Array:
        known = power > 0
        # A callable need not be defined at 0.
        value = function(jnp.where(known, power, jnp.ones_like(power)))
        return jnp.where(known, value, jnp.ones_like(power)).astype(power.dtype)

    return divisor
