"""Real images, and each network's tiny variant with its initial parameters."""

import functools

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import models


@pytest.fixture(scope="session")
def digits():
    """16 handwritten digits as 16x16 images of three channels, and their labels."""
    data = load_digits()
    images = data.images[:16].astype(np.float32)
    images = (images - images.mean()) / images.std()
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    return np.stack([images] * 3, axis=-1), data.target[:16]


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit` for functions that run a few times: compiles in a third of the time."""
    options = {"xla_backend_optimization_level": 0}
    if jax.__version_info__ < (0, 11):  # Later compilers have no such switch.
        options["xla_cpu_use_fusion_emitters"] = False
    return functools.partial(jax.jit, compiler_options=options)


@pytest.fixture(scope="session")
def tiny(digits, quick_jit):
    """Maps a name to the tiny variant and its variables, made once."""

    @functools.cache
    def make(name):
        model = models.tiny(name)
        init = quick_jit(functools.partial(model.init, train=False))
        return model, init(jax.random.key(0), digits[0])

    return make
