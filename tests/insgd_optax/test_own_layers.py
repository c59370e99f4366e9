"""Custom layer types: one axis does not fit every class and every call."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from insgd_optax import capture_input_covariances, capture_input_norms, input_norm
from insgd_optax._capture_stack import active_captures
from insgd_optax._layer_types import layers_key
from insgd_optax.nnx import capture_input_norms as nnx_capture_input_norms

X = jnp.arange(12.0).reshape(2, 2, 3)


class General(nn.Module):
    """Like t5x's DenseGeneral: one class for q, k, v and for out."""

    axis: tuple[int, ...] = (-1,)

    @nn.compact
    def __call__(self, x):
        shape = [x.shape[a] for a in self.axis] + [4]
        kernel = self.param("kernel", nn.initializers.ones, shape)
        axes = tuple(a % x.ndim for a in self.axis)
        return jax.lax.dot_general(x, kernel, ((axes, range(len(axes))), ((), ())))


class Masked(nn.Module):
    @nn.compact
    def __call__(self, mask, x):
        return x @ self.param("kernel", nn.initializers.ones, (3, 1)) * mask


class Equation(nn.Module):
    @nn.compact
    def __call__(self, equation, x):
        kernel = self.param("kernel", nn.initializers.ones, (3, 1))
        return jnp.einsum(equation, x, kernel)


class Outer(nn.Module):
    @nn.compact
    def __call__(self, first, x):
        inner = Masked if not isinstance(first, str) else Equation
        return inner(name="inner")(first, x)


def sown_by(model, *args):
    variables = model.init(jax.random.key(0), *args)
    return model.apply(variables, *args, mutable=["intermediates"])[1]["intermediates"]


@pytest.mark.parametrize("axis", [(-1,), (-2, -1)])
def test_a_function_can_measure_each_module_along_its_axes(axis):
    layers = {General: lambda module, call: input_norm(call["x"], 2, axis=module.axis)}
    with capture_input_norms(layers=layers):
        (norm,) = sown_by(General(axis), X)["input_norm"]
    np.testing.assert_allclose(norm, np.sum(np.square(X)) / (4 // len(axis)))


def test_a_function_can_return_the_vectors_of_a_covariance():
    mask = jnp.ones((2, 2, 1), bool)
    layers = {Masked: lambda module, call: call["x"]}
    with capture_input_covariances(layers=layers):
        (covariance,) = sown_by(Masked(), mask, X)["input_covariance"]
    x = np.reshape(X, (-1, 3))
    np.testing.assert_allclose(covariance.factors[0].reshape(3, 3), x.T @ x)
    assert covariance.count == 4


@pytest.mark.parametrize("capture", [capture_input_norms, capture_input_covariances])
@pytest.mark.parametrize(
    ("kind", "first", "what"),
    [
        (Masked, jnp.ones((2, 2, 1), bool), "mask, is an array of bool"),
        (Equation, "btd,df->btf", "equation, is of type str"),
    ],
)
def test_a_first_argument_that_is_not_an_input_is_an_error(capture, kind, first, what):
    with (
        capture(layers=[kind]),
        pytest.raises(ValueError, match=f"{kind.__name__} at inner.*{what}"),
    ):
        sown_by(Outer(), first, X)


@pytest.mark.parametrize("capture", [capture_input_norms, capture_input_covariances])
@pytest.mark.parametrize("own", [5, lambda module, call: call["y"]])
def test_an_axis_or_function_that_fails_names_the_layer(capture, own):
    with (
        capture(layers={Masked: own}),
        pytest.raises(ValueError, match="Masked at inner could not be measured"),
    ):
        sown_by(Outer(), jnp.ones((2, 2, 1)), X)


def test_nnx_takes_a_function_too():
    class Scaled(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((3, 1)))

        def __call__(self, mask, x):
            return x @ self.kernel[...] * mask

    layers = {Scaled: lambda module, call: input_norm(call["x"])}
    mask = jnp.ones((2, 2, 1), bool)
    with nnx_capture_input_norms(layers=layers):
        _, norms = nnx.capture(Scaled(), nnx.Intermediate)(mask, X)
    np.testing.assert_allclose(
        norms["input_norm"].get_value()[0], np.sum(np.square(X)) / 4
    )
    with (
        nnx_capture_input_norms(layers=[Scaled]),
        pytest.raises(ValueError, match="Scaled could not be measured.*mask"),
    ):
        nnx.capture(Scaled(), nnx.Intermediate)(mask, X)


def test_keys_distinguish_functions():
    def one(module, call):
        return call["x"]

    def two(module, call):
        return call["x"]

    keys = [layers_key({General: own}) for own in (one, one, two)]
    assert keys[0] == keys[1] != keys[2] and len(set(keys)) == 2


def test_an_inline_function_has_the_same_key_in_each_pass():
    """If everything that it refers to is the same: then a trace is reused."""

    def key(axis, p=2):
        own = lambda module, call: input_norm(call["x"], p, axis=axis)
        return layers_key({General: own})

    assert key(-1) == key(-1)
    keys = [key(-1), key(-2), key(-1, 1), key(-1, 1.0), key(-1, True)]
    assert len(set(keys)) == len(keys)
    # An array has no hash, and a variable may not be set yet.
    assert key(jnp.ones(2)) != key(jnp.ones(2))
    unset = lambda module, call: later
    assert layers_key({General: unset}) != layers_key({General: unset})
    later = 1
    first = layers_key({General: unset})
    assert layers_key({General: unset}) == first
    later = 2
    assert layers_key({General: unset}) != first


AXIS = -1


def test_a_global_that_a_function_reads_is_part_of_its_key(monkeypatch):
    def key():
        return layers_key({General: lambda module, call: [AXIS for _ in call]})

    before = key()
    assert key() == before
    monkeypatch.setitem(globals(), "AXIS", 1)
    assert key() != before


class Carried(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        return carry, x @ self.param("kernel", nn.initializers.ones, (3, 1))


class Variadic(nn.Module):
    @nn.compact
    def __call__(self, *inputs):
        return inputs[0] @ self.param("kernel", nn.initializers.ones, (3, 1))


@pytest.mark.parametrize("capture", [capture_input_norms, capture_input_covariances])
def test_a_carry_is_not_an_input(capture):
    words = "Carried.*carry, is of type tuple, not a floating"
    with capture(layers=[Carried]), pytest.raises(ValueError, match=words):
        sown_by(Carried(), (X, X), X)


def test_an_input_among_variadic_arguments_is_measured():
    """The parameter of the call is `*inputs`."""
    with capture_input_norms(layers=[Variadic]):
        (norm,) = sown_by(Variadic(), X)["input_norm"]
    np.testing.assert_allclose(norm, np.sum(np.square(X)) / 4)


@pytest.mark.parametrize("when", [np.bool_(True), jnp.array(True), np.bool_(False)])
def test_a_concrete_when_is_part_of_the_key(when):
    """Eager passes with equal keys then share one compiled program."""
    keys = []
    for _ in range(2):
        with capture_input_covariances(when=when):
            (capture,) = active_captures("linen")
            keys.append(capture.key)
            (covariance,) = sown_by(nn.Dense(1), X)["input_covariance"]
    assert keys[0] == keys[1] and covariance.count == (4 if when else 0)
