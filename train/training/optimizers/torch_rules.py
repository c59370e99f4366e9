"""PyTorch rules that Optax lacks, for the paper's baselines.

Optax has the others: `optax.scale_by_adam`, `optax.scale_by_adadelta` and
`optax.scale_by_rms` with `eps_in_sqrt=False` are PyTorch's rules.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class ScaleByAdagradState(NamedTuple):
    """State of `scale_by_adagrad`."""

    square_sum: optax.Updates  # Sum of squared gradients; shapes and dtypes of params.


def scale_by_adagrad(eps: float = 1e-10) -> optax.GradientTransformation:
    """Divides gradients by the root of the sum of their squares so far.

        v <- v + g^2,  g <- g / (sqrt(v) + eps),  v starting at 0

    Args:
        eps: added to the root. `optax.scale_by_rss` adds it under the root, where
            1e-10 acts like 1e-5, and its sum starts at 0.1 by default.

    Returns:
        The transformation.

    Source: Eq. 10-11, and `torch.optim.Adagrad` with its defaults.
    """

    def init_fn(params: optax.Params) -> ScaleByAdagradState:
        return ScaleByAdagradState(jax.tree.map(jnp.zeros_like, params))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByAdagradState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ScaleByAdagradState]:
        del params
        square_sum = jax.tree.map(lambda v, g: v + g**2, state.square_sum, updates)
        updates = jax.tree.map(
            lambda g, v: g / (jnp.sqrt(v) + eps), updates, square_sum
        )
        return updates, ScaleByAdagradState(square_sum)

    return optax.GradientTransformation(init_fn, update_fn)
