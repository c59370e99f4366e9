"""Capture for NNX: the norms that Linen layers sow, and the context itself."""

import doctest
import pathlib
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import insgd_optax
from insgd_optax import input_powers, insgd, scale_by_input_power
from insgd_optax.nnx import capture_input_norms, input_norm_shapes
from tests.insgd_optax.nnx_models import CNN, MLP, Block, array, captured, rngs


def captured_linen(model, x, p=2, **options):
    @jax.jit
    def sow(x):
        variables = model.init(jax.random.key(0), x)
        return model.apply(variables, x, mutable=["intermediates"])[1]

    with insgd_optax.capture_input_norms(p, **options):
        return sow(x)["intermediates"]


CONV = {"strides": (2, 1), "padding": [(1, 2), (0, 1)], "kernel_dilation": (1, 2)}
LAYERS = {
    "dense": (nnx.Linear(4, 3, rngs=rngs()), nn.Dense(3), (5, 4)),
    "tokens": (nnx.Linear(4, 3, rngs=rngs()), nn.Dense(3), (5, 7, 4)),
    "general": (
        nnx.LinearGeneral((3, 4), (2, 5), axis=(1, -1), rngs=rngs()),
        nn.DenseGeneral((2, 5), axis=(1, -1)),
        (6, 3, 2, 4),
    ),
    "batched": (
        nnx.LinearGeneral(4, 5, axis=-1, batch_axis={0: 2}, rngs=rngs()),
        nn.DenseGeneral(5, axis=-1, batch_dims=0),
        (2, 3, 4),
    ),
    "einsum": (
        nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=rngs()),
        nn.Einsum((8, 2, 4), "nta,hab->nthb", use_bias=False),
        (3, 5, 2),
    ),
    "conv": (
        nnx.Conv(4, 6, (3, 3), rngs=rngs(), **CONV),
        nn.Conv(6, (3, 3), **CONV),
        (2, 8, 9, 4),
    ),
    "grouped": (
        nnx.Conv(4, 6, 3, feature_group_count=2, padding="CIRCULAR", rngs=rngs()),
        nn.Conv(6, (3,), feature_group_count=2, padding="CIRCULAR"),
        (2, 8, 4),
    ),
    "transpose": (
        nnx.ConvTranspose(4, 6, (3, 3), strides=(2, 2), rngs=rngs()),
        nn.ConvTranspose(6, (3, 3), strides=(2, 2)),
        (2, 5, 4, 4),
    ),
}


READINGS = [
    (name, conv_input)
    for name in LAYERS
    for conv_input in ("feature_map", "patch")
    if conv_input == "feature_map" or hasattr(LAYERS[name][0], "kernel_size")
]


@pytest.mark.parametrize("p", [1, jnp.inf])
@pytest.mark.parametrize("name, conv_input", READINGS)
def test_layers_sow_the_norms_of_their_linen_counterparts(name, conv_input, p):
    layer, linen, shape = LAYERS[name]
    x = array(*shape)
    expected = captured_linen(linen, x, p, conv_input=conv_input)
    ours = captured(layer, x, p=p, conv_input=conv_input)
    assert list(ours) == ["input_norm"]
    (ours,), (expected,) = ours["input_norm"], expected["input_norm"]
    assert ours.ndim == layer.kernel.ndim
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-6, strict=True)


@pytest.mark.parametrize(
    "layer, linen",
    [
        (nnx.BatchNorm(4, rngs=rngs()), nn.BatchNorm(use_running_average=False)),
        (nnx.LayerNorm(4, rngs=rngs()), nn.LayerNorm()),
        (nnx.RMSNorm(4, rngs=rngs()), nn.RMSNorm()),
        (nnx.GroupNorm(4, num_groups=2, rngs=rngs()), nn.GroupNorm(num_groups=2)),
        (nnx.InstanceNorm(4, rngs=rngs()), nn.InstanceNorm()),
    ],
)
def test_normalization_layers_sow_only_on_request(layer, linen):
    x = array(3, 5, 4)
    assert captured(layer, x) == {}
    init = jax.jit(lambda x: linen.init(jax.random.key(0), x, mutable=True))
    with insgd_optax.capture_input_norms(norm_layers=True):
        variables = init(x)
    (expected,) = variables["intermediates"]["input_norm"]
    (ours,) = captured(layer, x, norm_layers=True)["input_norm"]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, strict=True)


def test_attention_sows_in_each_of_its_four_layers():
    attention = nnx.MultiHeadAttention(2, in_features=4, decode=False, rngs=rngs())
    x = array(3, 5, 4)
    norms = captured(attention, x)
    assert set(norms) == {"query", "key", "value", "out"}
    power = np.mean(np.sum(np.square(x), axis=-1))
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(norms[name]["input_norm"][0].item(), power, 1e-6)
    assert norms["out"]["input_norm"][0].shape == (1, 1, 1)


def test_half_precision_is_summed_in_float32(x64):
    x = jnp.full((2, 1000), 1.0, jnp.bfloat16)
    (norm,) = captured(nnx.Linear(1000, 1, rngs=rngs()), x)["input_norm"]
    assert norm.dtype == jnp.float32 and norm.item() == 1000
    (norm,) = captured(nnx.Linear(1000, 1, rngs=rngs()), x.astype(float))["input_norm"]
    assert norm.dtype == jnp.float64


# The context


def test_nothing_is_sown_outside_the_context_or_outside_nnx_capture():
    model, x = MLP(rngs()), array(3, 5)
    before = nnx.graphdef(model)
    _, norms = nnx.capture(model, nnx.Intermediate)(x)
    assert nnx.to_pure_dict(norms) == {}
    with capture_input_norms():
        model(x)
    assert nnx.graphdef(model) == before
    with pytest.raises(ValueError, match=r"(?s)first/kernel.*nnx\.capture"):
        nnx.Optimizer(model, insgd(0.1), wrt=nnx.Param).update(
            model, nnx.state(model, nnx.Param), input_norms=norms
        )


def test_norms_are_cut_off_from_differentiation():
    def norm(x):
        return captured(MLP(rngs()), x)["second"]["input_norm"][0].sum()

    gradient = jax.grad(norm)(array(3, 5))
    np.testing.assert_array_equal(gradient, np.zeros((3, 5)))


def test_inputs_may_be_passed_by_keyword():
    class Keyword(Block):
        def __call__(self, x):
            return self.linear(out_sharding=None, inputs=x)

    (norm,) = captured(Keyword(rngs()), jnp.ones((3, 4)))["linear"]["input_norm"]
    assert norm.item() == 4


def test_the_inner_context_wins():
    model, x = nnx.Linear(4, 3, rngs=rngs()), 2 * jnp.ones((3, 4))
    with capture_input_norms(p=2):
        with capture_input_norms(p=1):
            _, inner = nnx.capture(model, nnx.Intermediate)(x)
        _, outer = nnx.capture(model, nnx.Intermediate)(x)
    assert inner["input_norm"].get_value()[0].item() == 8
    assert outer["input_norm"].get_value()[0].item() == 16


class Doubled(nnx.Linear):
    def __call__(self, x):
        return super().__call__(2 * x)


class Overriding(nnx.Linear):
    def __call__(self, x):
        return x @ self.kernel[...]


class Inheriting(Doubled):
    pass


class Forwarding(nnx.Linear):
    def __call__(*args, **kwargs):  # as a decorator without `functools.wraps` leaves it
        self, *args = args
        return nnx.Linear.__call__(self, *args, **kwargs)


class ForwardingAlone(nnx.Linear):
    def __call__(*args):
        self, x = args
        return x @ self.kernel[...]


class Compiled(nnx.Linear):
    @nnx.jit
    def __call__(self, x):  # on a copy of the layer
        return super().__call__(2 * x)


@pytest.mark.parametrize(
    "layer, power",
    [
        (Doubled, 16),
        (Overriding, 4),
        (Inheriting, 16),
        (Forwarding, 4),
        (ForwardingAlone, 4),
        (Compiled, 16),
        (nnx.LoRALinear, 4),
    ],
)
def test_subclasses_sow_once_from_the_input_of_their_kernel(layer, power):
    options = {"lora_rank": 1} if layer is nnx.LoRALinear else {}
    norms = captured(layer(4, 3, rngs=rngs(), **options), jnp.ones((2, 4)))
    assert [norm.item() for norm in norms["input_norm"]] == [power]


class Scale(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return x * self.kernel[...][None]


class InheritedScale(Scale):
    pass


@pytest.mark.parametrize("kind", [Scale, InheritedScale])
@pytest.mark.parametrize("axis, power", [(-1, 4), ((0, 1), 12)])
def test_custom_layers_sow_if_listed(kind, axis, power):
    layers = {kind: axis} if axis != -1 else [kind]
    (norm,) = captured(kind(), jnp.ones((3, 4)), layers=layers)["input_norm"]
    assert norm.item() == power
    assert ("__call__" in vars(kind)) == (kind is Scale)


CLASSES = [nnx.Linear, nnx.Conv, nnx.Einsum, nnx.RNN, nnx.BatchNorm, Doubled, Scale]


@pytest.fixture(autouse=True)
def classes_are_restored():
    before = [vars(kind)["__call__"] for kind in CLASSES]
    yield
    assert [vars(kind)["__call__"] for kind in CLASSES] == before


def test_classes_are_restored_after_an_exception():
    before = vars(nnx.Linear)["__call__"]
    inside = capture_input_norms(norm_layers=True, layers=[Scale])
    with pytest.raises(RuntimeError, match="inside"), inside:
        assert vars(nnx.Linear)["__call__"] is not before
        assert vars(Scale)["__call__"].__wrapped__ is not None
        raise RuntimeError("inside")
    assert vars(nnx.Linear)["__call__"] is before
    assert captured(Scale(), jnp.ones((1, 4))) == {}


def test_threads_do_not_see_each_other_s_contexts():
    first_is_open, second_is_done = threading.Event(), threading.Event()
    sown = {}

    def first():
        with capture_input_norms(p=1):
            first_is_open.set()
            assert second_is_done.wait(60)
            _, sown["first"] = nnx.capture(
                nnx.Linear(4, 3, rngs=rngs()), nnx.Intermediate
            )(2 * jnp.ones((3, 4)))

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_open.wait(60)
    layer, x = nnx.Linear(4, 3, rngs=rngs()), 2 * jnp.ones((3, 4))
    _, sown["outside"] = nnx.capture(layer, nnx.Intermediate)(x)
    with capture_input_norms(p=2):
        _, sown["second"] = nnx.capture(layer, nnx.Intermediate)(x)
    second_is_done.set()
    thread.join()
    assert nnx.to_pure_dict(sown["outside"]) == {}
    assert sown["second"]["input_norm"].get_value()[0].item() == 16
    assert sown["first"]["input_norm"].get_value()[0].item() == 8


def test_other_intermediates_are_kept_and_ignored():
    class Sowing(Block):
        def __call__(self, x):
            self.sow(nnx.Intermediate, "features", x)
            return self.linear(x)

    norms = captured(Sowing(rngs()), jnp.ones((3, 4)))
    assert set(norms) == {"features", "linear"}
    params = nnx.state(Sowing(rngs()), nnx.Param)
    tx = scale_by_input_power()
    _, state = tx.update(params, tx.init(params), input_norms=norms)
    assert input_powers(state)["linear/kernel"] == 4


def test_method_outputs_can_be_captured_at_the_same_time():
    with capture_input_norms():
        _, outputs, norms = nnx.capture(
            MLP(rngs()), OutputType, nnx.Intermediate, method_outputs=OutputType
        )(array(3, 5))
    assert set(nnx.to_pure_dict(norms)["first"]) == {"input_norm"}
    assert set(nnx.to_pure_dict(outputs)["first"]) == {"__call__"}


class OutputType(nnx.Variable):
    pass


def test_hand_written_layers_sow_in_one_line():
    class Own(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((4, 2)))

        def __call__(self, x):
            self.sow(nnx.Intermediate, "input_norm", insgd_optax.input_norm(x, p=2))
            return x @ self.kernel[...]

    params, tx = nnx.state(Own(), nnx.Param), scale_by_input_power()
    norms = captured(Own(), jnp.ones((3, 4)))
    _, state = tx.update(params, tx.init(params), input_norms=norms)
    assert input_powers(state)["kernel"] == 4


def test_input_norm_shapes_leaves_the_model_unchanged():
    model = CNN(rngs())
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    graphdef = nnx.graphdef(model)
    with capture_input_norms():
        shapes = input_norm_shapes(model, x=array(1, 6, 6, 2))
    assert nnx.graphdef(model) == graphdef
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before
    )
    (shape,) = shapes["conv2"]["input_norm"].get_value()
    assert shape == jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)


def test_errors_say_what_to_do():
    model, x = MLP(rngs()), array(3, 5)
    with pytest.raises(ValueError, match="p=0.5 names no norm"):
        captured(model, x, p=0.5)
    with pytest.raises(ValueError, match="conv_input='whole' is not known"):
        captured(model, x, conv_input="whole")
    with pytest.raises(TypeError, match=r"not a subclass of flax\.nnx\.Module"):
        captured(model, x, layers=[nn.Dense])
    with pytest.raises(ValueError, match="MLP sows no input norm: .*capture"):
        input_norm_shapes(model, x)


class Switched(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, train):
        return self.linear(x) if train else x


def test_input_norm_shapes_takes_flags_and_abstract_keywords():
    x = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    with capture_input_norms():
        for shapes in (
            input_norm_shapes(Switched(), x, True),
            input_norm_shapes(Switched(), x=x, train=True),
        ):
            assert shapes["linear"]["input_norm"].get_value()[0].shape == (1, 1)


def test_the_examples_on_the_page_pass():
    page = pathlib.Path(__file__).parents[2] / "docs" / "nnx.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 20 and results.failed == 0
