"""Flax's train state, with the input norms handed on."""

import functools
from typing import Any

import optax
from flax.training import train_state
from jax.typing import ArrayLike


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` whose gradients come with input norms.

    Flax's own hands keyword arguments of `apply_gradients` to `replace` and not to the
    optimizer, which then misses `input_norms`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import TrainState, capture_input_norms, insgd
        >>> model, x = nn.Dense(1), jnp.array([[3.0, 4.0]])
        >>> state = TrainState.create(
        ...     apply_fn=model.apply,
        ...     params=model.init(jax.random.key(0), x)["params"],
        ...     tx=insgd(0.1),
        ... )
        >>> def loss_fn(params):
        ...     with capture_input_norms():
        ...         y, sown = state.apply_fn(
        ...             {"params": params}, x, mutable=["intermediates"]
        ...         )
        ...     return jnp.mean(y**2), sown
        >>> grads, norms = jax.grad(loss_fn, has_aux=True)(state.params)
        >>> state = state.apply_gradients(grads=grads, input_norms=norms)
        >>> int(state.step)
        1
    """

    def apply_gradients(
        self,
        *,
        grads: optax.Updates,
        input_norms: Any = None,
        input_covariances: Any = None,
        value: ArrayLike | None = None,
        **kwargs: Any,
    ) -> "TrainState":
        """Updates the parameters, the optimizer state and the step.

        Args:
            grads: gradients, like `params`.
            input_norms: the "intermediates" of the same pass. None for an optimizer
                that takes no norms.
            input_covariances: likewise, for `scale_by_input_covariance`.
            value: the loss that the gradients are of, for `clip_by_polyak` and others
                that take it. None for an optimizer that does not.
            **kwargs: further fields to replace, such as `batch_stats`.

        Returns:
            The new state.
        """
        update = self.tx.update
        plain = isinstance(self.tx, optax.GradientTransformation) and not isinstance(
            self.tx, optax.GradientTransformationExtraArgs
        )
        given = {
            "input_norms": input_norms,
            "input_covariances": input_covariances,
            "value": value,
        }
        extra_args = {name: each for name, each in given.items() if each is not None}
        if not plain:
            update = functools.partial(update, **extra_args)
        # Flax's own method, whose care for fp8 parameters is not repeated here.
        handing_on = self.replace(tx=optax.GradientTransformation(self.tx.init, update))
        state = super(TrainState, handing_on).apply_gradients(grads=grads, **kwargs)
        return state.replace(tx=self.tx)
