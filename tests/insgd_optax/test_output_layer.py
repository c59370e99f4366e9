"""Inverse activations and the projection loss against Eq. 21-24."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax._output_layer import (
    inverse_leaky_relu,
    inverse_relu,
    inverse_sigmoid,
    inverse_tanh,
    projection_loss,
)

PAIRS = {
    "sigmoid": (nn.sigmoid, inverse_sigmoid, np.linspace(0.02, 0.98, 25)),
    "tanh": (nn.tanh, inverse_tanh, np.linspace(-0.98, 0.98, 25)),
    "leaky_relu": (nn.leaky_relu, inverse_leaky_relu, np.linspace(-3, 3, 25)),
    "relu": (nn.relu, inverse_relu, np.linspace(0, 3, 25)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_inverse_undoes_the_activation(x64, name):
    activation, inverse, targets = PAIRS[name]
    np.testing.assert_allclose(
        activation(inverse(targets)), targets, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_inverse_keeps_dtype_and_is_finite_everywhere(name, dtype):
    targets = jnp.array([-1e4, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 1e4], dtype)
    values = PAIRS[name][1](targets)
    assert values.dtype == dtype and values.shape == targets.shape
    assert np.all(np.isfinite(values.astype(np.float32)))


def test_labels_beyond_the_range_are_clipped_by_the_margin(x64):
    logit = np.log(0.95 / 0.05)
    values = inverse_sigmoid(np.array([-3, 0, 1, 5]), margin=0.05)
    np.testing.assert_allclose(values, [-logit, -logit, logit, logit], rtol=1e-12)
    values = inverse_tanh(np.array([-3, -1, 1, 5]), margin=0.05)
    edge = np.arctanh(0.95)
    np.testing.assert_allclose(values, [-edge, -edge, edge, edge], rtol=1e-12)


def test_inverse_leaky_relu_divides_negatives_by_the_slope():
    values = inverse_leaky_relu(jnp.array([-1.0, 0.0, 2.0]), negative_slope=0.2)
    np.testing.assert_allclose(values, [-5.0, 0.0, 2.0], rtol=1e-6)


def test_relu_sets_negatives_to_zero():
    values = inverse_relu(jnp.array([-5.0, -0.0, 0.0, 2.0]))
    np.testing.assert_array_equal(values, [0.0, 0.0, 0.0, 2.0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: inverse_sigmoid(0.5, margin=0.5), "margin=0.5.*0 and 0.5"),
        (lambda: inverse_sigmoid(0.5, margin=0.0), "margin=0.0"),
        (lambda: inverse_tanh(0.5, margin=1.0), "margin=1.0.*0 and 1"),
        (lambda: inverse_leaky_relu(1.0, negative_slope=0.0), "inverse_relu"),
        (lambda: inverse_leaky_relu(1.0, negative_slope=np.inf), "negative_slope=inf"),
        (lambda: inverse_relu(1j), "complex.*real"),
        (lambda: projection_loss(jnp.ones(2), jnp.ones(3)), r"\(2,\).*\(3,\)"),
        (lambda: projection_loss(1.0, 1.0), "neurons"),
    ],
)
def test_invalid_arguments_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_margin_and_slope_may_be_traced():
    d = jnp.array([0.0, 1.0])
    traced = jax.jit(lambda m: inverse_sigmoid(d, margin=m))(0.05)
    np.testing.assert_allclose(traced, inverse_sigmoid(d, margin=0.05), rtol=1e-6)
    jax.jit(lambda a: inverse_leaky_relu(d, negative_slope=a))(0.05)
    jax.jit(lambda m: inverse_tanh(d, margin=m))(0.05)


def equation_24(w, x, d, phi, step_size, eps):
    """Eq. 24 for each neuron, in a loop; w is (inputs, neurons)."""
    w = np.array(w)
    for i in range(w.shape[1]):
        error = phi(d[i]) - w[:, i] @ x
        w[:, i] = w[:, i] + step_size * error / (eps + x @ x) * x
    return w


NUMPY_INVERSES = {
    "sigmoid": lambda d: np.log(d / (1 - d)),
    "tanh": np.arctanh,
    "leaky_relu": lambda d: d if d >= 0 else d / 0.01,
    "relu": lambda d: max(d, 0.0),
}


def draw_problem():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((5, 3)), 10 * rng.standard_normal(5)
    return w, x, np.array([0.1, 0.6, 0.9])


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("step_size, eps", [(1.0, 1e-3), (0.4, 2.0)])
def test_nlms_step_is_equation_24(x64, name, step_size, eps):
    w, x, d = draw_problem()

    def loss(w):
        return projection_loss(x @ w, d, PAIRS[name][1])

    stepped = w - step_size * jax.grad(loss)(jnp.asarray(w)) / (eps + x @ x)
    expected = equation_24(w, x, d, NUMPY_INVERSES[name], step_size, eps)
    np.testing.assert_allclose(stepped, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_one_step_meets_the_target_with_the_least_change(x64, name):
    activation, inverse, _ = PAIRS[name]
    w, x, d = draw_problem()
    stepped = w - jax.grad(lambda w: projection_loss(x @ w, d, inverse))(w) / (x @ x)
    np.testing.assert_allclose(activation(x @ stepped), d, rtol=1e-12)
    # Nearest: the change has no part along the hyperplane, only along x.
    along = np.outer(x, x @ (stepped - w) / (x @ x))
    np.testing.assert_allclose(stepped - w, along, rtol=0, atol=1e-12)


def test_a_saturated_neuron_learns_at_once():
    x, d = jnp.array([1.0, 1.0]), jnp.array([0.1])
    w = jnp.array([[50.0], [50.0]])  # sigmoid(100) = 1: its own gradient is 0
    plain = jax.grad(lambda w: jnp.sum((nn.sigmoid(x @ w) - d) ** 2))(w)
    np.testing.assert_array_equal(plain, np.zeros((2, 1)))
    g = jax.grad(lambda w: projection_loss(x @ w, d, inverse_sigmoid))(w)
    np.testing.assert_allclose(nn.sigmoid(x @ (w - g / 2)), d, rtol=1e-4)


def test_linear_neurons_need_no_inverse():
    z, d = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 2))
    np.testing.assert_allclose(projection_loss(z, d), [2.5, 12.5], rtol=1e-6)


def test_no_gradient_flows_into_the_targets():
    loss = functools.partial(projection_loss, inverse_activation=inverse_tanh)
    grad = jax.grad(loss, argnums=1)(jnp.array([1.0]), jnp.array([0.3]))
    np.testing.assert_array_equal(grad, [0.0])


@pytest.mark.parametrize("inverse", [inverse_sigmoid, inverse_tanh])
@pytest.mark.parametrize(
    ("dtype", "margin"),
    [(jnp.bfloat16, 1e-3), (jnp.float16, 1e-9), (jnp.float32, 1e-8)],
)
def test_a_margin_below_the_dtype_s_resolution_gives_no_infinity(
    inverse, dtype, margin
):
    ends = jnp.array([-1.0, 0.0, 1.0], dtype)
    assert np.isfinite(inverse(ends, margin=margin)).all()
