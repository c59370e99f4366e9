"""Algorithm 1's momentum and weight decay."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from insgd_optax._numbers import check_fraction, check_not_negative, is_number


class DampenedTraceState(NamedTuple):
    """State of `dampened_trace` with dampening."""

    # The field's name in every optax state; it hides tuple.count.
    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=jnp.int32
    trace: Any  # like params, in their dtypes


def dampened_trace(
    decay: Any, dampening: Any = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    r"""Momentum whose every gradient but the first is dampened.

    .. math::
        b_1 = g_1, \quad b_t = \gamma b_{t-1} + (1 - d) g_t

    where gamma is `decay` and d is `dampening`; the update is b_t, or with `nesterov`
    g_t + gamma b_t. PyTorch's SGD has the same rule.

    Args:
        decay: gamma, in [0, 1).
        dampening: d. 0 is `optax.trace` itself; d = gamma is Algorithm 1.
        nesterov: whether to look ahead.

    Returns:
        A transformation; with a dampening of 0 its state is `optax.TraceState`, else
        `DampenedTraceState`.

    Raises:
        ValueError: if decay lies outside [0, 1) or dampening outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import dampened_trace
        >>> tx = dampened_trace(0.9, dampening=0.9)
        >>> state = tx.init(jnp.zeros(()))
        >>> first, state = tx.update(jnp.array(1.0), state)
        >>> second, state = tx.update(jnp.array(2.0), state)
        >>> print(f"{first:.1f} {second:.1f}")
        1.0 1.1

    Source: Algorithm 1, lines "Gradient with Momentum". The authors' released code and
    every SGD baseline use d = 0, which is therefore the default.
    """
    check_fraction(**{"momentum decay": decay})
    check_fraction(below_one=False, dampening=dampening)
    if is_number(dampening) and dampening == 0:
        return optax.trace(decay, nesterov)

    def init_fn(params: Any) -> DampenedTraceState:
        return DampenedTraceState(
            count=jnp.zeros([], jnp.int32), trace=optax.tree.zeros_like(params)
        )

    def update_fn(
        updates: Any, state: DampenedTraceState, params: Any = None
    ) -> tuple[Any, DampenedTraceState]:
        del params
        fresh = jnp.where(state.count == 0, 1.0, 1.0 - dampening)

        def accumulate(grad: jax.Array, trace: jax.Array) -> jax.Array:
            return (fresh.astype(grad.dtype) * grad + decay * trace).astype(trace.dtype)

        trace = jax.tree.map(accumulate, updates, state.trace)
        if nesterov:
            updates = jax.tree.map(
                lambda g, b: (g + decay * b).astype(g.dtype), updates, trace
            )
        else:
            updates = trace
        count = optax.safe_increment(state.count)
        return updates, DampenedTraceState(count=count, trace=trace)

    return optax.GradientTransformation(init_fn, update_fn)


def add_decayed_weights(
    weight_decay: Any, mask: Any = None
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, or nothing for None and 0, as in `optax.sgd`.

    `optax.inject_hyperparams` makes an array of a default of 0.0, which cannot be told
    from any other, and would ask for parameters. It leaves None as it is.

    Raises:
        ValueError: if `weight_decay` is negative.
    """
    if weight_decay is None:
        return optax.identity()
    check_not_negative(weight_decay=weight_decay)
    if is_number(weight_decay) and weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask)
