"""What the adaptive filters share: their arguments, their result and their scan."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Samples an iteration of the compiled loop, on a CPU: four take a third off NLMS's time
# at 256 taps, and multiply it by six at 16.
_UNROLL, _UNROLL_ABOVE_TAPS = 4, 64


class FilterResult(NamedTuple):
    """What an adaptive filter returns, over the T samples of the signal."""

    weights: jax.Array  # (T, num_taps), or (1, num_taps): row t is *after* sample t
    outputs: jax.Array  # (T,), the filter's output at t, with the weights *before* t
    errors: jax.Array  # (T,), d - outputs


def check_scalar(name: str, value: Any, *, allow_zero: bool) -> None:
    if np.shape(value) != ():
        raise ValueError(
            f"{name} is one number, not an array of shape {np.shape(value)}; for"
            f" several at once, jax.vmap the filter over {name}"
        )
    if isinstance(value, jax.core.Tracer):
        return  # inside jit or vmap: no value to look at
    in_range = not np.iscomplexobj(value) and (value > 0 or allow_zero and value == 0)
    if not (in_range and np.isfinite(value)):
        kind = "a finite number >= 0" if allow_zero else "a positive finite number"
        raise ValueError(f"{name}={value!r}: give {kind}")


def check_count(name: str, value: Any, at_least_one: str) -> int:
    """`value` as an int of at least 1, or a `ValueError`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r}: give a whole number") from None
    if count < 1:
        raise ValueError(f"{name}={count}: {at_least_one}")
    return count


def check_signals(
    u: Any, d: Any, num_taps: Any, weights: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`u`, `d` and the first weights as arrays of one dtype, or a `ValueError`."""
    u, d = jnp.asarray(u), jnp.asarray(d)
    for name, signal in (("u", u), ("d", d)):
        if signal.ndim != 1:
            raise ValueError(
                f"{name} is one signal of shape (T,), not {signal.shape}; for several"
                " channels, jax.vmap the filter over the channel axis"
            )
    if u.shape != d.shape:
        raise ValueError(
            f"u and d are sampled together, but u has {u.size} samples and d {d.size}"
        )
    if u.size == 0:
        raise ValueError("u and d are empty: give at least one sample")
    num_taps = check_count("num_taps", num_taps, "a filter has at least one tap")
    weights = jnp.zeros(num_taps, u.dtype) if weights is None else jnp.asarray(weights)
    dtype = jnp.result_type(u, d, weights)
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)  # the default: float64 where that is enabled
    if jnp.finfo(dtype).bits < 32:
        dtype = jnp.dtype("float32")  # half precision is too coarse for a running sum
    if weights.shape != (num_taps,):
        raise ValueError(
            f"weights has shape {weights.shape}, but num_taps={num_taps} asks for"
            f" ({num_taps},)"
        )
    return u.astype(dtype), d.astype(dtype), weights.astype(dtype)


class Sample(NamedTuple):
    """What an update sees of one sample."""

    t: jax.Array  # (), its number, from 0
    x: jax.Array  # (num_taps,), the window, newest entry first
    desired: jax.Array  # (), d
    error: jax.Array  # (), d minus the output of the weights before the update


def scan_filter(
    u: jax.Array,
    d: jax.Array,
    weights: jax.Array,
    state: Any,
    update: Callable[[jax.Array, Any, Sample], tuple[jax.Array, Any]],
    *,
    weight_history: bool,
) -> FilterResult:
    """Filters a signal; `update` maps (weights, state, sample) to the next two."""
    num_samples, num_taps = u.size, weights.size
    # Newest sample first, so that a window is one contiguous slice; the zeros are
    # the signal before it starts.
    reverse = jnp.flip(jnp.concatenate([jnp.zeros(num_taps - 1, u.dtype), u]))

    def step(carry: tuple[jax.Array, Any], t_and_d: tuple[jax.Array, jax.Array]) -> Any:
        weights, state = carry
        t, d_t = t_and_d
        x = jax.lax.dynamic_slice(reverse, (num_samples - 1 - t,), (num_taps,))
        output = jnp.sum(x * weights)
        error = d_t - output
        weights, state = update(weights, state, Sample(t, x, d_t, error))
        row = weights if weight_history else None
        return (weights, state), (row, output, error)

    unroll = _UNROLL if num_taps > _UNROLL_ABOVE_TAPS else 1
    (last, _), (history, outputs, errors) = jax.lax.scan(
        step, (weights, state), (jnp.arange(num_samples), d), unroll=unroll
    )
    return FilterResult(history if weight_history else last[None], outputs, errors)
