"""The effects of the networks' options, by shapes and by exact values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import models
from models import layers
from models.resnet import ResidualBlock


def shapes_of(model, size=32):
    """A network's parameter shapes, keyed "Conv_0/kernel"."""
    x = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    flat = flatten_dict(variables["params"], sep="/")
    return {path: w.shape for path, w in flat.items()}, variables


@pytest.mark.parametrize("name", ["custom_cnn", "resnet20"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_convolutions_have_biases_only_without_batch_norm(name, batch_norm):
    shapes, variables = shapes_of(models.create(name, batch_norm=batch_norm))
    kernels = [path for path in shapes if path.endswith("kernel") and "Conv" in path]
    assert len(kernels) == {"custom_cnn": 4, "resnet20": 21}[name]
    biases = {path.replace("kernel", "bias") for path in kernels}
    assert biases & set(shapes) == (set() if batch_norm else biases)
    assert any("BatchNorm" in path for path in shapes) == batch_norm
    assert ("batch_stats" in variables) == batch_norm


def test_identity_shortcut_strides_and_pads_with_zero_channels():
    block = ResidualBlock(
        features=5,
        stride=2,
        bottleneck=False,
        shortcut="identity",
        conv=functools.partial(layers.conv, dtype=jnp.float32),
        norm=lambda x, scale_init=None: x,
        last_scale_init=jax.nn.initializers.ones,
    )
    x = jnp.arange(1.0, 1 + 2 * 5 * 5 * 3).reshape(2, 5, 5, 3)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x))
    y = block.apply(jax.tree.map(lambda w: jnp.zeros(w.shape), shapes), x)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], jnp.zeros((2, 3, 3, 2)))


def test_zero_init_residual_zeroes_only_each_blocks_last_scale(digits, quick_jit):
    model = models.tiny("resnet50", zero_init_residual=True)
    init = quick_jit(functools.partial(model.init, train=False))
    params = flatten_dict(init(jax.random.key(0), digits[0])["params"], sep="/")
    scales = {path: w for path, w in params.items() if path.endswith("scale")}
    zeros = {path for path, w in scales.items() if not w.any()}
    assert zeros == {f"stage_{stage}_block_1/BatchNorm_2/scale" for stage in (1, 2)}
    assert all((w == 1).all() for path, w in scales.items() if path not in zeros)


def test_width_widens_every_convolution_of_wrn18():
    narrow, _ = shapes_of(models.create("wrn18"))
    wide, _ = shapes_of(models.create("wrn18", width=640))
    for path, shape in narrow.items():
        if path.endswith("kernel") and len(shape) == 4:
            assert wide[path][-1] == 10 * shape[-1]


# The channels of each gate's two layers, rounded as torchvision rounds them.
GATES = {
    "mobilenet_v3_large": {
        4: (72, 24),
        5: (120, 32),
        6: (120, 32),
        11: (480, 120),
        12: (672, 168),
        13: (672, 168),
        14: (960, 240),
        15: (960, 240),
    },
    "mobilenet_v3_small": {
        1: (16, 8),
        4: (96, 24),
        5: (240, 64),
        6: (240, 64),
        7: (120, 32),
        8: (144, 40),
        9: (288, 72),
        10: (576, 144),
        11: (576, 144),
    },
}


@pytest.mark.parametrize("name", GATES)
def test_gates_and_depthwise_convolutions_are_those_of_torchvision(name):
    shapes, _ = shapes_of(models.create(name))
    gates = {}
    for path, shape in shapes.items():
        block, *layer = path.split("/")
        if layer == ["SqueezeExcite_0", "Dense_0", "kernel"]:
            gates[int(block.removeprefix("block_"))] = shape
        if layer == ["SqueezeExcite_0", "Dense_1", "kernel"]:
            assert shape == gates[int(block.removeprefix("block_"))][::-1]
    assert gates == GATES[name]
    depthwise = [s for s in shapes.values() if len(s) == 4 and s[0] > 1 and s[2] == 1]
    assert len(depthwise) == {"mobilenet_v3_large": 15, "mobilenet_v3_small": 11}[name]


@pytest.mark.parametrize(
    "name, option, value, choices",
    [
        ("resnet20", "shortcut", "A", "'projection', 'identity'"),
        ("mobilenet_v3_small", "stem", "CIFAR", "'imagenet', 'cifar'"),
    ],
)
def test_unknown_choice_lists_the_choices(name, option, value, choices):
    with pytest.raises(ValueError) as error:
        shapes_of(models.create(name, **{option: value}))
    assert f"{option}={value!r}; choose one of {choices}" in str(error.value)


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="width=64 and heads=3"):
        shapes_of(models.tiny("vit", heads=3))


def test_patches_must_tile_the_image():
    with pytest.raises(ValueError, match="multiples of its patch, 4; got 30x30"):
        shapes_of(models.tiny("vit"), size=30)


def test_layer_norm_can_be_left_out():
    with_norm, _ = shapes_of(models.create("vit"))
    without, _ = shapes_of(models.create("vit", layer_norm=False))
    norms = [path for path in with_norm if "LayerNorm" in path]
    assert len(norms) == 2 * (2 * 6 + 1)
    assert set(with_norm) - set(without) == set(norms)


def unstack(params):
    """The parameters of the unscanned tiny ViT from those of the scanned one."""
    params = dict(params)
    blocks = params.pop("blocks")
    first = jax.tree.map(lambda w: w[0], blocks)
    second = jax.tree.map(lambda w: w[1], blocks)
    return {**params, "block_1": first, "block_2": second}


def test_scan_and_remat_change_neither_logits_nor_gradients(digits, quick_jit):
    images, labels = digits
    scanned = models.tiny("vit", scan_layers=True, dropout=0.0)
    init = quick_jit(functools.partial(scanned.init, train=False))
    params = init(jax.random.key(0), images)["params"]

    @functools.partial(quick_jit, static_argnums=0)
    def run(model, params):
        def loss_fn(params):
            params = params if model.scan_layers else unstack(params)
            logits = model.apply({"params": params}, images, train=True)
            log_probabilities = jax.nn.log_softmax(logits)
            return -log_probabilities[jnp.arange(len(labels)), labels].mean(), logits

        return jax.grad(loss_fn, has_aux=True)(params)

    expected = run(scanned.clone(scan_layers=False), params)
    for options in (
        {"scan_layers": True},
        {"scan_layers": False, "remat": True},
        {"scan_layers": True, "remat": True},
    ):
        result = run(scanned.clone(**options), params)
        for a, b in zip(
            jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_scanned_layers_draw_their_own_parameters_and_dropout(digits, quick_jit):
    images, _ = digits
    model = models.tiny("vit", scan_layers=True)

    @quick_jit
    def run(key):
        variables = model.init(key, images, train=False)
        _, captured = model.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )
        return variables["params"]["blocks"], captured["intermediates"]["blocks"]

    params, dropped = run(jax.random.key(0))
    kernels = [w for path, w in flatten_dict(params).items() if path[-1] == "kernel"]
    assert all(not np.array_equal(w[0], w[1]) for w in kernels)
    masks = [y == 0 for y in jax.tree.leaves(dropped)]
    assert len(masks) == 3
    assert all(not np.array_equal(mask[0], mask[1]) for mask in masks)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_remat_recomputes(scan_layers, remat):
    model = models.tiny("vit", scan_layers=scan_layers, remat=remat)
    x = jnp.zeros((1, 16, 16, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    program = jax.make_jaxpr(lambda v: model.apply(v, x, train=False))(variables)
    assert ("remat" in str(program)) == remat


def test_remat_changes_no_parameter():
    plain, _ = shapes_of(models.tiny("vit"))
    remat, _ = shapes_of(models.tiny("vit", remat=True))
    assert plain == remat
