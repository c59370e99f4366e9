"""A Flax train state that passes input statistics and the loss to the optimizer."""

import functools
from typing import Any

import optax
from flax.training import train_state
from jax.typing import ArrayLike


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` for optimizers that take input norms.

    Flax's own passes keyword arguments of `apply_gradients` to `replace`, and none of
    them to the optimizer.

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

        An optimizer without extra arguments, such as `optax.sgd`, ignores norms,
        covariances and loss, so that one training step serves for comparisons.

        Args:
            grads: gradients, like `params`.
            input_norms: the "intermediates" of the same pass. None for an optimizer
                that takes no norms.
            input_covariances: likewise, for `scale_by_input_covariance`.
            value: the loss whose gradients are passed, for `clip_by_polyak` and other
                optimizers that use it. None for an optimizer that does not use it.
            **kwargs: further fields to replace, such as `batch_stats`.

        Returns:
            The new state.
        """
        tx = self.tx
        if isinstance(tx, optax.GradientTransformation):
            tx = optax.with_extra_args_support(tx)
        given = {
            "input_norms": input_norms,
            "input_covariances": input_covariances,
            "value": value,
        }
        extra_args = {name: each for name, each in given.items() if each is not None}
        update = functools.partial(tx.update, **extra_args)
        # Calls flax's apply_gradients, which also handles fp8 parameters.
        bound = self.replace(tx=optax.GradientTransformation(tx.init, update))
        state = super(TrainState, bound).apply_gradients(grads=grads, **kwargs)
        return state.replace(tx=self.tx)
