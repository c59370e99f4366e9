"""Each network starts from the distributions that its docstring names."""

import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import models


def uniform_by_fan_in(w, fan_in):
    """PyTorch's default: U(-b, b) with b = 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    assert np.abs(w).max() <= bound
    assert_like(w, std=bound / math.sqrt(3), largest=bound)


def normal(w, std):
    assert_like(w, std=std, largest=None)


def assert_like(w, std, largest):
    """Mean and standard deviation within five standard errors of the sample."""
    error = 5 * std / math.sqrt(w.size)
    assert abs(w.mean()) < error
    assert abs(w.std() - std) < error
    if largest and w.size > 100:
        assert np.abs(w).max() > 0.9 * largest


def fans(kernel):
    area = math.prod(kernel.shape[:-2])
    return area * kernel.shape[-2], area * kernel.shape[-1]


@pytest.mark.parametrize("name", models.names())
def test_initial_parameters_have_the_documented_distributions(name, tiny):
    params = flatten_dict(tiny(name)[1]["params"], sep="/")
    for path, w in params.items():
        layer, _, kind = path.rpartition("/")
        w = np.asarray(w, np.float64)
        if "Norm" in layer:
            assert np.all(w == (kind == "scale"))
        elif kind in ("class_token", "positions"):
            normal(w, 1.0)
        elif kind == "bias" and name.startswith("mobilenet"):
            assert not w.any()
        elif kind == "bias":
            uniform_by_fan_in(w, fans(params[f"{layer}/kernel"])[0])
        elif name.startswith("mobilenet") and layer in ("Dense_0", "Dense_1"):
            normal(w, 0.01)
        elif name.startswith("mobilenet") or (name == "resnet50" and "Conv" in layer):
            normal(w, math.sqrt(2 / fans(w)[1]))
        else:
            uniform_by_fan_in(w, fans(w)[0])


def test_biases_of_convolutions_are_drawn_too(digits, quick_jit):
    model = models.tiny("custom_cnn", batch_norm=False)
    init = quick_jit(lambda key, x: model.init(key, x, train=False))
    params = init(jax.random.key(0), digits[0])["params"]
    for layer in range(4):
        fan_in, _ = fans(params[f"Conv_{layer}"]["kernel"])
        uniform_by_fan_in(np.asarray(params[f"Conv_{layer}"]["bias"]), fan_in)
