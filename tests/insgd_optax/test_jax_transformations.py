"""Models that call a layer inside a transformation of JAX, not of Flax."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import insgd_optax.nnx
from insgd_optax import capture_input_norms

X = jax.random.normal(jax.random.key(0), (5, 4))


class Around(nn.Module):
    around: Callable

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        return layer(x) if self.is_initializing() else self.around(layer, x)


class NNXAround(nnx.Module):
    def __init__(self, around):
        self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.around = around

    def __call__(self, x):
        return self.around(self.layer, x)


def linen_norms(around):
    model = Around(around)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    with capture_input_norms():
        _, sown = model.apply(variables, X, mutable=["intermediates"])
    return sown["intermediates"]["layer"]["input_norm"]


def nnx_norms(around):
    with insgd_optax.nnx.capture_input_norms():
        _, sown = nnx.capture(NNXAround(around), nnx.Intermediate)(X)
    return sown["layer"]["input_norm"].get_value()


@pytest.mark.parametrize(
    "around",
    [
        lambda layer, x: jax.vmap(layer)(x),
        lambda layer, x: jax.jit(lambda x: layer(x))(x),
        lambda layer, x: jax.checkpoint(lambda x: layer(x))(x),
        lambda layer, x: jax.lax.scan(lambda x, _: (layer(x), None), x, length=2)[0],
    ],
)
def test_a_layer_inside_a_transformation_of_jax_is_an_error(around):
    with pytest.raises(ValueError, match=r"Dense at layer inside.*nn\.vmap"):
        linen_norms(around)
    with pytest.raises(ValueError, match=r"Linear inside.*nnx\.vmap"):
        nnx_norms(around)


@pytest.mark.parametrize("norms", [linen_norms, nnx_norms])
@pytest.mark.parametrize(
    "around",
    [
        lambda layer, x: jax.grad(lambda x: layer(x).sum())(x),
        lambda layer, x: jax.jvp(layer, (x,), (x,))[1],
        lambda layer, x: jax.vmap(lambda scale: layer(x) * scale)(jnp.arange(3.0)),
    ],
)
def test_a_layer_whose_input_is_that_of_the_model_sows(norms, around):
    (norm,) = norms(around)
    np.testing.assert_allclose(norm, [[np.mean(np.sum(X**2, -1))]], rtol=1e-6)
