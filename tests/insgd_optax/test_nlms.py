"""The NLMS optimizer against the filter and the last-layer rule."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import capture_input_norms
from insgd_optax._adaptive_filter import nlms_filter
from insgd_optax._insgd import nlms
from insgd_optax._output_layer import inverse_sigmoid, projection_loss
from tests.insgd_optax.references import nlms_reference

NUM_TAPS = 5


def train(tx, p, x, d, first):
    """Trains a linear layer on one sample per step; returns the weights after each."""
    model = nn.Dense(1, use_bias=False, param_dtype=x.dtype)

    def step(carry, sample):
        params, opt_state = carry
        x_t, d_t = sample

        def loss_fn(params):
            with capture_input_norms(p=p):
                y, sown = model.apply(
                    {"params": params}, x_t[None], mutable=["intermediates"]
                )
            return 0.5 * jnp.sum((d_t - y) ** 2), sown["intermediates"]

        grads, norms = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params, input_norms=norms)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params["kernel"][:, 0]

    params = {"kernel": first[:, None]}
    return jax.lax.scan(step, (params, tx.init(params)), (x, d))[1]


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("learning_rate", [0.3, 1.0])
def test_a_linear_layer_matches_the_filter(x64, p, learning_rate):
    rng = np.random.default_rng(0)
    u, d = rng.standard_normal(200), rng.standard_normal(200)
    u[50:70] = 0.0  # silence, longer than the filter
    first = rng.standard_normal(NUM_TAPS)
    filtered = nlms_filter(
        u, d, num_taps=NUM_TAPS, step_size=learning_rate, p=p, eps=0.02, weights=first
    )
    x = jnp.asarray(nlms_reference.windows(u, NUM_TAPS))
    tx = nlms(learning_rate, eps=0.02)
    trained = train(tx, p, x, jnp.asarray(d), jnp.asarray(first))
    np.testing.assert_allclose(trained, filtered.weights, rtol=1e-10, atol=1e-10)


def test_a_learning_rate_schedule_is_followed(x64):
    rng = np.random.default_rng(1)
    u, d = rng.standard_normal(20), rng.standard_normal(20)
    x = jnp.asarray(nlms_reference.windows(u, NUM_TAPS))
    tx = nlms(lambda count: jnp.where(count < 10, 1.0, 0.0))
    trained = train(tx, 2, x, jnp.asarray(d), jnp.zeros(NUM_TAPS))
    filtered = nlms_filter(u, d, num_taps=NUM_TAPS, step_size=1.0)
    np.testing.assert_allclose(trained[:10], filtered.weights[:10], rtol=1e-10)
    np.testing.assert_array_equal(trained[10:], np.tile(trained[9], (10, 1)))


def test_the_last_layer_of_sigmoids_follows_equation_24(x64):
    rng = np.random.default_rng(2)
    x, d = 10 * rng.standard_normal((1, 4)), np.array([[0.0, 0.3, 1.0]])
    kernel = rng.standard_normal((4, 3))
    params = {"kernel": jnp.asarray(kernel)}
    tx = nlms(1.0, eps=0.1)

    def loss_fn(params):
        with capture_input_norms(p=2):
            z, sown = nn.Dense(3, use_bias=False, param_dtype=x.dtype).apply(
                {"params": params}, x, mutable=["intermediates"]
            )
        return projection_loss(z, d, inverse_sigmoid).mean(), sown["intermediates"]

    grads, norms = jax.grad(loss_fn, has_aux=True)(params)
    updates, _ = tx.update(grads, tx.init(params), params, input_norms=norms)
    c = np.clip(d[0], 0.01, 0.99)
    error = np.log(c / (1 - c)) - x[0] @ kernel
    expected = kernel + np.outer(x[0], error) / (0.1 + x[0] @ x[0])
    ours = optax.apply_updates(params, updates)["kernel"]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_biases_learn_as_under_sgd():
    params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
    tx = nlms(0.5)
    updates, _ = tx.update(
        params, tx.init(params), params, input_norms={"input_norm": jnp.array(9.0)}
    )
    np.testing.assert_array_equal(updates["bias"], [-0.5])
    np.testing.assert_allclose(updates["kernel"], np.full((2, 1), -0.5 / 9.001))
