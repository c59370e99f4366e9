"""The networks' arithmetic against plain NumPy."""

import functools

import jax
import numpy as np
import pytest

import models
from models import layers
from models.mobilenet_v3 import Block, InvertedResidual
from models.resnet import ResidualBlock
from models.vit import EncoderBlock
from tests.models import numpy_reference

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 against float64
FLOAT32 = {"dtype": np.float32}
NORM = functools.partial(layers.batch_norm, train=True, axis_name=None, **FLOAT32)


def random_variables(module, *args, **kwargs):
    """Random values, because many initial parameters are equal: ones or zeros."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return treedef.unflatten(
        [rng.normal(0.3, 0.3, w.shape).astype(np.float32) for w in leaves]
    )


def random_images(*shape):
    return np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("size", [8, 11])  # 11: maps of 11, 6, 3 and 2 pixels a side
@pytest.mark.parametrize("batch_norm", [True, False])
def test_custom_cnn_matches_numpy(batch_norm, size):
    model = models.create("custom_cnn", batch_norm=batch_norm, dropout=0.0)
    x = random_images(3, size, size, 3)
    variables = random_variables(model, x, train=False)
    logits, after = model.apply(variables, x, train=True, mutable=["batch_stats"])
    expected, norm_inputs = numpy_reference.custom_cnn(x, variables["params"])
    np.testing.assert_allclose(logits, expected, **CLOSE)

    # The running statistics move by a tenth: the momentum is 0.9.
    for layer, seen in enumerate(norm_inputs if batch_norm else []):
        statistics = {
            "mean": seen.mean(axis=(0, 1, 2)),
            "var": seen.var(axis=(0, 1, 2)),
        }
        for name, value in statistics.items():
            old = variables["batch_stats"][f"BatchNorm_{layer}"][name]
            new = after["batch_stats"][f"BatchNorm_{layer}"][name]
            np.testing.assert_allclose(new, 0.9 * old + 0.1 * value, **CLOSE)


def test_bottleneck_matches_numpy():
    block = ResidualBlock(
        features=4,
        stride=2,
        bottleneck=True,
        shortcut="projection",
        conv=functools.partial(layers.conv, **FLOAT32),
        norm=NORM,
        last_scale_init=jax.nn.initializers.ones,
    )
    x = random_images(2, 6, 6, 5)
    variables = random_variables(block, x)
    y, _ = block.apply(variables, x, mutable=["batch_stats"])
    expected = numpy_reference.bottleneck(x, variables["params"], stride=2)
    assert y.shape == (2, 3, 3, 16)
    np.testing.assert_allclose(y, expected, **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])  # 1: the input is added
def test_inverted_residual_matches_numpy(stride):
    block = InvertedResidual(
        Block(5, 16, 6, squeeze_excite=True, hard_swish=True, stride=stride),
        norm=functools.partial(NORM, epsilon=0.001),
        **FLOAT32,
    )
    x = random_images(2, 5, 5, 6)
    variables = random_variables(block, x)
    y, _ = block.apply(variables, x, mutable=["batch_stats"])
    expected = numpy_reference.inverted_residual(x, variables["params"], stride)
    np.testing.assert_allclose(y, expected, **CLOSE)


def test_encoder_block_matches_numpy():
    block = EncoderBlock(
        heads=2, mlp_width=10, dropout=0.0, layer_norm=True, train=True, **FLOAT32
    )
    x = random_images(2, 5, 8)
    variables = random_variables(block, x)
    y, _ = block.apply(variables, x)
    expected = numpy_reference.encoder_block(x, variables["params"], heads=2)
    np.testing.assert_allclose(y, expected, **CLOSE)


def test_patches_are_squares_row_by_row():
    # Depth 0, which users cannot choose, exposes the embedded patches.
    model = models.tiny("vit", patch=2, layer_norm=False, dropout=0.0).clone(depth=0)
    x = random_images(1, 4, 6, 3)
    variables = random_variables(model, x, train=False)
    _, captured = model.apply(
        variables, x, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    patches = np.stack(
        [
            x[0, row : row + 2, column : column + 2].ravel()
            for row in (0, 2)
            for column in (0, 2, 4)
        ]
    )
    expected = numpy_reference.linear(patches, variables["params"]["Dense_0"])
    (embedded,) = captured["intermediates"]["Dense_0"]["__call__"]
    np.testing.assert_allclose(embedded[0], expected, **CLOSE)

    # With no encoder block, the class token passes straight to the last layer.
    token = variables["params"]["class_token"] + variables["params"]["positions"][:, :1]
    expected = numpy_reference.linear(token[0], variables["params"]["Dense_1"])
    (logits,) = captured["intermediates"]["__call__"]
    np.testing.assert_allclose(logits, expected, **CLOSE)
