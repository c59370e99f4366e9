"""LMS and NLMS adaptive filters: a whole signal in one compiled scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from insgd_optax._filter_scan import (
    FilterResult,
    Sample,
    check_scalar,
    check_signals,
    scan_filter,
)
from insgd_optax._norms import check_p


def _power(x: jax.Array, p: float) -> jax.Array:
    """||x||_p^p of one window (its largest magnitude for p = inf)."""
    if p == 2:
        return jnp.sum(jnp.real(x * jnp.conj(x)))
    if p == np.inf:
        return jnp.max(jnp.abs(x))
    return jnp.sum(jnp.abs(x) ** p)


@functools.partial(jax.jit, static_argnames=("p", "weight_history"))
def _run(
    u: jax.Array,
    d: jax.Array,
    weights: jax.Array,
    step_size: ArrayLike,
    eps: ArrayLike,
    p: float | None,
    weight_history: bool,
) -> FilterResult:
    """The scan; `p=None` leaves the step unnormalized (LMS)."""
    real_dtype = jnp.finfo(u.dtype).dtype
    step_size = jnp.asarray(step_size, real_dtype)
    eps = jnp.asarray(eps, real_dtype)

    def update(
        weights: jax.Array, state: None, sample: Sample
    ) -> tuple[jax.Array, None]:
        gain = step_size * sample.error
        if p is not None:
            divisor = eps + _power(sample.x, p)
            gain = gain / jnp.where(divisor == 0, 1, divisor)
        return weights + gain * jnp.conj(sample.x), state

    return scan_filter(u, d, weights, None, update, weight_history=weight_history)


def lms_filter(
    u: ArrayLike,
    d: ArrayLike,
    *,
    num_taps: int,
    step_size: ArrayLike,
    weights: ArrayLike | None = None,
    weight_history: bool = True,
) -> FilterResult:
    """Least mean squares: fits a filter to a signal by stochastic gradient descent.

    With x_t = (u_t, u_{t-1}, ..., u_{t-num_taps+1}) the window of the input `u` at
    sample t, zero before the signal starts, d_t the desired output `d`, w the
    `weights` and lambda the `step_size`,

        e_t = d_t - sum_i w_i x_t,i
        w  <- w + lambda e_t conj(x_t).

    The mean of w converges for 0 < lambda < 2 / lambda_max(R), with R = E[x x^T]; a
    step moves w closer to a noiseless solution for 0 < lambda < 2 / ||x_t||_2^2.
    Neither is enforced: they depend on the signal. A step size beyond them makes the
    weights grow to inf and nan.

    Args:
        u: the input, shape (T,), real or complex.
        d: the desired output, shape (T,).
        num_taps: length of the filter.
        step_size: lambda > 0, in units of 1 / u^2; may be traced.
        weights: first weights, shape (num_taps,), tap 0 for the newest sample; zeros
            by default.
        weight_history: False returns the last weights alone, for signals whose
            T * num_taps weights would not fit: a minute of speech at 16 kHz with 256
            taps already takes 1 GB in float32.

    Returns:
        A `FilterResult` of arrays in the widest dtype among u, d and weights
        (float32 at least):
        weights: (T, num_taps); row t holds the weights after the update with sample
            t, so row -1 is the final filter. (1, num_taps) without `weight_history`.
        outputs: (T,), sum_i w_i x_t,i with the weights before that update.
        errors: (T,), d - outputs.

    Raises:
        ValueError: if u or d is not one-dimensional, they differ in length or are
            empty, `weights` does not have `num_taps` entries, `num_taps` is below 1,
            or `step_size` is not a positive finite number (not looked at when traced).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from insgd_optax import lms_filter
        >>> u = jax.random.normal(jax.random.key(0), (500,))
        >>> d = jnp.convolve(u, jnp.array([1.0, -0.5]))[:500]  # the unknown system
        >>> result = lms_filter(u, d, num_taps=2, step_size=0.1)
        >>> print(result.weights[-1].round(3))
        [ 1.  -0.5]

    Source: Eq. 3-6; lambda takes up the 2 of the gradient of |e|^2. For complex
    signals the paper's d - u w is kept (Sayed's form): the weights converge to the
    system's impulse response itself, where the form with y = w^H x (Haykin's)
    converges to its conjugate.
    """
    check_scalar("step_size", step_size, allow_zero=False)
    u, d, weights = check_signals(u, d, num_taps, weights)
    return _run(u, d, weights, step_size, 0.0, None, weight_history)


def nlms_filter(
    u: ArrayLike,
    d: ArrayLike,
    *,
    num_taps: int,
    step_size: ArrayLike,
    p: float = 2,
    eps: ArrayLike = 1e-3,
    weights: ArrayLike | None = None,
    weight_history: bool = True,
) -> FilterResult:
    """Normalized least mean squares: LMS whose step is divided by the input's power.

    With x_t = (u_t, u_{t-1}, ..., u_{t-num_taps+1}) the window of the input `u` at
    sample t, zero before the signal starts, d_t the desired output `d`, w the
    `weights` and lambda the `step_size`,

        e_t = d_t - sum_i w_i x_t,i
        w  <- w + lambda e_t conj(x_t) / (eps + ||x_t||_p^p).

    For p = 2 and lambda = 1 a step projects w onto the hyperplane of weights without
    error at t, and 0 < lambda < 2 converges whatever the input's scale. For p = 1 the
    step keeps the input's units, and the bound with it: 0 < lambda < 2 ||x_t||_1 /
    ||x_t||_2^2, for which 2 / max |u| is enough. Neither is enforced. An all-zero
    window leaves the weights as they are, for eps = 0 too.

    Args:
        u: the input, shape (T,), real or complex.
        d: the desired output, shape (T,).
        num_taps: length of the filter.
        step_size: lambda > 0, without units for p = 2; may be traced.
        p: the norm, a number >= 1; `jnp.inf` divides by the largest magnitude.
        eps: what is added to the divisor, >= 0, in units of |u|^p; may be traced. A
            signal whose windows have less power than this is hardly learned from.
        weights: first weights, shape (num_taps,), tap 0 for the newest sample; zeros
            by default.
        weight_history: False returns the last weights alone; see `lms_filter`.

    Returns:
        A `FilterResult` of arrays in the widest dtype among u, d and weights
        (float32 at least):
        weights: (T, num_taps); row t holds the weights after the update with sample
            t, so row -1 is the final filter. (1, num_taps) without `weight_history`.
        outputs: (T,), sum_i w_i x_t,i with the weights before that update.
        errors: (T,), d - outputs.

    Raises:
        ValueError: as `lms_filter`, and if `p` is below 1 or `eps` is not a finite
            number >= 0 (not looked at when traced).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from insgd_optax import nlms_filter
        >>> u = 1e3 * jax.random.normal(jax.random.key(0), (2, 500))  # two channels
        >>> d = jnp.stack([u[0], 0.5 * u[1]])
        >>> fit = lambda u, d: nlms_filter(u, d, num_taps=2, step_size=0.5)
        >>> result = jax.vmap(fit)(u, d)
        >>> print(result.weights[:, -1].round(3) + 0.0)
        [[1.  0. ]
         [0.5 0. ]]

    Source: Eq. 7-9 and 20. Eq. 7-9 have no eps; Eq. 20 has, and gives it no value.
    Eq. 9 is called a projection, but with p = 1 and lambda = 1 the error after the
    step is not zero unless ||x||_1 = ||x||_2^2. Complex signals are as in
    `lms_filter`.
    """
    check_p(p)
    check_scalar("step_size", step_size, allow_zero=False)
    check_scalar("eps", eps, allow_zero=True)
    u, d, weights = check_signals(u, d, num_taps, weights)
    return _run(u, d, weights, step_size, eps, p, weight_history)
