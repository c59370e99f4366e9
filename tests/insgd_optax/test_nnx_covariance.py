"""NNX models: the same covariances and the same training as in Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import insgd_optax
from insgd_optax import lms_newton
from insgd_optax.nnx import (
    capture_input_covariances,
    capture_input_norms,
    input_covariance_shapes,
)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv")(x))
        return nn.Dense(2, name="dense")(x.reshape(x.shape[0], -1))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(36, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.dense(x.reshape(x.shape[0], -1))


def test_training_matches_that_of_linen():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 2))
    model, linen = Net(nnx.Rngs(0)), LinenNet()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx = lms_newton(0.05, weight_decay=1e-3)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def nnx_step(model, optimizer, when):
        def loss_fn(model):
            with capture_input_covariances(when=when):
                y, sown = nnx.capture(model, nnx.Intermediate)(x)
            return jnp.mean(jnp.sin(y)), sown

        grads, sown = nnx.grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads, input_covariances=sown)

    @jax.jit
    def linen_step(params, state, when):
        def loss_fn(params):
            with insgd_optax.capture_input_covariances(when=when):
                y, sown = linen.apply({"params": params}, x, mutable=["intermediates"])
            return jnp.mean(jnp.sin(y)), sown

        grads, sown = jax.grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, input_covariances=sown)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for step in range(4):
        nnx_step(model, optimizer, step % 2 == 0)
        params, state = linen_step(params, state, step % 2 == 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        params,
    )
    cosines = insgd_optax.covariance_cosines(optimizer.opt_state)
    assert cosines.keys() == {"conv/kernel", "dense/kernel"}


LAYERS = {
    "linear": (lambda rngs: nnx.Linear(4, 3, rngs=rngs), (5, 4)),
    "general": (
        lambda rngs: nnx.LinearGeneral((2, 4), 3, axis=(-2, -1), rngs=rngs),
        (5, 2, 4),
    ),
    "einsum": (
        lambda rngs: nnx.Einsum("bd,hdk->bhk", (2, 4, 3), rngs=rngs),
        (5, 4),
    ),
    "transposed": (
        lambda rngs: nnx.ConvTranspose(2, 3, (3,), strides=2, rngs=rngs),
        (2, 4, 2),
    ),
    "grouped": (
        lambda rngs: nnx.Conv(4, 4, (3,), feature_group_count=2, rngs=rngs),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_input_covariance_shapes_gives_the_form_of_every_layer(name):
    make, shape = LAYERS[name]
    layer = make(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), shape)

    @nnx.jit
    def measured(layer, x):
        with capture_input_covariances():
            return nnx.capture(layer, nnx.Intermediate)(x)[1]

    with capture_input_covariances():
        like = input_covariance_shapes(layer, x)
    params = nnx.state(layer, nnx.Param)
    tx = insgd_optax.scale_by_input_covariance(input_covariances_like=like)
    sown = measured(layer, x)
    _, state = jax.jit(tx.update)(params, tx.init(params), input_covariances=sown)
    (cosine,) = insgd_optax.covariance_cosines(state).values()
    assert 0 < cosine < 1


def test_a_missing_capture_is_an_error():
    with pytest.raises(ValueError, match="input_covariance_shapes inside"):
        input_covariance_shapes(Net(nnx.Rngs(0)), jnp.ones((1, 6, 6, 2)))


def test_an_equation_in_the_call_takes_the_place_of_the_layer_s():
    class Summed(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Einsum("bij,jo->bio", (4, 3), rngs=rngs)

        def __call__(self, x):
            return self.layer(x, "bij,jo->bo")

    x = jax.random.normal(jax.random.key(0), (5, 2, 4))
    with capture_input_covariances(), capture_input_norms(p=2):
        _, sown = nnx.capture(Summed(nnx.Rngs(0)), nnx.Intermediate)(x)
    sown = nnx.to_pure_dict(sown)["layer"]
    (covariance,), (norm,) = sown["input_covariance"], sown["input_norm"]
    rows = np.asarray(x.sum(axis=1))
    assert covariance.count == len(rows)
    np.testing.assert_allclose(
        covariance.factors[0].reshape(4, 4), rows.T @ rows, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(norm, np.square(rows).sum(1).mean(), rtol=1e-5)
