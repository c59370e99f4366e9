"""Ready-made optimizers: INSGD (Algorithm 1) and NLMS for networks."""

from typing import Any

import optax
from jax.typing import ArrayLike

from insgd_optax._input_power import Normalizer, scale_by_input_power
from insgd_optax._momentum import Mask, add_decayed_weights, dampened_trace
from insgd_optax._numbers import (
    check_fraction,
    check_lower_bound,
    check_not_negative,
    is_number,
)
from insgd_optax._paths import Scope
from insgd_optax._polyak import clip_by_polyak


def insgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    power_decay: ArrayLike = 0.9,
    momentum: ArrayLike | None = 0.9,
    dampening: ArrayLike | None = None,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    normalizer: Normalizer = "log",
    eps: ArrayLike = 0.01,
    scope: Scope = "kernel",
    missing: str = "error",
    input_norms_like: Any = None,
    polyak_factor: ArrayLike | None = None,
    loss_lower_bound: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Input Normalized SGD with momentum and weight decay.

    For a layer with kernel w and input x_t, at step t, with g_t the gradient of w,

    .. math::
        P_t &= \beta P_{t-1} + (1 - \beta) \|x_t\|_p^p, \quad P_1 = \|x_1\|_p^p \\
        g_t &\leftarrow g_t / \max(\log P_t, \epsilon) \\
        g_t &\leftarrow g_t + \lambda w \\
        b_t &= \gamma b_{t-1} + (1 - d) g_t, \quad b_1 = g_1 \\
        w &\leftarrow w - \mu b_t

    where mu is `learning_rate`, beta `power_decay`, epsilon `eps`, lambda
    `weight_decay`, gamma `momentum` and d `dampening`. `insgd` is
    `optax.chain(scale_by_input_power(...), optax.add_decayed_weights(...),
    dampened_trace(...), optax.scale_by_learning_rate(...))`. With `polyak_factor`, it
    is `clip_by_polyak(learning_rate, scale_by_input_power(...), ...)`, which clips the
    total learning rate of a gradient under momentum, mu / (1 - gamma) without
    dampening, to `polyak_factor` times the Polyak step size.

    Args:
        learning_rate: mu, a number of at least 0 or an optax schedule. In the
            batch-normalized networks that were measured, the multiplier 1 / max(log P,
            eps) is about 0.1 to 0.2, so a learning rate five to ten times that of SGD
            gives steps of the same size; without batch normalization, the multiplier
            can be as large as 1 / eps.
        power_decay: beta, in [0, 1): see `scale_by_input_power`.
        momentum: gamma, in [0, 1); None disables momentum.
        dampening: d, in [0, 1]; None, the default, is 0, and
            `dampening=momentum` is Algorithm 1 to the letter.
        nesterov: whether to use Nesterov momentum.
        weight_decay: lambda, at least 0, or a schedule; None is 0. It is added after
            the division, so that decay is not normalized.
        weight_decay_mask: a tree of bools like the parameters, True where weight decay
            applies, or a function that returns such a tree for given parameters. With
            None, the default, it applies to all of them.
        normalizer: see `scale_by_input_power`.
        eps: see `scale_by_input_power`.
        scope: see `scale_by_input_power`.
        missing: see `scale_by_input_power`.
        input_norms_like: see `scale_by_input_power`.
        polyak_factor: c of `clip_by_polyak`, at least 0; 1 is a good first choice.
            None, the default, disables the bound. The bound's running mean has the
            decay `power_decay`.
        loss_lower_bound: L* of `clip_by_polyak`, in the units of the loss; only with
            `polyak_factor`.

    Returns:
        A transformation whose `update` requires the keyword `input_norms`. With
        `polyak_factor`, it also requires the keyword `value`, the loss; with weight
        decay other than None or the number 0, it also requires the parameters.

    Raises:
        ValueError: if a number is out of its range; see also `scale_by_input_power`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from insgd_optax import capture_input_norms, insgd
        >>> model = nn.Dense(1)
        >>> x = jnp.array([[3.0, 4.0], [5.0, 1.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> tx = insgd(learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
        >>> opt_state = tx.init(params)
        >>> def loss_fn(params):
        ...     with capture_input_norms(p=2):
        ...         y, sown = model.apply(
        ...             {"params": params}, x, mutable=["intermediates"]
        ...         )
        ...     return jnp.mean(y**2), sown
        >>> losses = []
        >>> for _ in range(20):
        ...     (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        ...     updates, opt_state = tx.update(
        ...         grads, opt_state, params, input_norms=norms
        ...     )
        ...     params = optax.apply_updates(params, updates)
        ...     losses.append(float(loss))
        >>> losses[-1] < losses[0]
        True

    Source: Algorithm 1. The paper prints (1 - gamma) g in the momentum; the authors'
    released code, and every SGD baseline, do not dampen, nor does the default here.
    """
    check_fraction(power_decay=power_decay)
    scaling = scale_by_input_power(
        power_decay,
        normalizer=normalizer,
        eps=eps,
        scope=scope,
        missing=missing,
        input_norms_like=input_norms_like,
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
        polyak_decay=power_decay,
        loss_lower_bound=loss_lower_bound,
    )


def nlms(
    learning_rate: optax.ScalarOrSchedule = 1.0, *, eps: ArrayLike = 1e-3
) -> optax.GradientTransformationExtraArgs:
    r"""Normalized least mean squares for the kernels of a network.

    For a layer with kernel w and input x, with g the gradient of w,

    .. math::
        w \leftarrow w - \lambda g / (\epsilon + \|x\|_p^p)

    where lambda is `learning_rate` and epsilon `eps`. For one linear neuron with error
    e and loss e^2 / 2, and a batch of one sample, g is -e x, and each step equals that
    of `nlms_filter`. With `learning_rate` 1, p = 2 and an `eps` that is negligible
    beside ||x||_2^2, a step projects w onto the hyperplane of the weights without error
    at this sample. With p = 2, learning rates between 0 and 2
    converge at any scale of the input. With the loss `projection_loss` the same holds
    for the neurons of a non-linear last layer.

    Args:
        learning_rate: lambda, a number of at least 0 or a schedule.
        eps: what is added to the power, > 0, in units of |x|^p.

    Returns:
        One `optax.chain` of `scale_by_input_power(decay=0.0, normalizer="power")`,
        which remembers no power, and `optax.scale_by_learning_rate`. Its `update`
        requires the keyword `input_norms`; p is that of `capture_input_norms`. Biases
        are not normalized and learn as under `optax.sgd`.

    Raises:
        ValueError: if the learning rate is negative; see also `scale_by_input_power`.

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


def chain_with_momentum(
    learning_rate: optax.ScalarOrSchedule,
    scaling: optax.GradientTransformationExtraArgs,
    *,
    momentum: ArrayLike | None,
    dampening: ArrayLike | None,
    nesterov: bool,
    weight_decay: optax.ScalarOrSchedule | None,
    weight_decay_mask: Mask | None,
    polyak_factor: ArrayLike | None,
    polyak_decay: ArrayLike,
    loss_lower_bound: ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    """Chains a scaling, weight decay, momentum and the learning rate.

    With `polyak_factor`, the learning rate is clipped.
    """
    dampening = 0.0 if dampening is None else dampening
    check_fraction(below_one=False, dampening=dampening)
    if momentum is not None:
        check_fraction(momentum=momentum)
    check_lower_bound(loss_lower_bound=loss_lower_bound)
    if polyak_factor is not None:
        check_not_negative(polyak_factor=polyak_factor)
        return clip_by_polyak(
            learning_rate,
            scaling,
            factor=polyak_factor,
            decay=polyak_decay,
            lower_bound=loss_lower_bound,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=weight_decay,
            weight_decay_mask=weight_decay_mask,
        )
    check_not_negative(learning_rate=learning_rate)
    if is_number(loss_lower_bound) and loss_lower_bound != 0:
        raise ValueError(
            f"loss_lower_bound={loss_lower_bound} has no effect without polyak_factor:"
            " give both or neither"
        )
    trace: list[optax.GradientTransformation] = []
    if momentum is not None:
        trace = [dampened_trace(momentum, dampening, nesterov)]
    return optax.chain(
        scaling,
        add_decayed_weights(weight_decay, weight_decay_mask),
        *trace,
        optax.scale_by_learning_rate(learning_rate),
    )
