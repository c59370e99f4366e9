"""The bound on the learning rate: a NumPy reference, its theory, and bad losses."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    MultiSteps,
    TrainState,
    capture_input_norms,
    clip_by_polyak,
    insgd,
    polyak_scale,
    scale_by_input_power,
)
from tests.insgd_optax.references import nlms_reference

WEIGHT = np.array([0.5, -1.0, 2.0])


@functools.partial(jax.jit, static_argnums=0)
def scan_steps(tx, weight, grads, values):
    def step(carry, inputs):
        weight, state = carry
        grad, value = inputs
        updates, state = tx.update(grad, state, weight, value=value)
        weight = optax.apply_updates(weight, updates)
        return (weight, state), weight

    return jax.lax.scan(step, (weight, tx.init(weight)), (grads, values))[1]


def steps_of(tx, grads, values):
    """The weights after each step."""
    weight = jnp.asarray(WEIGHT)
    return np.array(
        scan_steps(tx, weight, jnp.asarray(grads, weight.dtype), jnp.asarray(values))
    )


def reference(
    grads,
    values,
    rates,
    scale,
    *,
    factor,
    decay,
    lower_bound,
    momentum,
    dampening,
    nesterov,
    weight_decay,
):
    """The docstring's rule in plain NumPy; `scale` is D."""
    weight, buffer, peak, mean, weights = WEIGHT.copy(), None, 0.0, None, []
    for grad, value, rate in zip(grads, values, rates, strict=True):
        peak = max(peak, rate)
        passed = 1.0 if buffer is None else 1 - dampening
        carried = 1.0  # the share that enters the buffer, or bypasses it
        if buffer is not None:
            carried = 1 - momentum * dampening if nesterov else 1 - dampening
        bound = factor * (1 - momentum) / carried * max(value - lower_bound, 0)
        slope = sum(g * s * g for g, s in zip(grad, scale, strict=True))
        if len(weights) == 1:
            mean = slope if mean > 100 * slope else mean
        grown = slope if mean is None else min(slope, 100 * mean)
        mean = grown if mean is None else decay * mean + (1 - decay) * grown
        bound /= max(slope, mean)
        update = min(1.0, bound / peak) * (scale * grad + weight_decay * weight)
        update = rate * update
        buffer = update if buffer is None else momentum * buffer + passed * update
        weight = weight - (update + momentum * buffer if nesterov else buffer)
        weights.append(weight)
    return np.array(weights)


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.9, False), (0.8, 0.3, True)],
)
@pytest.mark.parametrize(("factor", "decay"), [(0.5, 0.0), (1.0, 0.9), (2.0, 0.5)])
def test_steps_match_numpy(momentum, dampening, nesterov, factor, decay, x64):
    rng = np.random.default_rng(0)
    grads, values = rng.normal(size=(12, 3)), rng.uniform(0.2, 2.0, size=12)
    # Warmup, then decay: the peak is first the rate itself, then above it.
    rates = np.concatenate([np.linspace(0.1, 5.0, 6), np.linspace(4.0, 0.5, 6)])
    scale, table = np.array([0.2, 1.0, 3.0]), jnp.asarray(rates)
    options = {"factor": factor, "lower_bound": 0.4, "momentum": momentum}
    options |= {"dampening": dampening, "nesterov": nesterov}
    scaling = optax.stateless(lambda updates, _: updates * jnp.asarray(scale))
    options |= {"decay": decay, "weight_decay": 0.01}
    tx = clip_by_polyak(lambda count: table[count], scaling, **options)
    actual = steps_of(tx, grads, values)
    expected = reference(grads, values, rates, scale, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    free = reference(grads, values, rates, scale, **options | {"factor": math.inf})
    assert not np.allclose(actual, free)  # The bound is active here.


def neuron_steps(tx, x, d, first):
    """Trains a linear neuron on one sample per step; returns the weights after each."""
    model = nn.Dense(1, use_bias=False, param_dtype=x.dtype)
    params, weights = {"kernel": first[:, None]}, []
    state = tx.init(params)

    @jax.jit
    def step(params, state, x_t, d_t):
        def loss_fn(params):
            with capture_input_norms(p=2):
                y, sown = model.apply(
                    {"params": params}, x_t[None], mutable=["intermediates"]
                )
            return 0.5 * jnp.sum((d_t - y) ** 2), sown["intermediates"]

        (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, input_norms=norms, value=loss)
        return optax.apply_updates(params, updates), state

    for x_t, d_t in zip(x, d, strict=True):
        params, state = step(params, state, x_t, d_t)
        weights.append(params["kernel"][:, 0])
    return np.array(weights)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_one_linear_neuron_is_nlms(rate, x64):
    """With the power normalizer up to rate 1; with the bound alone at larger rates."""
    rng = np.random.default_rng(0)
    u, d = rng.standard_normal(60), rng.standard_normal(60)
    x, first = nlms_reference.windows(u, 4), rng.standard_normal(4)
    expected, weight = [], first.copy()
    for x_t, d_t in zip(x, d, strict=True):
        weight = weight + rate * (d_t - x_t @ weight) * x_t / (x_t @ x_t)
        expected.append(weight)
    x, d, first = map(jnp.asarray, (x, d, first))
    by_power = insgd(
        rate,
        power_decay=0.0,
        momentum=None,
        normalizer="power",
        eps=1e-13,
        polyak_factor=2.0,
    )
    actual = neuron_steps(by_power, x, d, first)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)
    # Factor 2 for rate 1: the minimum of e^2 / 2 is twice as far as its slope predicts.
    by_bound = clip_by_polyak(1e6, factor=2 * rate, decay=0.0)
    actual = neuron_steps(by_bound, x, d, first)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-11)


def test_a_rate_that_would_diverge_projects_instead(x64):
    """At rate 5 NLMS diverges; bounded, it is NLMS at rate 1."""
    rng = np.random.default_rng(1)
    x, d, first = rng.normal(size=(40, 4)), rng.normal(size=40), np.zeros(4)
    options = {"power_decay": 0.0, "momentum": None, "normalizer": "power"}
    options |= {"eps": 1e-13, "polyak_factor": 2.0}
    at_one, at_five = (
        neuron_steps(insgd(rate, **options), *map(jnp.asarray, (x, d, first)))
        for rate in (1.0, 5.0)
    )
    np.testing.assert_allclose(at_five, at_one, rtol=1e-9)


@pytest.mark.parametrize(
    ("dampening", "nesterov"), [(0.0, False), (0.0, True), (0.4, True)]
)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_total_gain_of_a_gradient_is_bounded(momentum, dampening, nesterov, x64):
    """Over all steps in which momentum still carries the gradient."""
    factor, grad = 0.7, np.array([3.0, -1.0, 2.0])
    tx = clip_by_polyak(
        1e4, factor=factor, momentum=momentum, dampening=dampening, nesterov=nesterov
    )
    nothing = np.zeros(3)
    # The second gradient, because the first is not dampened.
    grads = [nothing, grad] + 500 * [nothing]
    values = np.full(len(grads), 0.5)
    weights = steps_of(tx, grads, values)
    gain = grad @ (WEIGHT - weights[-1])
    np.testing.assert_allclose(gain, factor * 0.5, rtol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        (optax.linear_schedule(0.0, 1e4, 10), 1.0),
        (optax.linear_schedule(1e3, 1e4, 10), 1.0),
        (optax.piecewise_constant_schedule(1e4, {8: 0.1}), 0.1),
    ],
)
def test_the_total_gain_of_a_gradient_is_bounded_under_a_schedule(
    momentum, schedule, share, x64
):
    """Whatever the later learning rate; an earlier decay reduces the gain."""
    grad = np.array([3.0, -1.0, 2.0])
    tx = clip_by_polyak(schedule, factor=1.0, momentum=momentum)
    for step, expected in ((0, None), (3, 1.0), (9, share)):
        grads = np.zeros((310, 3))
        grads[step] = grad
        weights = steps_of(tx, grads, np.full(len(grads), 0.5))
        gain = grad @ (WEIGHT - weights[-1])
        if expected is None:
            assert gain <= 0.5 * (1 + 1e-9)
        else:
            np.testing.assert_allclose(gain, expected * 0.5, rtol=1e-9)


@pytest.mark.parametrize("peak", [1.0, 1e4])
def test_a_quadratic_loss_never_exceeds_its_start_in_a_warmup_to_any_rate(peak, x64):
    def loss_fn(weight):
        return 0.5 * (weight[0] ** 2 + 0.1 * weight[1] ** 2)

    tx = clip_by_polyak(optax.linear_schedule(0.0, peak, 20), factor=1.0, momentum=0.9)

    @jax.jit
    def step(weight, state):
        loss, grad = jax.value_and_grad(loss_fn)(weight)
        updates, state = tx.update(grad, state, weight, value=loss)
        return optax.apply_updates(weight, updates), state, loss

    weight, losses = jnp.ones(2), []
    state = tx.init(weight)
    for _ in range(100):
        weight, state, loss = step(weight, state)
        losses.append(loss)
    assert max(losses) == losses[0] and losses[-1] < 0.1 * losses[0]


def test_an_injected_rate_may_rise(x64):
    injected = optax.inject_hyperparams(insgd, static_args=("momentum",))
    tx = injected(100.0, polyak_factor=1.0, momentum=0.9)
    params = jax.tree.map(jnp.asarray, PARAMS)
    update = jax.jit(
        lambda state: tx.update(
            params, state, params, input_norms=norms(30.0), value=1.0
        )
    )
    state, sizes = tx.init(params), []
    for rate in [100.0] * 3 + [1000.0] * 3:
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates, state = update(state)
        sizes.append(float(optax.tree.norm(updates)))
    # Momentum keeps growing, as at a constant learning rate.
    np.testing.assert_allclose(
        np.array(sizes) / sizes[0], np.cumsum(0.9 ** np.arange(6))
    )


def test_where_the_bound_is_active_the_learning_rate_does_not_matter(x64):
    """Also with momentum, weight decay and a schedule, whose shape alone matters."""
    rng = np.random.default_rng(0)
    grads, values = rng.normal(size=(20, 3)), rng.uniform(0.5, 1.0, size=20)

    def weights(rate, shape=lambda count: 1 / (1 + count)):
        tx = clip_by_polyak(
            lambda count: rate * shape(count), momentum=0.9, weight_decay=0.05
        )
        return steps_of(tx, grads, values)

    np.testing.assert_allclose(weights(1e6), weights(1e3), rtol=1e-7)
    # With the rate at 0 nothing is added, though the bound is no lower than before.
    first = weights(1e3)[0] - WEIGHT
    frozen = weights(1e3, lambda count: jnp.where(count == 0, 1.0, 0.0))
    carried = np.cumsum(0.9 ** np.arange(20))[:, None]
    np.testing.assert_allclose(frozen, WEIGHT + carried * first, rtol=1e-9)


def test_a_slope_counts_as_at_least_its_running_mean():
    tx = clip_by_polyak(1.0, factor=1.0, decay=0.75)
    weight = jnp.zeros(1)
    state, scales = tx.init(weight), []
    for grad in (4.0, 2.0, jnp.nan, 6.0):
        _, state = tx.update(jnp.array([grad]), state, weight, value=1.0)
        scales.append(float(polyak_scale(state)))
    mean = 0.75 * 16 + 0.25 * 4  # The last one is steeper, and counts as it is.
    np.testing.assert_allclose(scales, [1 / 16, 1 / mean, 0, 1 / 36], rtol=1e-6)


def test_a_small_rate_is_not_clipped():
    rng = np.random.default_rng(0)
    grads, values = rng.normal(size=(5, 3)), np.ones(5)
    actual = steps_of(clip_by_polyak(1e-3, momentum=0.9), grads, values)
    expected = steps_of(
        optax.with_extra_args_support(optax.sgd(1e-3, 0.9)), grads, values
    )
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_positive_or_not_finite_takes_no_step(value):
    tx = clip_by_polyak(0.1, weight_decay=0.1)
    weight = jnp.asarray(WEIGHT, jnp.float32)
    updates, state = tx.update(weight, tx.init(weight), weight, value=value)
    np.testing.assert_array_equal(updates, np.zeros(3))
    assert polyak_scale(state) == 0
    # The next loss finds the state unchanged.
    _, state = tx.update(weight, state, weight, value=1e9)
    assert polyak_scale(state) == 1


def test_the_lower_bound_is_subtracted_from_the_loss():
    weight = jnp.array([2.0])
    for lower_bound, expected in ((0.0, 4 / 4), (3.0, 1 / 4), (-4.0, 1.0), (5.0, 0.0)):
        tx = clip_by_polyak(1.0, factor=1.0, lower_bound=lower_bound)
        _, state = tx.update(weight, tx.init(weight), weight, value=4.0)
        np.testing.assert_allclose(polyak_scale(state), expected)


def test_a_bad_loss_leaves_no_nan_of_its_gradient():
    tx, weight = clip_by_polyak(0.1, momentum=0.9), jnp.ones(2)
    state = tx.init(weight)
    updates, state = tx.update(weight * jnp.nan, state, weight, value=jnp.nan)
    np.testing.assert_array_equal(updates, np.zeros(2))
    updates, state = tx.update(weight, state, weight, value=1.0)
    assert np.isfinite(updates).all()
    # Momentum continues even if no gradient enters it.
    again, state = tx.update(weight, state, weight, value=jnp.inf)
    np.testing.assert_allclose(again, 0.9 * updates, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_hides_its_gradient_from_slope_and_scaling(bad):
    tx = clip_by_polyak(0.1, optax.scale_by_adam(), momentum=0.9)
    weight, states = jnp.array([1.0, 2.0]), []
    _, before = tx.update(weight, tx.init(weight), weight, value=1.0)
    for grad in (10.0, jnp.nan):
        updates, after = tx.update(grad * weight, before, weight, value=bad)
        assert np.isfinite(updates).all() and after[0].slope == before[0].slope
        states.append(after)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize("spike_at", [0, 1, 30])
@pytest.mark.parametrize("spike", [1e3, 1e15, 1e25])
def test_one_spike_does_not_stall_the_bound(spike, spike_at):
    """1e25 squared is inf in float32, though the gradient is finite."""
    tx = clip_by_polyak(1e3, factor=1.0, decay=0.9)
    weight, scales = jnp.ones(1), []
    state = tx.init(weight)
    update = jax.jit(tx.update)
    for step in range(spike_at + 26):
        grad = jnp.array([spike if step == spike_at else 1.0])
        updates, state = update(grad, state, weight, value=1.0)
        scales.append(float(polyak_scale(state)))
        # The spike itself is bounded by its own slope.
        assert abs(updates[0] * grad[0]) <= 1 + 1e-5
    usual = 1e-3
    np.testing.assert_allclose(scales[-1], usual, rtol=0.5)
    np.testing.assert_allclose(scales[:spike_at], usual, rtol=1e-5)


@pytest.mark.parametrize("scaling", [None, optax.scale_by_adam()])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_float16_gradient_that_overflowed_takes_no_step(bad, scaling):
    """Under a finite loss; neither the slope nor Adam's moments remember it."""
    tx = clip_by_polyak(0.1, scaling, momentum=0.9, weight_decay=0.1)
    weight = jnp.ones(3, jnp.float16)
    state = tx.init(weight)
    update = jax.jit(tx.update)
    updates, first = update(
        jnp.array([bad, 1.0, 0.0], jnp.float16), state, weight, value=1.0
    )
    np.testing.assert_array_equal(updates, np.zeros(3))
    assert polyak_scale(first) == 0
    updates, state = update(weight, first, weight, value=1.0)
    assert np.isfinite(updates).all() and (updates < 0).all()
    again, state = update(weight * bad, state, weight, value=1.0)
    np.testing.assert_allclose(again, 0.9 * updates, rtol=1e-2)  # momentum alone
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(leaf).all()
    updates, _ = update(weight, state, weight, value=1.0)
    assert np.isfinite(updates).all()


def test_scaled_float16_updates_that_overflow_take_no_step():
    scaling = optax.stateless(lambda updates, _: updates * jnp.float16(300))
    tx, weight = clip_by_polyak(0.1, scaling), jnp.full(3, 300.0, jnp.float16)
    updates, state = tx.update(weight, tx.init(weight), weight, value=1.0)
    np.testing.assert_array_equal(updates, np.zeros(3))
    assert state[0].slope == 0


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_gradient_of_zero_leaves_weight_decay_alone(value):
    tx, weight = clip_by_polyak(1.0, weight_decay=0.5), jnp.ones(2)
    updates, state = tx.update(0 * weight, tx.init(weight), weight, value=value)
    np.testing.assert_array_equal(updates, -0.5 * weight)  # weight decay alone
    assert polyak_scale(state) == 1


def test_bfloat16_sums_in_float32():
    weight = jnp.full((4096,), 0.1, jnp.bfloat16)
    tx = clip_by_polyak(1.0, factor=1.0)
    updates, state = tx.update(weight, tx.init(weight), weight, value=jnp.bfloat16(1.0))
    entry = float(weight[0])
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(polyak_scale(state), 1 / (4096 * entry**2), rtol=1e-5)


def test_float16_keeps_a_small_scale():
    weight = jnp.full((4,), 300.0, jnp.float16)
    tx = clip_by_polyak(1e3, factor=1.0)
    updates, _ = tx.update(weight, tx.init(weight), weight, value=1.0)
    # A scale of 3e-9 underflows in float16; its product does not.
    expected = -1e3 * (1 / (1e3 * 4 * 300.0**2) * 300)
    np.testing.assert_allclose(updates, np.full(4, expected), rtol=0.05)


def test_the_slope_of_complex_weights_is_their_squared_magnitude():
    weight = jnp.array([1 + 2j])
    tx = clip_by_polyak(1.0, factor=1.0)
    updates, state = tx.update(weight, tx.init(weight), weight, value=1.0)
    np.testing.assert_allclose(polyak_scale(state), 1 / 5, rtol=1e-6)
    np.testing.assert_allclose(updates, -weight / 5, rtol=1e-6)


def test_the_scaling_receives_the_loss_and_other_arguments():
    def update(updates, state, params, *, value, of_others):
        return optax.tree.scale(value * of_others, updates), state

    scaling = optax.GradientTransformationExtraArgs(lambda _: (), update)
    tx, weight = clip_by_polyak(1e-3, scaling), jnp.ones(2)
    updates, _ = tx.update(weight, tx.init(weight), weight, value=2.0, of_others=3.0)
    np.testing.assert_allclose(updates, -6e-3 * weight)


def norms(power):
    return {"Dense_0": {"input_norm": jnp.array(power)}}


PARAMS = {"Dense_0": {"kernel": np.ones((2, 1)), "bias": np.ones(1)}}


def test_insgd_with_the_bound_is_clip_by_polyak(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    options = {"momentum": 0.9, "dampening": 0.9, "weight_decay": 0.01}
    ready = insgd(
        3.0, polyak_factor=0.5, loss_lower_bound=0.1, nesterov=True, **options
    )
    alone = clip_by_polyak(
        3.0,
        scale_by_input_power(),
        factor=0.5,
        lower_bound=0.1,
        nesterov=True,
        **options,
    )
    states, weights = [ready.init(params), alone.init(params)], [params, params]
    for step in range(4):
        for number, tx in enumerate((ready, alone)):
            updates, states[number] = tx.update(
                params,
                states[number],
                weights[number],
                input_norms=norms(10.0 + step),
                value=1.0,
            )
            weights[number] = optax.apply_updates(weights[number], updates)
    jax.tree.map(np.testing.assert_array_equal, *weights)
    assert 0 < polyak_scale(states[0]) < 1


def test_multi_steps_averages_or_sums_the_loss_like_the_gradients(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    inner = insgd(100.0, polyak_factor=1.0)
    inner_update = jax.jit(inner.update)
    for mean, count in itertools.product((True, False), (1, 4)):
        tx = MultiSteps(inner, every_k_schedule=count, use_grad_mean=mean)
        state, update = tx.init(params), jax.jit(tx.update)
        losses = [1.0, 2.0, 0.5, 4.5][:count]
        for loss in losses:
            updates, state = update(
                params, state, params, input_norms=norms(30.0), value=loss
            )
        times = 1 if mean else count
        expected, _ = inner_update(
            optax.tree.scale(times, params),
            inner.init(params),
            params,
            input_norms=norms(30.0),
            value=times * np.mean(losses),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-6), updates, expected
        )


def test_multi_steps_drops_a_batch_with_a_bad_loss_and_continues():
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), PARAMS)
    for mean in (True, False):
        tx = MultiSteps(insgd(1.0, polyak_factor=1.0), 2, use_grad_mean=mean)
        state, sizes, update = tx.init(params), [], jax.jit(tx.update)
        for loss in (1.0, math.inf, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0):
            updates, state = update(
                params, state, params, input_norms=norms(30.0), value=loss
            )
            sizes.append(float(optax.tree.norm(updates)))
        assert sizes[1] == 0 and sizes[3] > 0
        # Momentum alone, then more.
        np.testing.assert_allclose(sizes[5], 0.9 * sizes[3], rtol=1e-5)
        assert sizes[7] > sizes[5]


def test_without_momentum_dampening_has_no_effect(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    steps = []
    for options in ({}, {"dampening": 0.5}):
        tx = insgd(100.0, momentum=None, polyak_factor=1.0, **options)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(
                params, state, params, input_norms=norms(30.0), value=1.0
            )
        steps.append(updates)
    jax.tree.map(np.testing.assert_array_equal, *steps)


def test_the_train_state_passes_the_loss_on():
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), PARAMS)
    for tx, kwargs in (
        (insgd(1e3, polyak_factor=1.0), {"input_norms": norms(30.0)}),
        (clip_by_polyak(1e3), {}),
    ):
        state = TrainState.create(apply_fn=None, params=params, tx=tx)
        state = state.apply_gradients(grads=params, value=jnp.array(0.01), **kwargs)
        assert polyak_scale(state.opt_state) < 1
    # An optimizer that takes no loss does not receive one.
    plain = TrainState.create(apply_fn=None, params=params, tx=optax.trace(0.9))
    plain.apply_gradients(grads=params, value=jnp.array(1.0))


def test_invalid_arguments_are_errors():
    params = jnp.ones(2)
    tx = clip_by_polyak(0.1)
    with pytest.raises(ValueError, match="value is missing: call tx.update"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(
        ValueError, match=r"value has shape \(3,\), but must be a scalar"
    ):
        tx.update(params, tx.init(params), params, value=jnp.ones(3))
    for options in ({"factor": -1.0}, {"learning_rate": -0.1}, {"weight_decay": -1.0}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name}={value} must be at least 0"):
            clip_by_polyak(**{"learning_rate": 0.1} | options)
    with pytest.raises(ValueError, match=r"momentum=1.0 must lie in \[0, 1\)"):
        clip_by_polyak(0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"decay=1 must lie in \[0, 1\)"):
        clip_by_polyak(0.1, decay=1)
    with pytest.raises(ValueError, match=r"dampening=2 must lie in \[0, 1\]"):
        clip_by_polyak(0.1, dampening=2)
    for bad in (None, math.nan):
        with pytest.raises(ValueError, match=f"lower_bound={bad} must be a number"):
            clip_by_polyak(0.1, lower_bound=bad)
    with pytest.raises(ValueError, match="holds 0 ClipByPolyakState"):
        polyak_scale(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="polyak_factor=-1 must be at least 0"):
        insgd(0.1, polyak_factor=-1)
