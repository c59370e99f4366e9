"""Gradient accumulation: covariances, the accumulators' dtype, bad micro-batches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    InputCovariance,
    MultiSteps,
    capture_input_covariances,
    clip_by_polyak,
    insgd,
    lms_newton,
    polyak_scale,
    scale_by_input_covariance,
    scale_by_input_power,
)

MODEL = nn.Sequential([nn.Dense(3), nn.tanh, nn.Dense(2)])
X = jax.random.normal(jax.random.key(0), (8, 4)) * jnp.array([[1.0, 2.0, 0.5, 3.0]])


@functools.partial(jax.jit, static_argnames="when")
def pass_of(params, x, when=True):
    def loss_fn(params):
        with capture_input_covariances(when=when):
            y, sown = MODEL.apply({"params": params}, x, mutable=["intermediates"])
        return jnp.mean(y**2), sown

    (_, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, sown


@pytest.mark.parametrize(
    ("make", "statistics"), [(insgd, "input norms"), (lms_newton, "input covariances")]
)
def test_only_optax_s_multi_steps_warns(make, statistics):
    params = MODEL.init(jax.random.key(1), X)["params"]
    tx = optax.chain(optax.clip_by_global_norm(1.0), make(0.1))
    words = f"only the {statistics} of the last one: use insgd_optax.MultiSteps"
    with pytest.warns(UserWarning, match=words):
        jax.eval_shape(optax.MultiSteps(tx, 2).init, params)
    wrapped = optax.MultiSteps(tx, 2).gradient_transformation()
    with pytest.warns(UserWarning, match=words):
        jax.eval_shape(jax.jit(wrapped.init), params)
    jax.eval_shape(MultiSteps(tx, 2).init, params)
    jax.eval_shape(jax.jit(MultiSteps(tx, 2).init), params)
    jax.eval_shape(optax.MultiSteps(optax.sgd(0.1), 2).init, params)


@pytest.mark.parametrize("k", [2, lambda step: 2])
def test_covariances_of_two_micro_batches_are_those_of_one_batch(k):
    params = jax.jit(MODEL.init)(jax.random.key(1), X)["params"]
    tx = lms_newton(0.1, damping=0.1)
    grads, sown = pass_of(params, X)
    state = tx.init(params)
    update = jax.jit(tx.update)
    expected, inner = update(grads, state, params, input_covariances=sown)
    steps = MultiSteps(tx, k)
    state, update = steps.init(params), jax.jit(steps.update)
    # A step with rows, then (below) a step without any, which must leave A unchanged.
    for x in (X[:4], X[4:]):
        grads, sown = pass_of(params, x)
        updates, state = update(grads, state, params, input_covariances=sown)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (updates, state.inner_opt_state),
        (expected, inner),
    )
    for x in (X[:4], X[4:]):
        grads, sown = pass_of(params, x, when=False)
        _, after = update(grads, state, params, input_covariances=sown)
    before, after = state.inner_opt_state[0].layers, after.inner_opt_state[0].layers
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_two_covariances_of_one_weight_may_differ_in_form():
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    factor = jnp.asarray(rows.T @ rows).reshape(4, 1, 4, 1)
    sown = {"d": {"input_covariance": InputCovariance((factor,), jnp.array(8.0))}}
    params = {"d": {"kernel": jnp.eye(4)}}
    tx = optax.chain(scale_by_input_covariance(), scale_by_input_covariance(max_dim=2))

    @jax.jit
    def both():
        wanted, _ = tx.update(params, tx.init(params), input_covariances=sown)
        steps = MultiSteps(tx, 2)
        state = steps.init(params)
        for _ in range(2):
            updates, state = steps.update(params, state, input_covariances=sown)
        return updates, wanted

    updates, wanted = both()
    np.testing.assert_allclose(
        updates["d"]["kernel"], wanted["d"]["kernel"], rtol=1e-5, atol=1e-6
    )


def test_missing_covariances_are_an_error():
    params = jax.jit(MODEL.init)(jax.random.key(1), X)["params"]
    tx = MultiSteps(lms_newton(0.1), 2)
    state = tx.init(params)
    with pytest.raises(ValueError, match="input_covariances is missing"):
        tx.update(params, state, params)
    with pytest.raises(ValueError, match="have no input covariance"):
        tx.update(params, state, params, input_covariances={})


def test_covariances_that_are_not_finite_are_left_out():
    params = {"d": {"kernel": jnp.ones((2, 1))}}
    tx = MultiSteps(lms_newton(0.1), 2)
    state, update = tx.init(params), jax.jit(tx.update)
    good = jnp.array([[4.0, 1.0], [1.0, 2.0]]).reshape(2, 1, 2, 1)
    for factor in (good * jnp.nan, good):
        sown = {"d": {"input_covariance": InputCovariance((factor,), jnp.ones(()))}}
        _, state = update(params, state, params, input_covariances=sown)
    layer = state.inner_opt_state[0].layers["d"]["kernel"]
    np.testing.assert_allclose(layer.factors[0] / layer.mass, good, rtol=1e-6)


def test_sums_have_the_widest_dtype_of_the_weights(x64):
    params = {
        name: {"kernel": jnp.ones((2, 1), dtype)}
        for name, dtype in (("a", jnp.float32), ("b", jnp.float64))
    }
    state = jax.eval_shape(MultiSteps(insgd(0.1), 2).init, params)
    assert {x.dtype for x in jax.tree.leaves(state.acc_grads)} == {jnp.dtype("float64")}


def test_accumulators_have_the_accumulator_dtype(x64):
    params = {"d": {"kernel": jnp.ones((2, 1), jnp.float32)}}
    tx = MultiSteps(insgd(0.1), 2, accumulator_dtype=jnp.float64)
    state = tx.init(params)
    assert {x.dtype for x in jax.tree.leaves(state.acc_grads)} == {jnp.dtype("float64")}
    norms = {"d": {"input_norm": jnp.float32(9.0)}}
    updates, after = tx.update(params, state, params, input_norms=norms)
    assert updates["d"]["kernel"].dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="accumulator_dtype=bfloat16 cannot hold"):
        MultiSteps(insgd(0.1), 2, accumulator_dtype=jnp.bfloat16)


def test_a_bounded_step_with_an_overflow_is_zero_and_the_next_is_not():
    weight = jnp.ones(2, jnp.float16)
    tx = MultiSteps(clip_by_polyak(1.0), 2)
    state = tx.init(weight)
    for grad, moves in ((1.0, False), (jnp.inf, False), (1.0, False), (1.0, True)):
        updates, state = tx.update(weight * grad, state, weight, value=1.0)
        assert np.isfinite(updates).all() and bool(jnp.any(updates != 0)) == moves


def steps_of(tx, grads, values=None):
    """The updates of one weight at one norm, and the last state."""
    params = {"d": {"kernel": jnp.ones((2, 1))}}
    state, updates = tx.init(params), []
    update = jax.jit(tx.update)
    for grad, value in zip(grads, values or [None] * len(grads), strict=True):
        update_of, state = update(
            jax.tree.map(lambda w, grad=grad: grad * w, params),
            state,
            params,
            input_norms={"d": {"input_norm": jnp.array(20.0)}},
            **({} if value is None else {"value": value}),
        )
        updates.append(float(update_of["d"]["kernel"][0, 0]))
    return updates, state


def test_a_micro_batch_that_overflows_moves_no_weight_before_its_step_ends():
    tx = MultiSteps(insgd(0.1, momentum=None), 2)
    updates, _ = steps_of(tx, [jnp.inf, 1.0, 1.0])
    assert updates[::2] == [0, 0] and not np.isfinite(updates[1])


@pytest.mark.parametrize("order", [1, -1])
def test_the_power_with_more_axes_is_accumulated(order):
    norm = jnp.array([10.0, 20.0, 30.0]).reshape(3, 1, 1)
    norms = {"d": {"input_norm": norm}}
    both = [scale_by_input_power(), scale_by_input_power(input_norms_like=norms)]
    tx = MultiSteps(optax.chain(*both[::order]), 1)
    params = {"d": {"kernel": jnp.ones((3, 2, 2))}}
    _, state = tx.update(params, tx.init(params), params, input_norms=norms)
    whole, stacked = state.inner_opt_state[::order]
    assert whole.power["d"]["kernel"] == 20
    np.testing.assert_array_equal(stacked.power["d"]["kernel"], norm)


@pytest.mark.parametrize("mean", [True, False])
def test_one_bad_micro_batch_costs_one_step_under_apply_if_finite(mean):
    inner = optax.apply_if_finite(insgd(0.1, momentum=None), 100)
    tx = MultiSteps(inner, 2, use_grad_mean=mean)
    updates, _ = steps_of(tx, [jnp.inf, 1.0, 1.0, 1.0, jnp.nan, 1.0])
    assert updates[:3] == [0, 0, 0] and updates[4:] == [0, 0]
    expected, _ = steps_of(MultiSteps(inner, 2, use_grad_mean=mean), [1.0, 1.0])
    assert updates[3] == expected[1] < 0


@pytest.mark.parametrize("bounds", [{}, {"polyak_factor": 0.3}])
def test_a_skipped_micro_batch_has_no_effect(bounds):
    """Also with a bound on the learning rate."""
    inner = insgd(0.1, momentum=None, **bounds)
    tx = MultiSteps(inner, 2, should_skip_update_fn=optax.skip_not_finite)
    value = [1.0] * 3 if bounds else None
    updates, state = steps_of(tx, [jnp.nan, 1.0, 1.0], value)
    assert int(state.gradient_step) == 1 and int(state.mini_step) == 0
    expected, _ = steps_of(tx, [1.0, 1.0], value and value[:2])
    assert updates == [0, *expected]


def test_a_bad_micro_batch_enters_neither_slope_nor_scaling_of_a_bound():
    """Nor does the good half of its step, whose mean with zeros would be too small."""
    inner = clip_by_polyak(0.1, optax.scale_by_adam())
    tx = MultiSteps(inner, 2)
    _, before = steps_of(tx, [1.0, 1.0], [1.0] * 2)
    _, after = steps_of(tx, [1.0, 1.0, jnp.nan, 1.0], [1.0] * 4)
    old, new = (state.inner_opt_state[0] for state in (before, after))
    assert new.slope == old.slope and polyak_scale(after) == 0
    # A gradient of zeros takes its place.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.999 * b, rtol=1e-6),
        new.scaling.nu,
        old.scaling.nu,
    )
