"""Affine projection and RLS: filters that converge fast on colored inputs, too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from insgd_optax._adaptive_filter import (
    FilterResult,
    Sample,
    Update,
    check_positive,
    run_filter,
)
from insgd_optax._numbers import check_whole_number


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators multiply float32 matrices in fewer bits unless told otherwise.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _squared_norm(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.real(x * jnp.conj(x)), axis=-1)


def _affine_projection_rule(
    weights: jax.Array, step_size: jax.Array, eps: jax.Array, order: int
) -> tuple[Any, Update]:
    num_taps, dtype = weights.size, weights.dtype
    # A bound on the rounding error of X X^H relative to its trace.
    rounding = (num_taps + order) * jnp.finfo(dtype).eps

    def update(weights: jax.Array, state: Any, sample: Sample) -> Any:
        windows, desired = state
        windows = jnp.concatenate([sample.x[None], windows[:-1]])
        desired = jnp.concatenate([sample.desired[None], desired[:-1]])
        errors = desired - _dot(windows, weights)
        adjoint = jnp.conj(windows.T)
        powers = _squared_norm(windows)
        # Dependent windows (a constant, a sinusoid) would make the factorization fail.
        # Those of silence get a 1, which has no effect: their rows of X are zero.
        regularizer = jnp.maximum(eps, rounding * jnp.sum(powers))
        diagonal = jnp.where(powers == 0, 1, regularizer)
        gram = _dot(windows, adjoint) + jnp.diag(diagonal).astype(dtype)
        factor = jax.scipy.linalg.cho_factor(gram, lower=True)
        direction = _dot(adjoint, jax.scipy.linalg.cho_solve(factor, errors))
        return weights + step_size * direction, (windows, desired)

    before = jnp.zeros((order, num_taps), dtype), jnp.zeros(order, dtype)
    return before, update


def affine_projection_filter(
    u: ArrayLike,
    d: ArrayLike,
    *,
    num_taps: int,
    order: int,
    step_size: ArrayLike,
    eps: ArrayLike = 1e-3,
    weights: ArrayLike | None = None,
    weight_history: bool = True,
) -> FilterResult:
    r"""Affine projection: NLMS on the last few samples at once.

    With x_t = (u_t, u_{t-1}, ..., u_{t-num_taps+1}) the window of the input `u` at
    sample t, X_t the matrix whose rows are the last `order` windows x_t, x_{t-1}, ...,
    d_t the vector of the desired outputs `d` at the same samples, w the `weights` and
    lambda the `step_size`,

    .. math::
        e_t &= d_t - X_t w \\
        w &\leftarrow w + \lambda X_t^H (X_t X_t^H + \epsilon I)^{-1} e_t

    Windows and desired outputs before the signal starts are zero. For lambda = 1 and
    eps = 0, a step projects w onto the weights that have no error at any of the `order`
    samples. 0 < lambda < 2 converges whatever the input's scale, and faster than NLMS
    on a colored input: for an autoregressive input of order q, `order` = q + 1 is
    enough to remove the effect of its color. The price is noise: the larger `order`,
    the larger the final error at the same lambda. With `order` = 1, the filter is
    `nlms_filter`.

    Args:
        u: the input: see `lms_filter`.
        d: the desired output: see `lms_filter`.
        num_taps: length of the filter.
        order: number of samples in a projection, at least 1; usually 2 to 10. A
            sample costs about (order^2 + 3 order) num_taps + order^3 / 6
            multiplications and as many additions.
        step_size: lambda > 0, without units; may be traced.
        eps: what is added to the diagonal of X X^H, >= 0, in units of |u|^2; may be
            traced. Because of rounding, `eps` must be at least (num_taps + order) times
            the dtype's epsilon times the trace of X X^H; a smaller `eps` is replaced by
            this value.
        weights: the initial weights: see `lms_filter`.
        weight_history: whether to return all weights: see `lms_filter`.

    Returns:
        A `FilterResult`, as `lms_filter` does; its errors are the first entries of e_t.

    Raises:
        ValueError: as `lms_filter`, and if `order` is not a whole number of at least 1
            or `eps` is not a finite number >= 0 (not checked when traced).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from insgd_optax import affine_projection_filter
        >>> u = jnp.cumsum(jax.random.normal(jax.random.key(0), (200,)))  # colored
        >>> d = jnp.convolve(u, jnp.array([1.0, -0.5]))[:200]  # the unknown system
        >>> result = affine_projection_filter(u, d, num_taps=2, order=2, step_size=0.5)
        >>> print(result.weights[-1].round(3))
        [ 1.  -0.5]

    Source: K. Ozeki and T. Umeda, "An adaptive filtering algorithm using an orthogonal
    projection to an affine subspace and its properties", 1984; A. H. Sayed, Adaptive
    Filters, 2008, ch. 13. Complex signals are as in `lms_filter`.
    """
    check_positive("step_size", step_size, allow_zero=False)
    check_positive("eps", eps, allow_zero=True)
    order = check_whole_number(
        "order", order, least=1, hint=": a projection takes at least one sample"
    )
    numbers = (step_size, eps)
    rule = _affine_projection_rule
    return run_filter(
        rule, u, d, num_taps, weights, weight_history, numbers, static=(order,)
    )


def _rls_rule(
    weights: jax.Array, forgetting: jax.Array, delta: jax.Array
) -> tuple[jax.Array, Update]:
    num_taps, epsilon = weights.size, jnp.finfo(weights.dtype).eps

    # The state is a square root of P, P = root root^H: P then stays Hermitian and
    # positive whatever the rounding, and an ill-conditioned P takes half the digits.
    def absorb(root: jax.Array, projected: jax.Array, memory: ArrayLike) -> Any:
        """The next root, before it is divided by sqrt(memory), and the gain k."""
        unscaled = _dot(root, projected)  # P x*, with projected = root^H x*
        divisor = memory + _squared_norm(projected)
        shrink = unscaled / (divisor + jnp.sqrt(memory * divisor))
        return root - jnp.outer(shrink, jnp.conj(projected)), unscaled / divisor

    def update(weights: jax.Array, root: jax.Array, sample: Sample) -> Any:
        # Two guards keep P from growing as forgetting^-t, until it overflows, where u
        # is silent or narrow-band. The first covers a memory shorter than the filter,
        # for which the guard of each tap in turn acts too rarely.
        power = delta + _squared_norm(sample.x)
        too_large = jnp.sum(_squared_norm(root)) * power > num_taps / epsilon
        memory = jnp.where(too_large, 1, forgetting)
        projected = jnp.conj(_dot(sample.x, root))
        root, gain = absorb(root, projected, memory)
        root = root / jnp.sqrt(memory)
        tap = root[sample.t % num_taps]
        root, _ = absorb(root, jnp.sqrt(epsilon * power) * jnp.conj(tap), 1.0)
        return weights + gain * sample.error, root

    return jnp.eye(num_taps, dtype=weights.dtype) / jnp.sqrt(delta), update


def rls_filter(
    u: ArrayLike,
    d: ArrayLike,
    *,
    num_taps: int,
    forgetting: ArrayLike = 0.99,
    delta: ArrayLike = 0.01,
    weights: ArrayLike | None = None,
    weight_history: bool = True,
) -> FilterResult:
    r"""Recursive least squares: the weights that best fit all samples so far.

    With x_t = (u_t, u_{t-1}, ..., u_{t-num_taps+1}) the window of the input `u` at
    sample t, zero before the signal starts, d_t the desired output `d`, w the
    `weights`, beta `forgetting`, delta `delta`, x_t^* the complex conjugate of x_t and
    P = I / delta before the first sample,

    .. math::
        e_t &= d_t - x_t^T w \\
        k &= P x_t^* / (\beta + x_t^T P x_t^*) \\
        w &\leftarrow w + k e_t \\
        P &\leftarrow (P - k x_t^T P) / \beta

    After sample t, w minimizes the exponentially weighted squared error, with w_0 the
    first weights:

    .. math::
        \sum_{i \le t} \beta^{t-i} |d_i - x_i^T w|^2
        + \beta^{t+1} \delta \|w - w_0\|^2

    P^-1 is the input's covariance, times the number of samples remembered. So the
    rate of convergence depends neither on the input's level nor on its color.

    Args:
        u: the input: see `lms_filter`.
        d: the desired output: see `lms_filter`.
        num_taps: length of the filter. A sample costs about 13 num_taps^2
            floating-point operations for a real signal.
        forgetting: beta, 0 < beta <= 1; may be traced. The filter remembers about
            1 / (1 - beta) samples, which should be several times `num_taps`. With 1 it
            never forgets and does not follow a system that changes.
        delta: how strongly the initial `weights` count, > 0, in units of |u|^2; may be
            traced. With a small `delta`, the first samples count more than `weights`.
        weights: the initial weights: see `lms_filter`.
        weight_history: whether to return all weights: see `lms_filter`.

    Returns:
        A `FilterResult`, as `lms_filter` does.

    Raises:
        ValueError: as `lms_filter`, except for `step_size`, which this filter does not
            have, and if `forgetting` is not in (0, 1] or `delta` is not a positive
            finite number (neither is checked when traced).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from insgd_optax import rls_filter
        >>> u = jnp.cumsum(jax.random.normal(jax.random.key(0), (50,)))  # colored
        >>> d = jnp.convolve(u, jnp.array([1.0, -0.5]))[:50]  # the unknown system
        >>> print(rls_filter(u, d, num_taps=2).weights[-1].round(3))
        [ 1.  -0.5]

    Numerics: the filter keeps a square root S of P = S S^H (Potter's form), so that P
    is Hermitian and positive whatever the rounding; the recursion above, in float32,
    ends in nan on some inputs. Where the input brings no information (silence, a
    sinusoid), P grows as beta^-t. To bound it, each update adds machine epsilon times
    (delta + ||x_t||^2) to one diagonal entry of P^-1, that of each tap in turn, and the
    filter pauses forgetting while tr(P) (delta + ||x_t||^2) exceeds num_taps / epsilon.
    Both changes stay within the rounding error of the recursion. They also mean that
    float32 hardly learns from amplitudes below sqrt(1e-7 delta). After a silence much
    longer than 1 / (1 - beta) samples P is large all the same, and the first samples
    move the weights far.

    Source: S. Haykin, Adaptive Filter Theory, 4th ed., 2002, ch. 9; A. H. Sayed,
    Adaptive Filters, 2008, ch. 30; for the square root, G. J. Bierman, Factorization
    Methods for Discrete Sequential Estimation, 1977, ch. II. Complex signals are as in
    `lms_filter`.
    """
    check_positive("forgetting", forgetting, allow_zero=False)
    if not isinstance(forgetting, jax.core.Tracer) and np.real(forgetting) > 1:
        raise ValueError(
            f"forgetting={forgetting!r}: give a number in (0, 1]; 1 never forgets"
        )
    check_positive("delta", delta, allow_zero=False)
    numbers = (forgetting, delta)
    return run_filter(_rls_rule, u, d, num_taps, weights, weight_history, numbers)
