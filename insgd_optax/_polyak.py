"""SGD with its learning rate bounded by the Polyak step size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from insgd_optax._explicit_axes import replicated_like
from insgd_optax._input_power import next_power, scaled_by
from insgd_optax._momentum import Mask, add_decayed_weights, dampened_trace
from insgd_optax._norms import statistic_dtype
from insgd_optax._numbers import check_fraction, check_lower_bound, check_not_negative
from insgd_optax._paths import states_of


class ClipByPolyakState(NamedTuple):
    """State of the bound of `clip_by_polyak`.

    The floating-point numbers have shape () and JAX's default dtype: float32, unless
    `jax_enable_x64` is set.

    Attributes:
        count: the number of updates: shape (), int32.
        peak: the largest learning rate so far.
        slope: the running mean of <g, D g>; 0 before the first.
        scale: the factor on the last update, in [0, 1].
        scaling: the state of the transformation given as `scaling`.
        weight_decay: the state of the weight decay, with the step count of its
            schedule.
    """

    # `count` shadows `tuple.count`, hence the ignore.
    count: jax.Array  # type: ignore[assignment]
    peak: jax.Array
    slope: jax.Array
    scale: jax.Array
    scaling: optax.OptState
    weight_decay: optax.OptState


# The largest ratio of a slope to its running mean that enters the mean in full: 100 is
# a gradient ten times the usual.
_MOST_GROWTH = 100.0

_NO_VALUE = (
    "value is missing: call tx.update(grads, opt_state, params, value=loss), where loss"
    " is the mean loss whose gradients are passed (with insgd, also give"
    " input_norms=norms). flax's TrainState does not forward it: use"
    " insgd_optax.TrainState"
)


def clip_by_polyak(
    learning_rate: optax.ScalarOrSchedule,
    scaling: optax.GradientTransformation | None = None,
    *,
    factor: ArrayLike = 1.0,
    decay: ArrayLike = 0.9,
    lower_bound: ArrayLike = 0.0,
    momentum: ArrayLike | None = None,
    dampening: ArrayLike | None = None,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with its learning rate clipped to a multiple of the Polyak step size.

    Let g_t be the gradient, L_t its loss, and D_t g_t what `scaling` makes of the
    gradient. For a step of size a along this direction, the linear model of the loss is
    L_t - a q_t, with the slope q_t = <g_t, D_t g_t>. It reaches the lower bound L* at
    the Polyak step size, a = (L_t - L*) / q_t. The learning rate is clipped to c / k
    times this step size, where k is the factor by which momentum lengthens a step:

    .. math::
        Q_t &= \beta Q_{t-1} + (1 - \beta) \min(q_t, 100 \, Q_{t-1}),
            \quad Q_1 = q_1 \\
        a_t &= \frac{c}{k} \frac{\max(L_t - L^*, 0)}{\max(q_t, Q_t)} \\
        m_t &= \max_{s \le t} \mu_s \\
        u_t &= \mu_t \min(1, a_t / m_t) \, (D_t g_t + \lambda w) \\
        b_t &= \gamma b_{t-1} + (1 - d) u_t, \quad b_1 = u_1 \\
        w &\leftarrow w - b_t

    where mu is `learning_rate`, c `factor`, beta `decay`, lambda `weight_decay`, gamma
    `momentum` and d `dampening`. `insgd(1.0, polyak_factor=1.0)` is
    `clip_by_polyak(1.0, scale_by_input_power(), momentum=0.9)`.

    Running mean. A small gradient on one mini-batch does not justify a step that is
    longer by the same ratio, so the slope counts as at least its running mean, which
    is updated like P (Eq. 26). A steep slope counts at once and in full, but enters the
    mean as at most 100 times the mean, so that one exploding gradient does not stall
    training: at a decay of 0.9 it makes the mean 11 times the usual slope; the excess
    halves every 7 steps and is below 10% of the usual slope after 44. If the first
    slope is more than 100 times the second, the mean restarts at the second.

    Momentum. A gradient enters the buffer once and moves the weights over all steps
    that follow. The bound holds for the sum of these moves, which is k times u_t:
    k = 1 + gamma + gamma^2 + ... = 1 / (1 - gamma), with or without Nesterov momentum.
    With dampening, k = (1 - d) / (1 - gamma); with dampening and Nesterov momentum,
    k = (1 - gamma d) / (1 - gamma). The first gradient is not dampened. The learning
    rate is applied before the momentum, so that later changes of the learning rate do
    not change the moves of earlier gradients: otherwise a gradient from the start of a
    warm-up would be applied at the peak learning rate.

    Schedule. The bound applies to the largest learning rate so far, m_t: the step is
    (mu_t / m_t) min(m_t, a_t). A decaying schedule therefore also shortens the steps
    where the bound is active. During a warm-up, where m_t = mu_t, the step is
    min(mu_t, a_t): a small learning rate does not lower the bound.

    Weight decay. Because the learning rate is clipped, weight decay is scaled with it.
    Weight decay added after the bound would grow with the learning rate alone. At a
    large learning rate, it would shrink the weights faster than gradients can move
    them.

    Args:
        learning_rate: mu, a number of at least 0 or a schedule.
        scaling: the transformation from g to D g, such as `scale_by_input_power(...)`;
            None is the identity, which bounds SGD. The slope needs the gradient before
            and after it, so it is an argument and not an earlier link of a chain.
        factor: c, at least 0. 1, the default, is the Polyak step size. No value is
            best for every network: see docs/robustness.md. On a quadratic loss, the
            Polyak step goes only half of the way to the minimum: for one linear neuron
            with the loss e^2 / 2, `normalizer="power"` and decay 0, a factor of 2 is
            NLMS. A factor of infinity disables the bound.
        decay: beta, in [0, 1). 0 uses each slope unmodified.
        lower_bound: L*, a lower bound on the loss, in its units. If `MultiSteps` sums
            gradients, it is a lower bound on the summed loss.
        momentum: gamma, in [0, 1); None disables momentum.
        dampening: d, in [0, 1]; None is 0. See `dampened_trace`.
        nesterov: whether to use Nesterov momentum.
        weight_decay: lambda, at least 0, or a schedule; None is 0.
        weight_decay_mask: a tree of bools like the parameters, True where weight decay
            applies, or a function that returns such a tree for given parameters. With
            None, the default, it applies to all of them.

    Returns:
        An optimizer whose `update` requires the keyword `value`, the loss whose
        gradients are passed, a scalar, averaged over devices like the gradients. All
        keywords are passed on to `scaling`. The state holds a `ClipByPolyakState`,
        whose `scale` is min(1, a_t / m_t); see `polyak_scale`. Nothing is added to the
        momentum if the loss is at most `lower_bound`. The same holds if the loss, an
        entry of the gradient or the slope is inf or nan, as after an overflow in
        float16: the bound is then unknown, and the slope's running mean does not
        change. `scaling` is given zeros instead of a
        gradient whose loss or entries are inf or nan: Adam's moments decay, for
        example. Where gradient and mean slope are both 0, or `factor` is infinite, the
        scale is 1 and weight decay is applied in full.

    Raises:
        ValueError: on construction, if a number is out of its range; from `update`,
            when it is traced, if value is missing or not a scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from insgd_optax import clip_by_polyak
        >>> tx = clip_by_polyak(100.0, factor=1.0)
        >>> w = jnp.array([3.0, 4.0])
        >>> loss, grad = jax.value_and_grad(lambda w: jnp.sum(jnp.abs(w)))(w)
        >>> updates, state = tx.update(grad, tx.init(w), w, value=loss)
        >>> print(updates)  # 7 / 2 times the gradient, for any larger learning rate
        [-3.5 -3.5]

    Under `optax.masked` or `optax.partition` the scalar product is over the weights
    that this optimizer sees. With several groups, each with its own bound, the total
    step may exceed the bound by a factor of up to the number of groups.

    Source: this library. The Polyak step size capped by a maximum learning rate is
    SPS_max of Loizou et al. (2021, arXiv:2002.10542). In the metric of Eq. 25, for one
    linear neuron with loss e^2 / 2, it clips the learning rate of NLMS (Eq. 7-9) to
    c / 2: with c at most 2, a step never changes the output by more than the current
    error.
    """
    check_not_negative(learning_rate=learning_rate)
    dampening = 0.0 if dampening is None else dampening
    check_fraction(below_one=False, dampening=dampening)
    trace: list[optax.GradientTransformation] = []
    if momentum is None:
        momentum, dampening = 0.0, 0.0
    else:
        check_fraction(momentum=momentum)
        trace = [dampened_trace(momentum, dampening, nesterov)]
    scale = _scale_by_polyak(
        learning_rate,
        scaling or optax.identity(),
        add_decayed_weights(weight_decay, weight_decay_mask),
        factor=factor,
        decay=decay,
        lower_bound=lower_bound,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
    )
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate), *trace)


def _scale_by_polyak(
    learning_rate: optax.ScalarOrSchedule,
    scaling: optax.GradientTransformation,
    decayed: optax.GradientTransformation,
    *,
    factor: ArrayLike,
    decay: ArrayLike,
    lower_bound: ArrayLike,
    momentum: ArrayLike,
    dampening: ArrayLike,
    nesterov: bool,
) -> optax.GradientTransformationExtraArgs:
    """Maps g_t to min(1, a_t / m_t) (D_t g_t + lambda w)."""
    check_not_negative(factor=factor)
    check_fraction(decay=decay)
    check_lower_bound(lower_bound=lower_bound)
    inner = optax.with_extra_args_support(scaling)

    def init_fn(params: optax.Params) -> ClipByPolyakState:
        peak, slope, scale = replicated_like(
            (jnp.zeros([]), jnp.zeros([]), jnp.ones([])), params
        )
        return ClipByPolyakState(
            count=jnp.zeros([], jnp.int32),
            peak=peak,
            slope=slope,
            scale=scale,
            scaling=inner.init(params),
            weight_decay=decayed.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: ClipByPolyakState,
        params: optax.Params | None = None,
        *,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ClipByPolyakState]:
        value = checked_value(value)
        finite = _all_finite(updates) & jnp.isfinite(value)
        # Zeros instead, since `scaling` may remember gradients, as Adam does.
        updates = jax.tree.map(lambda grad: jnp.where(finite, grad, 0), updates)
        scaled, scaling_state = inner.update(
            updates, state.scaling, params, value=value, **extra_args
        )
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        peak = jnp.maximum(state.peak, jnp.asarray(rate, state.peak.dtype))
        steepness = _inner_product(updates, scaled, value.dtype)
        latest = jnp.where(finite, steepness, jnp.nan).astype(state.slope.dtype)
        slope = _next_slope(state, latest, decay)
        dampened = 1.0 - dampening * (momentum if nesterov else 1.0)
        passed = jnp.where(state.count == 0, 1.0, dampened)
        gap = jnp.maximum(value - jnp.asarray(lower_bound, value.dtype), 0)
        allowed = jnp.asarray(factor * (1.0 - momentum) / passed, value.dtype) * gap
        wanted = peak.astype(value.dtype) * jnp.maximum(
            steepness, slope.astype(value.dtype)
        )
        # A zero gradient is not scaled, which avoids 0 / 0.
        scale = jnp.where(wanted > allowed, allowed / wanted, 1)
        finite &= jnp.isfinite(steepness)
        scale = jnp.where(finite, scale, 0).astype(state.scale.dtype)
        scaled, decay_state = decayed.update(scaled, state.weight_decay, params)
        state = ClipByPolyakState(
            count=optax.safe_increment(state.count),
            peak=peak,
            slope=slope,
            scale=scale,
            scaling=scaling_state,
            weight_decay=decay_state,
        )

        def clipped(update: jax.Array) -> jax.Array:
            return jnp.where(finite, scaled_by(scale, update), 0).astype(update.dtype)

        return jax.tree.map(clipped, scaled), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def checked_value(value: Any) -> jax.Array:
    """The loss, float32 or float64.

    Raises:
        ValueError: if it is missing or not a scalar.
    """
    if value is None:
        raise ValueError(_NO_VALUE)
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"value has shape {value.shape}, but must be a scalar: give the mean loss"
            " whose gradients are passed"
        )
    return value.astype(statistic_dtype(value.dtype))


def _all_finite(grads: optax.Updates) -> jax.Array:
    """Whether no entry is inf or nan."""
    finite = [jnp.all(jnp.isfinite(grad)) for grad in jax.tree.leaves(grads)]
    return jnp.all(jnp.array(finite, bool))


def _next_slope(
    state: ClipByPolyakState, slope: jax.Array, decay: ArrayLike
) -> jax.Array:
    """The slope's running mean; spikes are bounded, and nan does not change it."""
    # The first slope cannot be clipped to a mean, so it is compared with the second.
    spiked = (state.count == 1) & (state.slope > _MOST_GROWTH * slope)
    known = jnp.where(spiked, slope, state.slope)
    most = jnp.where(known > 0, _MOST_GROWTH * known, jnp.inf)
    # An infinite slope is not clipped, but skipped like nan.
    clipped = jnp.where(jnp.isfinite(slope), jnp.minimum(slope, most), jnp.nan)
    return next_power(known, clipped, decay)


def _inner_product(
    grads: optax.Updates, updates: optax.Updates, dtype: Any
) -> jax.Array:
    """<g, D g>, with each weight's sum in float32, or float64 if it is float64."""
    total = jnp.zeros([], dtype)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True)
    for grad, update in pairs:
        wide = statistic_dtype(grad.dtype)
        parts = (jnp.real, jnp.imag) if jnp.iscomplexobj(grad) else (jnp.real,)
        for part in parts:
            product = jnp.sum(part(grad).astype(wide) * part(update).astype(wide))
            total += product.astype(dtype)
    return total


def polyak_scale(opt_state: optax.OptState) -> jax.Array:
    """The factor applied to the last update; below 1 where the bound was active.

    Args:
        opt_state: the state of `insgd(..., polyak_factor=...)`, or of any chain, mask
            or wrapper that holds one `clip_by_polyak`.

    Returns:
        min(1, a_t / m_t), a scalar in [0, 1]; 1 before the first update.

    Raises:
        ValueError: if the state holds no `clip_by_polyak`, or several.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import clip_by_polyak, polyak_scale
        >>> w = jnp.array(3.0)  # of the loss w^2 / 2
        >>> tx = clip_by_polyak(2.0, factor=1.0)
        >>> _, state = tx.update(w, tx.init(w), value=w**2 / 2)
        >>> print(polyak_scale(state))
        0.25
    """
    states = states_of(opt_state, ClipByPolyakState)
    if len(states) != 1:
        raise ValueError(
            f"the state ({type(opt_state).__name__}) holds {len(states)}"
            " ClipByPolyakState: give the state of one clip_by_polyak, or of insgd"
            " with polyak_factor"
        )
    return states[0].scale
