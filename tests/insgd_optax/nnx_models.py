"""Helpers of the tests of NNX capture: arrays, models and one captured call."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from insgd_optax.nnx import capture_input_norms


def array(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def captured(model, *args, p=2, **options):
    """The values that one call of an NNX model sows."""
    with capture_input_norms(p, **options):
        _, norms = nnx.capture(model, nnx.Intermediate)(*args)
    return nnx.to_pure_dict(norms)


def rngs():
    return nnx.Rngs(0)


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), strides=2, feature_group_count=4, rngs=rngs)
        self.linear = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        return self.linear(nnx.relu(self.conv2(x)).mean(axis=(1, 2)))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.linear(x))
