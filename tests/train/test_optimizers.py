"""Optimizers by name against what they are meant to be."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import insgd_optax
from train import optimizers

PARAMS = {"Dense_0": {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5, 3.0])}}
NORMS = {"Dense_0": {"input_norm": np.full((1, 1), np.exp(4.0))}}
SETTINGS = {
    "momentum": 0.9,
    "weight_decay": 0.01,
    "scope": "kernel",
    "normalizer": "log",
}


def trajectory(tx, steps=4):
    """Parameters after some steps with gradients that change sign and size."""
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(steps):
        grads = {
            "Dense_0": {
                "kernel": np.array([[0.3, -1.0]]) * (step - 1.5),
                "bias": np.array([2.0, 0.1]) * (step + 1),
            }
        }
        updates, state = tx.update(grads, state, params, input_norms=NORMS)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(got, expected):
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            got["Dense_0"][name], expected["Dense_0"][name], rtol=1e-12
        )


def test_sgd_is_pytorchs(x64):
    got = trajectory(optimizers.create("sgd", 0.1, **SETTINGS).tx)
    reference = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))
    assert_close(got, trajectory(optax.with_extra_args_support(reference)))


def test_adam_has_pytorchs_coupled_weight_decay(x64):
    def adam(w, grads):
        m = v = 0.0
        for step, g in enumerate(grads, start=1):
            g = g + 0.01 * w
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
            w = w - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
        return w

    got = trajectory(optimizers.create("adam", 0.1, **SETTINGS).tx)
    kernel = adam(
        PARAMS["Dense_0"]["kernel"],
        [np.array([[0.3, -1.0]]) * (step - 1.5) for step in range(4)],
    )
    np.testing.assert_allclose(got["Dense_0"]["kernel"], kernel, rtol=1e-12)


@pytest.mark.parametrize("name", ["insgd-l1", "insgd-l2"])
@pytest.mark.parametrize("scope", ["kernel", "layer"])
@pytest.mark.parametrize("normalizer", ["log", "power", "log1p"])
def test_insgd_is_the_librarys(x64, name, scope, normalizer):
    settings = SETTINGS | {"scope": scope, "normalizer": normalizer}
    got = trajectory(optimizers.create(name, 0.1, **settings).tx)
    assert_close(got, trajectory(insgd_optax.insgd(0.1, **settings)))


@pytest.mark.parametrize(("name", "p"), [("insgd-l1", 1), ("insgd-l2", 2)])
def test_capture_has_the_norm_of_the_name(name, p):
    import flax.linen as nn

    model, x = nn.Dense(1), jnp.array([[1.0, -3.0]])
    params = model.init(np.zeros(2, np.uint32), x)
    with optimizers.create(name, 0.1, **SETTINGS).capture():
        _, sown = model.apply(params, x, mutable=["intermediates"])
    (norm,) = sown["intermediates"]["input_norm"]
    assert norm.item() == pytest.approx(1 + 3**p)


def test_only_insgd_captures():
    captured = [
        name
        for name in optimizers.NAMES
        if optimizers.create(name, 0.1, **SETTINGS).capture is not None
    ]
    assert captured == ["insgd-l1", "insgd-l2"]
