"""Gradient accumulation: covariances, the accumulators' dtype, bad micro-batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import (
    MultiSteps,
    capture_input_covariances,
    clip_by_polyak,
    insgd,
    lms_newton,
)

MODEL = nn.Sequential([nn.Dense(3), nn.tanh, nn.Dense(2)])
X = jax.random.normal(jax.random.key(0), (8, 4)) * jnp.array([[1.0, 2.0, 0.5, 3.0]])


def pass_of(params, x, when=True):
    def loss_fn(params):
        with capture_input_covariances(when=when):
            y, sown = MODEL.apply({"params": params}, x, mutable=["intermediates"])
        return jnp.mean(y**2), sown

    (_, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, sown


@pytest.mark.parametrize("k", [2, lambda step: 2])
def test_covariances_of_two_micro_batches_are_those_of_one_batch(k):
    params = MODEL.init(jax.random.key(1), X)["params"]
    tx = lms_newton(0.1, damping=0.1)
    grads, sown = pass_of(params, X)
    state = tx.init(params)
    expected, inner = tx.update(grads, state, params, input_covariances=sown)
    steps = MultiSteps(tx, k)
    state, update = steps.init(params), jax.jit(steps.update)
    # The last pass brings no rows, which must add nothing: a second step keeps A.
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


def test_missing_covariances_are_an_error():
    params = MODEL.init(jax.random.key(1), X)["params"]
    tx = MultiSteps(lms_newton(0.1), 2)
    state = tx.init(params)
    with pytest.raises(ValueError, match="input_covariances is missing"):
        tx.update(params, state, params)
    with pytest.raises(ValueError, match="have no input covariance"):
        tx.update(params, state, params, input_covariances={})


def test_accumulator_dtype(x64):
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
