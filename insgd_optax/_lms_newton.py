"""LMS-Newton as one `optax.chain`."""

from typing import Any

import optax
from jax.typing import ArrayLike

from insgd_optax._input_covariance import scale_by_input_covariance
from insgd_optax._insgd import chain_with_momentum
from insgd_optax._momentum import Mask
from insgd_optax._numbers import check_fraction
from insgd_optax._paths import Scope


def lms_newton(
    learning_rate: optax.ScalarOrSchedule,
    *,
    covariance_decay: ArrayLike = 0.95,
    damping: ArrayLike = 1.0,
    momentum: ArrayLike | None = 0.9,
    dampening: ArrayLike | None = None,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    eps: ArrayLike = 1e-8,
    preserve_norm: bool = True,
    max_dim: int | None = None,
    scope: Scope = "kernel",
    missing: str = "error",
    input_covariances_like: Any = None,
    polyak_factor: ArrayLike | None = None,
    loss_lower_bound: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""LMS-Newton for deep networks: SGD preconditioned by each layer's input.

    For a layer with kernel w, gradient g_t and the running covariance A_t of its input
    vectors,

    .. math::
        u_t &= \bigl(A_t + (\delta \operatorname{tr}(A_t) / d + \epsilon) I\bigr)^{-1}
            g_t, \quad u_t \leftarrow u_t \, \|g_t\| / \|u_t\| \\
        b_t &= \gamma b_{t-1} + (1 - \text{dampening}) (u_t + \lambda w), \quad
            b_1 = u_1 + \lambda w \\
        w &\leftarrow w - \mu b_t

    where mu is `learning_rate`, delta `damping`, epsilon `eps`, lambda `weight_decay`
    and gamma `momentum`. It is `optax.chain(scale_by_input_covariance(...),
    optax.add_decayed_weights(...), dampened_trace(...),
    optax.scale_by_learning_rate(...))`; with `polyak_factor`, it is `clip_by_polyak`
    with this scaling. A_t is bias-corrected, as in `scale_by_input_covariance`, and d
    is the length of an input vector. With `preserve_norm`, the default, each update
    keeps its gradient's norm, as in the second formula, so that a learning rate that is
    good for SGD is a good first choice. Without it, u_t is not rescaled.

    For Adam, chain `scale_by_input_covariance` after it:
    `optax.chain(optax.scale_by_adam(), scale_by_input_covariance(),
    optax.add_decayed_weights(...), optax.scale_by_learning_rate(...))`. For Muon, use
    `whiten_inputs`.

    Args:
        learning_rate: mu, a number of at least 0 or an optax schedule.
        covariance_decay: beta, in [0, 1): see `scale_by_input_covariance`; with
            `polyak_factor` also the decay of the bound's running mean.
        damping: see `scale_by_input_covariance`; not to be confused with `dampening`.
        momentum: gamma, in [0, 1); None disables momentum.
        dampening: the dampening of the momentum, in [0, 1]; None is 0. See
            `dampened_trace`.
        nesterov: whether to use Nesterov momentum.
        weight_decay: lambda, at least 0, or a schedule; None is 0.
        weight_decay_mask: a tree of bools like the parameters, True where weight decay
            applies, or a function that returns such a tree for given parameters. With
            None, the default, it applies to all of them.
        eps: see `scale_by_input_covariance`.
        preserve_norm: see `scale_by_input_covariance`.
        max_dim: see `scale_by_input_covariance`.
        scope: see `scale_by_input_covariance`.
        missing: see `scale_by_input_covariance`.
        input_covariances_like: see `scale_by_input_covariance`.
        polyak_factor: c of `clip_by_polyak`, at least 0, such as 1; None for no
            bound.
        loss_lower_bound: L* of `clip_by_polyak`, in the units of the loss.

    Returns:
        A transformation whose `update` requires the keyword `input_covariances`. With
        `polyak_factor`, it also requires the keyword `value`, the loss; with weight
        decay, it also requires the parameters.

    Raises:
        ValueError: if a number is out of its range; see also
            `scale_by_input_covariance`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from insgd_optax import capture_input_covariances, lms_newton
        >>> model = nn.Dense(1)
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> x = x * jnp.array([[9.0, 3.0, 1.0, 1.0]])
        >>> y = x.sum(axis=1, keepdims=True)
        >>> params = model.init(jax.random.key(1), x)["params"]
        >>> tx = lms_newton(learning_rate=0.02)
        >>> opt_state = tx.init(params)
        >>> @jax.jit
        ... def train_step(params, opt_state, step):
        ...     def loss_fn(params):
        ...         with capture_input_covariances(when=step % 10 == 0):
        ...             prediction, sown = model.apply(
        ...                 {"params": params}, x, mutable=["intermediates"]
        ...             )
        ...         return jnp.mean((prediction - y) ** 2), sown
        ...     (loss, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        ...     updates, opt_state = tx.update(
        ...         grads, opt_state, params, input_covariances=sown
        ...     )
        ...     return optax.apply_updates(params, updates), opt_state, loss
        >>> losses = []
        >>> for step in range(50):
        ...     params, opt_state, loss = train_step(params, opt_state, step)
        ...     losses.append(float(loss))
        >>> losses[-1] < 0.1 * losses[0]
        True

    Source: see `scale_by_input_covariance`; momentum and weight decay are those of
    `insgd`.
    """
    check_fraction(covariance_decay=covariance_decay)
    scaling = scale_by_input_covariance(
        covariance_decay,
        damping=damping,
        eps=eps,
        preserve_norm=preserve_norm,
        max_dim=max_dim,
        scope=scope,
        missing=missing,
        input_covariances_like=input_covariances_like,
    )
    return chain_with_momentum(
        learning_rate,
        scaling,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        polyak_factor=polyak_factor,
        polyak_decay=covariance_decay,
        loss_lower_bound=loss_lower_bound,
    )
