"""The library against the NumPy reference of Algorithm 1."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    capture_input_norms,
    dampened_trace,
    insgd,
    insgd_as_released,
    lms_newton,
)
from tests.insgd_optax.references.algorithm1_reference import (
    Algorithm1,
    batch_norm_to_the_p,
)

STEPS = 10


class TwoLayers(nn.Module):
    """A convolution and a Dense layer side by side, each with an input of its own."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image, vector):
        nn.Conv(3, (3, 3), param_dtype=self.dtype, name="conv")(image)
        nn.Dense(2, param_dtype=self.dtype, name="dense")(vector)


def data(dtype, scale):
    """Weights, then inputs and gradients per step; `scale` sets how far P is from 1."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv/kernel": (3, 3, 2, 3),
        "conv/bias": (3,),
        "dense/kernel": (5, 2),
        "dense/bias": (2,),
    }
    weights = {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}
    steps = []
    for _ in range(STEPS):
        image = scale * rng.normal(size=(4, 6, 5, 2))
        vector = scale * rng.normal(size=(4, 5))
        grads = {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}
        steps.append((image.astype(dtype), vector.astype(dtype), grads))
    return weights, steps


def nested(flat):
    tree = {"conv": {}, "dense": {}}
    for name, value in flat.items():
        layer, leaf = name.split("/")
        tree[layer][leaf] = jnp.asarray(value)
    return tree


def layer_of(scope):
    names = ["kernel"] if scope == "kernel" else ["kernel", "bias"]
    return {f"{layer}/{n}": layer for layer in ("conv", "dense") for n in names}


def sown_by_capture(p, dtype, steps):
    model = TwoLayers(dtype)
    variables = {"params": nested(data(dtype, 1.0)[0])}

    @jax.jit
    def sow(image, vector):
        with capture_input_norms(p):
            return model.apply(variables, image, vector, mutable=["intermediates"])[1]

    return [sow(image, vector)["intermediates"] for image, vector, _ in steps]


@functools.cache
def optimizer(scope, options):
    """INSGD and its step, compiled once for all norms."""
    tx = insgd(0.1, eps=0.01, scope=scope, **dict(options))

    @jax.jit
    def update(params, state, grads, norms):
        updates, state = tx.update(grads, state, params, input_norms=norms)
        return optax.apply_updates(params, updates), state

    return tx, update


def assert_steps_agree(weights, steps, sown, p, options, scope, tolerance):
    reference = Algorithm1(
        weights,
        layer_of(scope),
        learning_rate=0.1,
        decay=options["power_decay"],
        eps=0.01,
        **{k: v for k, v in options.items() if k != "power_decay"},
    )
    tx, update = optimizer(scope, tuple(options.items()))
    params = nested(weights)
    state = tx.init(params)
    for (image, vector, grads), norms in zip(steps, sown, strict=True):
        params, state = update(params, state, nested(grads), norms)
        reference.step(
            grads,
            {
                "conv": batch_norm_to_the_p(image, p),
                "dense": batch_norm_to_the_p(vector, p),
            },
        )
        for name, expected in reference.weights.items():
            layer, leaf = name.split("/")
            error = np.abs(np.asarray(params[layer][leaf], np.float64) - expected)
            assert error.max() <= tolerance * np.abs(expected).max(), (name, options)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_every_option_matches_the_reference_in_float64(p, x64):
    weights, steps = data(np.float64, 1.0)
    sown = sown_by_capture(p, np.float64, steps)
    momenta = itertools.cycle(
        itertools.product([(0.9, 0.0), (0.9, 0.9), (0.5, 0.2)], [False, True])
    )
    for decay, normalizer, scope, weight_decay in itertools.product(
        [0.0, 0.5, 0.9], ["log", "power", "log1p"], ["kernel", "layer"], [0.0, 0.01]
    ):
        (momentum, dampening), nesterov = next(momenta)
        options = {
            "power_decay": decay,
            "normalizer": normalizer,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
        }
        assert_steps_agree(weights, steps, sown, p, options, scope, 1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_float32_matches_the_reference_with_powers_away_from_one(p):
    weights, steps = data(np.float32, 5.0)
    sown = sown_by_capture(p, np.float32, steps)
    options = {
        "power_decay": 0.9,
        "normalizer": "log",
        "weight_decay": 0.01,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": False,
    }
    assert_steps_agree(weights, steps, sown, p, options, "kernel", 1e-5)


def test_the_paper_s_algorithm_is_dampening_equal_to_momentum(x64):
    """Algorithm 1 to the letter: b_t = gamma b + (1 - gamma) g, with b_1 = g_1."""
    tx = insgd(1.0, momentum=0.9, dampening=0.9)
    params = {"dense": {"kernel": jnp.zeros((1, 1))}}
    state = tx.init(params)
    # log P is 2 at both steps, so the gradients enter as 1 and 3.
    norms = {"dense": {"input_norm": jnp.exp(2.0)}}
    for grad, expected in [(2.0, 1.0), (6.0, 0.9 * 1.0 + 0.1 * 3.0)]:
        grads = {"dense": {"kernel": jnp.full((1, 1), grad)}}
        updates, state = tx.update(grads, state, params, input_norms=norms)
        np.testing.assert_allclose(updates["dense"]["kernel"], -expected, rtol=1e-12)


def test_dampened_trace_has_the_dtypes_of_optax_s_trace():
    params = {"w": jnp.ones(2, jnp.bfloat16), "frozen": jnp.ones(2)}
    grads = {"w": jnp.ones(2, jnp.float32), "frozen": None}
    for nesterov in (False, True):
        expected, _ = optax.trace(0.9, nesterov).update(
            grads, optax.trace(0.9, nesterov).init(params)
        )
        tx = dampened_trace(0.9, 0.5, nesterov)
        state = tx.init(params)
        updates, after = tx.update(grads, state)
        assert updates["frozen"] is None
        assert updates["w"].dtype == expected["w"].dtype == jnp.float32
        np.testing.assert_array_equal(updates["w"], expected["w"])
        jax.tree.map(lambda a, b: np.testing.assert_(a.dtype == b.dtype), after, state)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: dampened_trace(2.0), "decay"),
        (lambda: insgd_as_released(0.1, momentum=2.0), "momentum"),
        (lambda: lms_newton(0.1, covariance_decay=2.0), "covariance_decay"),
        (lambda: lms_newton(0.1, momentum=2.0), "momentum"),
    ],
)
def test_errors_name_the_option_that_was_given(make, name):
    with pytest.raises(ValueError, match=rf"^{name}=2.0 must lie in \[0, 1\)"):
        make()
