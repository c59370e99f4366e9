"""NLMS as an optimizer: each step projects onto the current sample's hyperplane."""

from typing import Any

import optax

from insgd_optax._input_power import scale_by_input_power
from insgd_optax._numbers import check_not_negative


def nlms(
    learning_rate: Any = 1.0, *, eps: Any = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """Normalized least mean squares for the kernels of a network.

    For a layer with kernel w and input x, with g the gradient of w,

        w <- w - learning_rate * g / (eps + ||x||_p^p).

    For one linear neuron, the loss e^2 / 2 and a batch of one sample, g = -e x, and
    this is `nlms_filter`, step for step; with `learning_rate` 1 and p = 2 it projects
    w onto the hyperplane of the weights without error at this sample. Rates between 0
    and 2 then converge whatever the input's scale. With the loss `projection_loss`
    the same holds for the neurons of a non-linear last layer.

    Args:
        learning_rate: lambda, a number of at least 0 or a schedule.
        eps: what is added to the power, > 0, in units of |x|^p.

    Returns:
        One `optax.chain` of `scale_by_input_power(decay=0.0, normalizer="power")`,
        which remembers no power, and `optax.scale_by_learning_rate`. Its `update`
        requires the keyword `input_norms`; p is that of `capture_input_norms`. Biases
        are not normalized and learn as under `optax.sgd`.

    Raises:
        ValueError: if the learning rate is negative, and as `scale_by_input_power`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from insgd_optax import capture_input_norms, nlms
        >>> model, tx = nn.Dense(1, use_bias=False), nlms(eps=1e-6)
        >>> x, d = jnp.array([[3.0, 4.0]]), jnp.array([[10.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> def loss_fn(params):
        ...     with capture_input_norms(p=2):
        ...         y, sown = model.apply(
        ...             {"params": params}, x, mutable=["intermediates"]
        ...         )
        ...     return 0.5 * jnp.sum((d - y) ** 2), sown
        >>> grads, norms = jax.grad(loss_fn, has_aux=True)(params)
        >>> updates, _ = tx.update(grads, tx.init(params), params, input_norms=norms)
        >>> params = optax.apply_updates(params, updates)
        >>> print(model.apply({"params": params}, x).round(4))  # the target, at once
        [[10.]]

    Source: Eq. 7-9 and 20; Eq. 25 for layers inside a network. Eq. 20 does not give
    eps a value.
    """
    check_not_negative(learning_rate=learning_rate)
    return optax.chain(
        scale_by_input_power(decay=0.0, normalizer="power", eps=eps),
        optax.scale_by_learning_rate(learning_rate),
    )
