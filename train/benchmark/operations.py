"""Counts floating-point operations."""

from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *arguments: Any) -> float | None:
    """Returns the FLOPs of a function, before XLA's optimizations.

    Nothing is compiled or computed. XLA does not count loops correctly.

    Args:
        function: a function of arrays.
        arguments: arrays or their `jax.ShapeDtypeStruct`.

    Returns:
        The count; None if JAX has no CPU backend, since in some versions of JAX only
        that backend reports FLOPs.
    """
    try:
        (cpu, *_) = jax.devices("cpu")
    except RuntimeError:  # JAX_PLATFORMS excludes it.
        return None
    # Arrays would tie the program to their device.
    shapes = jax.eval_shape(lambda *values: values, *arguments)
    with jax.default_device(cpu):
        analysis = jax.jit(function).lower(*shapes).cost_analysis()
    return analysis.get("flops") if analysis else None
