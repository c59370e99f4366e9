"""Algorithm 1's momentum and weight decay."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from insgd_optax._numbers import check_fraction, check_not_negative, is_number

# Where weight decay applies: a tree of bools like the parameters, or a function.
Mask: TypeAlias = optax.Params | Callable[[optax.Params], Any]


class DampenedTraceState(NamedTuple):
    """State of `dampened_trace` with dampening.

    Attributes:
        count: the number of updates: shape (), int32.
        trace: a tree like the parameters, in their dtypes.
    """

    # `count` shadows `tuple.count`, hence the ignore.
    count: jax.Array  # type: ignore[assignment]
    trace: Any


def dampened_trace(
    decay: ArrayLike, dampening: ArrayLike = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    r"""Momentum that dampens every gradient except the first.

    .. math::
        b_1 = g_1, \quad b_t = \gamma b_{t-1} + (1 - d) g_t

    where gamma is `decay` and d is `dampening`; the update is b_t, or with `nesterov`
    g_t + gamma b_t. PyTorch's SGD has the same rule.

    Args:
        decay: gamma, in [0, 1).
        dampening: d, in [0, 1]. With 0, the transformation is `optax.trace` itself;
            with gamma, it is the momentum of Algorithm 1.
        nesterov: whether to use Nesterov momentum.

    Returns:
        A transformation; with a dampening of 0 its state is `optax.TraceState`, else
        `DampenedTraceState`. As in `optax.trace`, the dtype of an update is the
        promoted dtype of gradient and buffer, and the update is None where the gradient
        is None. The buffer of `DampenedTraceState` keeps the parameters' dtype; that of
        `optax.TraceState` takes the update's.

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
    check_fraction(decay=decay)
    check_fraction(below_one=False, dampening=dampening)
    if is_number(dampening) and dampening == 0:
        return optax.trace(decay, nesterov)

    def init_fn(params: optax.Params) -> DampenedTraceState:
        return DampenedTraceState(
            count=jnp.zeros([], jnp.int32), trace=optax.tree.zeros_like(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: DampenedTraceState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, DampenedTraceState]:
        del params
        fresh = jnp.where(state.count == 0, 1.0, 1.0 - dampening)

        def accumulate(grad: Any, trace: jax.Array) -> Any:
            if grad is None:
                return None
            return fresh.astype(grad.dtype) * grad + decay * trace

        def kept(new: Any, old: jax.Array) -> jax.Array:
            return old if new is None else new.astype(old.dtype)

        def is_none(node: Any) -> bool:
            return node is None

        buffer = jax.tree.map(accumulate, updates, state.trace, is_leaf=is_none)
        trace = jax.tree.map(kept, buffer, state.trace, is_leaf=is_none)
        if nesterov:
            updates = jax.tree.map(lambda g, b: g + decay * b, updates, buffer)
        else:
            updates = buffer
        count = optax.safe_increment(state.count)
        return updates, DampenedTraceState(count=count, trace=trace)

    return optax.GradientTransformation(init_fn, update_fn)


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule | None,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, or `optax.identity` for None and 0.

    The default of the optimizers is None because `optax.inject_hyperparams` turns 0.0
    into an array, which cannot be recognized as zero; `update` would then require
    `params`.

    Raises:
        ValueError: if `weight_decay` is negative.
    """
    if weight_decay is None:
        return optax.identity()
    check_not_negative(weight_decay=weight_decay)
    if is_number(weight_decay) and weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask)
