"""LSALR: layer-specific rates that rise where a layer's gradient is small."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from insgd_optax import _paths
from insgd_optax._input_power import scaled_by
from insgd_optax._momentum import Mask, add_decayed_weights
from insgd_optax._norms import statistic_dtype
from insgd_optax._numbers import check_not_negative


def _square_sum(gradient: jax.Array) -> jax.Array:
    """||g||_2^2 of one array, in float32 (float64 for float64)."""
    if jnp.issubdtype(gradient.dtype, jnp.complexfloating):
        return jnp.sum(jnp.real(gradient * jnp.conj(gradient)))
    return jnp.sum(jnp.square(gradient.astype(statistic_dtype(gradient.dtype))))


def _factor(square_sum: jax.Array) -> jax.Array:
    """1 + log(1 + 1 / ||g||), finite where ||g|| is zero."""
    # The smallest normal number, not 0: 1 / 0 = inf, and inf * 0 = nan.
    norm = jnp.maximum(jnp.sqrt(square_sum), jnp.finfo(square_sum.dtype).tiny)
    return 1 + jnp.log1p(1 / norm)


def scale_by_lsalr() -> optax.GradientTransformation:
    r"""Scales each layer's gradient up by the logarithm of its inverse norm.

    With g_l all gradients of layer l together,

    .. math::
        g_l \leftarrow (1 + \log(1 + 1 / \|g_l\|_2)) \, g_l

    The factor is never below 1; it is 1.69 at norm 1 and 5.6 at norm 0.01, so that a
    layer with vanishing gradients, or at a saddle point, moves faster. A layer consists
    of the arrays with the same parent in the parameter tree, such as the kernel and
    bias of `Dense_0`. Arrays side by side at the top of a tree are one layer: nest them
    to tell them apart. A layer stacked by `nn.scan` counts as one.

    Returns:
        An `optax.GradientTransformation` without state. Norms are computed in float32
        (float64 for float64 gradients); updates keep the gradients' dtype. A zero
        gradient stays zero. Gradients that `optax.masked` hides are not counted.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import scale_by_lsalr
        >>> tx = scale_by_lsalr()
        >>> grads = {"Dense_0": {"kernel": jnp.array([0.6]), "bias": jnp.array([0.8])}}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> print(updates["Dense_0"]["kernel"] / 0.6)  # 1 + log 2
        [1.6931472]

    Source: Eq. 18, after Singh et al., "Layer-Specific Adaptive Learning Rates for Deep
    Networks" (2015), who give "the entire layer" one rate. Eq. 18 only writes w; that a
    layer's kernel and bias share one norm is this library's interpretation.
    `optax.lars`, by contrast, treats each array as a layer.
    """

    def init_fn(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        grads = _paths.flatten(updates).present
        square_sums: dict[_paths.Path, jax.Array] = {}
        for path, g in grads.items():
            layer = path[:-1]
            square_sums[layer] = square_sums.get(layer, 0) + _square_sum(g)
        factors = {layer: _factor(total) for layer, total in square_sums.items()}
        scaled = [scaled_by(factors[path[:-1]], g) for path, g in grads.items()]
        return _paths.replace(updates, scaled), state

    return optax.GradientTransformation(init_fn, update_fn)


def lsalr(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with layer-specific adaptive rates, the method INSGD takes its log from.

    With g_l the gradient of layer l,

    .. math::
        g_l &\leftarrow (1 + \log(1 + 1 / \|g_l\|_2)) \, g_l + \lambda w_l \\
        b_l &\leftarrow \gamma b_l + g_l \\
        w_l &\leftarrow w_l - \mu b_l

    where mu is `learning_rate`, gamma `momentum` and lambda `weight_decay`.

    Args:
        learning_rate: mu, a number of at least 0 or a schedule.
        momentum: gamma; None for Eq. 18 alone, without a buffer.
        nesterov: Nesterov's momentum instead of the heavy ball.
        weight_decay: added to the scaled gradient, as in `insgd`.
        weight_decay_mask: a tree of bools like the parameters, True where weight decay
            applies, or a function that returns such a tree for given parameters. With
            None, the default, it applies to all of them.

    Returns:
        One `optax.chain` of `scale_by_lsalr`, `optax.add_decayed_weights`,
        `optax.trace` and `optax.scale_by_learning_rate`.

    Raises:
        ValueError: if the learning rate or the weight decay is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from insgd_optax import lsalr
        >>> params = {"layer": {"w": jnp.array([1.0, -2.0])}}
        >>> tx = lsalr(0.1, momentum=0.9)
        >>> state = tx.init(params)
        >>> loss = lambda params: jnp.sum(params["layer"]["w"] ** 2)
        >>> for _ in range(100):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 1e-2)
        True

    Source: Eq. 18. The paper gives neither momentum nor weight decay; their order is
    that of `insgd`, so that comparing the two compares the scaling alone.
    """
    check_not_negative(learning_rate=learning_rate)
    return optax.chain(
        scale_by_lsalr(),
        add_decayed_weights(weight_decay, weight_decay_mask),
        optax.identity()
        if momentum is None
        else optax.trace(decay=momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )
