"""Adaptive filters: a whole signal in one compiled scan, and the LMS and NLMS rules."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from insgd_optax._norms import check_p
from insgd_optax._numbers import check_whole_number

# Loop unrolling. On a CPU, unrolling by 4 makes NLMS a third faster at 256 taps but six
# times slower at 16.
_UNROLL, _UNROLL_ABOVE_TAPS = 4, 64


class FilterResult(NamedTuple):
    """The result of an adaptive filter over the T samples of a signal.

    Attributes:
        weights: shape (T, num_taps): row t holds the weights *after* sample t. With
            `weight_history=False`, shape (1, num_taps): the last ones.
        outputs: shape (T,): the output of the filter at t, with the weights *before* t.
        errors: shape (T,): the desired output minus `outputs`.
    """

    weights: jax.Array
    outputs: jax.Array
    errors: jax.Array


def check_positive(name: str, value: Any, *, allow_zero: bool) -> None:
    """Raises unless a value is a positive finite scalar, or 0 with `allow_zero`."""
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be one number, not an array of shape {np.shape(value)}; for"
            f" several values at once, jax.vmap the filter over {name}"
        )
    if isinstance(value, jax.core.Tracer):
        return  # inside jit or vmap: the value is not concrete
    in_range = not np.iscomplexobj(value) and (value > 0 or allow_zero and value == 0)
    if not (in_range and np.isfinite(value)):
        kind = "a finite number >= 0" if allow_zero else "a positive finite number"
        raise ValueError(f"{name}={value!r}: give {kind}")


def check_signals(
    u: Any, d: Any, num_taps: Any, weights: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`u`, `d` and the first weights as arrays of one dtype, or a `ValueError`."""
    u, d = jnp.asarray(u), jnp.asarray(d)
    for name, signal in (("u", u), ("d", d)):
        if signal.ndim != 1:
            raise ValueError(
                f"{name} must be one signal of shape (T,), not {signal.shape}; for"
                " several channels, jax.vmap the filter over the channel axis"
            )
    if u.shape != d.shape:
        raise ValueError(
            f"u and d are sampled together, but u has {u.size} samples and d {d.size}"
        )
    if u.size == 0:
        raise ValueError("u and d are empty: give at least one sample")
    num_taps = check_whole_number(
        "num_taps", num_taps, least=1, hint=": a filter has at least one tap"
    )
    weights = jnp.zeros(num_taps, u.dtype) if weights is None else jnp.asarray(weights)
    dtype = jnp.result_type(u, d, weights)
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)  # the default: float64 where that is enabled
    if jnp.finfo(dtype).bits < 32:
        dtype = jnp.dtype("float32")  # half precision is too coarse for a running sum
    if weights.shape != (num_taps,):
        raise ValueError(
            f"weights has shape {weights.shape}, but num_taps={num_taps} asks for"
            f" ({num_taps},)"
        )
    return u.astype(dtype), d.astype(dtype), weights.astype(dtype)


class Sample(NamedTuple):
    """The inputs of an update that belong to one sample."""

    t: jax.Array  # (), its number, from 0
    x: jax.Array  # (num_taps,), the window, newest entry first
    desired: jax.Array  # (), d
    error: jax.Array  # (), d minus the output of the weights before the update


# A rule maps the initial weights, a filter's numbers and its static settings to its
# initial state and an update. An update maps (weights, state, sample) to the next
# weights and state.
Update = Callable[[jax.Array, Any, Sample], tuple[jax.Array, Any]]
Rule = Callable[..., tuple[Any, Update]]


def run_filter(
    rule: Rule,
    u: ArrayLike,
    d: ArrayLike,
    num_taps: int,
    weights: ArrayLike | None,
    weight_history: bool,
    numbers: Sequence[ArrayLike],
    static: tuple[Hashable, ...] = (),
) -> FilterResult:
    """Checks and filters the signals, in one compiled scan per rule and shape."""
    u, d, weights = check_signals(u, d, num_taps, weights)
    return _run(rule, static, weight_history, u, d, weights, tuple(numbers))


@functools.partial(jax.jit, static_argnames=("rule", "static", "weight_history"))
def _run(
    rule: Rule,
    static: tuple[Hashable, ...],
    weight_history: bool,
    u: jax.Array,
    d: jax.Array,
    weights: jax.Array,
    numbers: tuple[ArrayLike, ...],
) -> FilterResult:
    real_dtype = jnp.finfo(u.dtype).dtype
    state, update = rule(
        weights, *(jnp.asarray(number, real_dtype) for number in numbers), *static
    )
    num_samples, num_taps = u.size, weights.size
    # Newest sample first, so that a window is one contiguous slice; the zeros are
    # the signal before it starts.
    reverse = jnp.flip(jnp.concatenate([jnp.zeros(num_taps - 1, u.dtype), u]))

    def step(carry: tuple[jax.Array, Any], t_and_d: tuple[jax.Array, jax.Array]) -> Any:
        weights, state = carry
        t, d_t = t_and_d
        x = jax.lax.dynamic_slice(reverse, (num_samples - 1 - t,), (num_taps,))
        output = jnp.sum(x * weights)
        error = d_t - output
        weights, state = update(weights, state, Sample(t, x, d_t, error))
        row = weights if weight_history else None
        return (weights, state), (row, output, error)

    unroll = _UNROLL if num_taps > _UNROLL_ABOVE_TAPS else 1
    (last, _), (history, outputs, errors) = jax.lax.scan(
        step, (weights, state), (jnp.arange(num_samples), d), unroll=unroll
    )
    return FilterResult(history if weight_history else last[None], outputs, errors)


def _power(x: jax.Array, p: float) -> jax.Array:
    """||x||_p^p of one window (its largest magnitude for p = inf)."""
    if p == 2:
        return jnp.sum(jnp.real(x * jnp.conj(x)))
    if p == np.inf:
        return jnp.max(jnp.abs(x))
    return jnp.sum(jnp.abs(x) ** p)


def _lms_rule(
    weights: jax.Array, step_size: jax.Array, eps: jax.Array, p: float | None
) -> tuple[None, Update]:
    """`p=None` leaves the step unnormalized (LMS)."""
    del weights

    def update(
        weights: jax.Array, state: None, sample: Sample
    ) -> tuple[jax.Array, None]:
        gain = step_size * sample.error
        if p is not None:
            divisor = eps + _power(sample.x, p)
            gain = gain / jnp.where(divisor == 0, 1, divisor)
        return weights + gain * jnp.conj(sample.x), state

    return None, update


def lms_filter(
    u: ArrayLike,
    d: ArrayLike,
    *,
    num_taps: int,
    step_size: ArrayLike,
    weights: ArrayLike | None = None,
    weight_history: bool = True,
) -> FilterResult:
    r"""Least mean squares: fits a filter to a signal by stochastic gradient descent.

    With x_t = (u_t, u_{t-1}, ..., u_{t-num_taps+1}) the window of the input `u` at
    sample t, zero before the signal starts, x_t^* its complex conjugate, d_t the
    desired output `d`, w the `weights` and lambda the `step_size`,

    .. math::
        e_t &= d_t - x_t^T w \\
        w &\leftarrow w + \lambda e_t x_t^*

    The mean of w converges for 0 < lambda < 2 / r, where r is the largest eigenvalue of
    R = E[x^* x^T]; a step moves w closer to a noiseless solution for
    0 < lambda < 2 / ||x_t||_2^2.
    Neither bound is enforced, because both depend on the signal. Beyond them, the
    weights can diverge to inf and nan.

    Args:
        u: the input, shape (T,), real or complex.
        d: the desired output, shape (T,).
        num_taps: length of the filter.
        step_size: lambda > 0, in units of 1 / u^2; may be traced.
        weights: initial weights, shape (num_taps,), tap 0 for the newest sample; zeros
            by default.
        weight_history: False returns the last weights alone, for signals whose
            T * num_taps weights would not fit: a minute of speech at 16 kHz with 256
            taps already takes 1 GB in float32.

    Returns:
        A `FilterResult` of arrays in the widest dtype among u, d and weights
        (float32 at least):

        - `weights`: (T, num_taps); row t holds the weights after the update with sample
          t, so row -1 is the final filter. (1, num_taps) without `weight_history`.
        - `outputs`: (T,), x_t^T w with the weights before that update.
        - `errors`: (T,), d - outputs.

    Raises:
        ValueError: if u or d is not one-dimensional, they differ in length or are
            empty, `weights` does not have `num_taps` entries, `num_taps` is below 1,
            or `step_size` is not a positive finite number (not checked when traced).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from insgd_optax import lms_filter
        >>> u = jax.random.normal(jax.random.key(0), (500,))
        >>> d = jnp.convolve(u, jnp.array([1.0, -0.5]))[:500]  # the unknown system
        >>> result = lms_filter(u, d, num_taps=2, step_size=0.1)
        >>> print(result.weights[-1].round(3))
        [ 1.  -0.5]

    Source: Eq. 3-6; lambda absorbs the factor 2 of the gradient of |e|^2. For complex
    signals, the output is x^T w as in the paper (Sayed's form), so the weights converge
    to the system's impulse response. With the output w^H x (Haykin's form), they would
    converge to its conjugate.
    """
    check_positive("step_size", step_size, allow_zero=False)
    numbers = (step_size, 0.0)
    return run_filter(
        _lms_rule, u, d, num_taps, weights, weight_history, numbers, static=(None,)
    )


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
    r"""Normalized least mean squares: LMS whose step is divided by the input's power.

    With x_t the window of the input `u` at sample t, d_t the desired output `d`, w the
    `weights`, lambda the `step_size` and epsilon `eps`, as in `lms_filter`,

    .. math::
        e_t &= d_t - x_t^T w \\
        w &\leftarrow w + \lambda e_t x_t^* / (\epsilon + \|x_t\|_p^p)

    For p = 2, 0 < lambda < 2 converges whatever the input's scale; with lambda = 1 and
    eps = 0, a step projects w onto the hyperplane of weights without error at t. For
    p = 1, the bound on lambda depends on the input's scale: 0 < lambda < 2 ||x_t||_1 /
    ||x_t||_2^2, for which lambda < 2 / max |u| is sufficient. Neither is enforced. An
    all-zero window leaves the weights as they are, for eps = 0 too.

    Args:
        u: the input: see `lms_filter`.
        d: the desired output: see `lms_filter`.
        num_taps: length of the filter.
        step_size: lambda > 0, without units for p = 2; may be traced.
        p: the norm, a number >= 1; `jnp.inf` divides by the largest magnitude.
        eps: what is added to the divisor, >= 0, in units of |u|^p; may be traced. The
            filter hardly learns from windows whose power is far below `eps`.
        weights: the initial weights: see `lms_filter`.
        weight_history: whether to return all weights: see `lms_filter`.

    Returns:
        A `FilterResult`, as `lms_filter` does.

    Raises:
        ValueError: as `lms_filter`, and if `p` is below 1 or `eps` is not a finite
            number >= 0 (not checked when traced).

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

    Source: Eq. 7-9 and 20. Eq. 7-9 have no eps; Eq. 20 has one, without a value. The
    paper derives Eq. 9 as a projection with a distance other than the Euclidean one,
    but with p = 1 and lambda = 1 the error after the step is not zero unless
    ||x||_1 = ||x||_2^2. Complex signals are as in `lms_filter`.
    """
    check_p(p)
    check_positive("step_size", step_size, allow_zero=False)
    check_positive("eps", eps, allow_zero=True)
    numbers = (step_size, eps)
    return run_filter(
        _lms_rule, u, d, num_taps, weights, weight_history, numbers, static=(p,)
    )
