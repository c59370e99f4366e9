"""The last-layer rule: projecting a non-linear neuron onto its target."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def _as_targets(targets: ArrayLike) -> jax.Array:
    """Real floating-point targets; integers (labels) become the default float."""
    d = jnp.asarray(targets)
    if jnp.issubdtype(d.dtype, jnp.complexfloating):
        raise ValueError(f"targets are {d.dtype}: an activation's inverse is real")
    return d if jnp.issubdtype(d.dtype, jnp.floating) else d.astype(float)


def _check_margin(margin: Any, below: float) -> None:
    if not isinstance(margin, jax.core.Tracer) and not 0 < margin < below:
        raise ValueError(
            f"margin={margin!r}: give a number between 0 and {below}; the inverse is"
            " infinite at the ends of the activation's range"
        )


def _range_margin(margin: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    """The margin, but at least large enough that 1 - margin does not round to 1."""
    return jnp.maximum(jnp.asarray(margin, dtype), jnp.finfo(dtype).epsneg)


def _check_slope(negative_slope: Any) -> None:
    traced = isinstance(negative_slope, jax.core.Tracer)
    if not traced and not (negative_slope > 0 and np.isfinite(negative_slope)):
        raise ValueError(
            f"negative_slope={negative_slope!r}: give a positive finite number; for a"
            " slope of zero take inverse_relu"
        )


def inverse_sigmoid(targets: ArrayLike, *, margin: ArrayLike = 0.01) -> jax.Array:
    r"""The inverse of the sigmoid, with targets kept inside its range.

    With d the `targets` and m the `margin`,

    .. math::
        \phi(d) = \log \frac{c}{1 - c}, \quad c = \min(\max(d, m), 1 - m)

    Args:
        targets: any shape, meant to be in [0, 1], such as 0-1 labels.
        margin: m, between 0 and 0.5. The sigmoid reaches 0 and 1 only at infinity; with
            the default 0.01, such targets, and targets outside [0, 1], map to -4.6 or
            4.6. A margin smaller than the spacing of the dtype just below 1 (6e-8 in
            float32, 0.004 in bfloat16) is replaced by this spacing.

    Returns:
        The pre-activations, in the targets' shape and dtype; integer targets give
        JAX's default float dtype.

    Raises:
        ValueError: if `margin` is not between 0 and 0.5, or the targets are complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import inverse_sigmoid
        >>> print(inverse_sigmoid(jnp.array([0.0, 0.5, 1.0, 7.0])).round(2))
        [-4.6  0.   4.6  4.6]

    Source: Eq. 23. The paper does not say what to do at or beyond the ends of the
    range; the margin is this library's.
    """
    _check_margin(margin, 0.5)
    d = _as_targets(targets)
    m = _range_margin(margin, d.dtype)
    d = jnp.clip(d, m, 1 - m)
    return jnp.log(d) - jnp.log1p(-d)


def inverse_tanh(targets: ArrayLike, *, margin: ArrayLike = 0.01) -> jax.Array:
    r"""The inverse of tanh, with targets kept inside its range.

    With d the `targets` and m the `margin`,

    .. math::
        \phi(d) = \operatorname{artanh}(\min(\max(d, m - 1), 1 - m))

    Args:
        targets: any shape, meant to be in [-1, 1].
        margin: m, between 0 and 1; the default 0.01 maps a target of -1 or 1, and
            any beyond, to -2.65 or 2.65. As in `inverse_sigmoid`, a margin smaller than
            the spacing of the dtype just below 1 is replaced by this spacing.

    Returns:
        The pre-activations, in the targets' shape and dtype; integer targets give
        JAX's default float dtype.

    Raises:
        ValueError: if `margin` is not between 0 and 1, or the targets are complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import inverse_tanh
        >>> print((100 * inverse_tanh(jnp.array([-1.0, 0.0, 1.0]))).round())
        [-265.    0.  265.]

    Source: Eq. 23; the margin is this library's, as for `inverse_sigmoid`.
    """
    _check_margin(margin, 1)
    d = _as_targets(targets)
    m = _range_margin(margin, d.dtype)
    return jnp.arctanh(jnp.clip(d, m - 1, 1 - m))


def inverse_leaky_relu(
    targets: ArrayLike, *, negative_slope: ArrayLike = 0.01
) -> jax.Array:
    r"""The inverse of the leaky ReLU; every target is in its range.

    With d the `targets` and a the `negative_slope`,

    .. math::
        \phi(d) = \begin{cases} d & d \ge 0 \\ d / a & d < 0 \end{cases}

    Args:
        targets: any shape.
        negative_slope: a > 0, as given to `flax.linen.leaky_relu`. A small one sends
            a negative target far away: -1 to -100 for the default.

    Returns:
        The pre-activations, in the targets' shape and dtype; integer targets give
        JAX's default float dtype.

    Raises:
        ValueError: if `negative_slope` is not a positive finite number, or the
            targets are complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import inverse_leaky_relu
        >>> print(inverse_leaky_relu(jnp.array([-1.0, 2.0]), negative_slope=0.1))
        [-10.   2.]

    Source: Eq. 23.
    """
    _check_slope(negative_slope)
    d = _as_targets(targets)
    return jnp.where(d >= 0, d, d / jnp.asarray(negative_slope, d.dtype))


def inverse_relu(targets: ArrayLike) -> jax.Array:
    """A substitute for the inverse of the ReLU: negative targets are set to zero.

    With d the `targets`, phi(d) = max(d, 0).

    Args:
        targets: any shape; negative ones, which no ReLU reaches, count as 0.

    Returns:
        The pre-activations, in the targets' shape and dtype; integer targets give
        JAX's default float dtype.

    Raises:
        ValueError: if the targets are complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import inverse_relu
        >>> print(inverse_relu(jnp.array([-1.0, 0.0, 2.0])))
        [0. 0. 2.]

    Source: the text below Eq. 23. The ReLU is not invertible: every pre-activation <= 0
    gives 0. For the target 0, the paper picks the pre-activation 0, so a neuron that is
    correctly inactive is still pulled to 0.
    """
    return jnp.maximum(_as_targets(targets), 0)


def projection_loss(
    preactivations: ArrayLike,
    targets: ArrayLike,
    inverse_activation: Callable[[ArrayLike], jax.Array] | None = None,
) -> jax.Array:
    r"""The loss whose NLMS step projects a layer's neurons onto their targets.

    With z_i = w_i . x the `preactivations`, d_i the `targets` and phi the
    `inverse_activation`,

    .. math::
        L = \frac{1}{2} \sum_i (\phi(d_i) - z_i)^2, \qquad
        \frac{\partial L}{\partial w_i} = -(\phi(d_i) - z_i) \, x

    so that with one sample `nlms(1.0, eps=eps)` makes the step

    .. math::
        w_i \leftarrow w_i + \frac{(\phi(d_i) - w_i \cdot x) \, x}{\epsilon + \|x\|_2^2}

    after which psi(w_i . x) = d_i, with psi the activation and an `eps` that is
    negligible beside ||x||_2^2: the new weights are the nearest ones that meet the
    target. The activation itself is never
    differentiated, so a saturated neuron learns as fast as any other.

    Args:
        preactivations: (..., neurons), the layer's output before its activation.
        targets: the same shape, what the activations should be; no gradient flows
            into them.
        inverse_activation: phi, such as `inverse_sigmoid`; None for linear neurons.

    Returns:
        The loss of each sample, shape (...). Take the mean over a batch. The NLMS step
        is then the mean of error times x over the samples, divided by the mean of their
        powers, which is not a projection.

    Raises:
        ValueError: if the shapes differ or there is no axis of neurons.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from insgd_optax import inverse_tanh, projection_loss
        >>> w, x, d = jnp.array([[2.0], [1.0]]), jnp.array([3.0, 4.0]), jnp.array([0.5])
        >>> g = jax.grad(lambda w: projection_loss(x @ w, d, inverse_tanh))(w)
        >>> print(jnp.tanh(x @ (w - g / 25)).round(3))  # 25 = ||x||^2
        [0.5]

    Source: Eq. 21-24 (Eq. 19-20 for linear neurons). The paper states the step. This
    step is the NLMS step for a loss that is the squared distance before the activation.
    """
    z, d = jnp.asarray(preactivations), jnp.asarray(targets)
    if z.shape != d.shape or z.ndim == 0:
        raise ValueError(
            f"preactivations {z.shape} and targets {d.shape}: give two arrays of one"
            " shape (..., neurons)"
        )
    wanted = d if inverse_activation is None else inverse_activation(d)
    error = jax.lax.stop_gradient(wanted) - z
    return 0.5 * jnp.sum(jnp.square(error), axis=-1)
