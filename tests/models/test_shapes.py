"""Parameter counts, output shapes and smallest inputs, without computing anything."""

import jax
import jax.numpy as jnp
import pytest

import models


def init_shapes(model, size):
    """The shapes of a network's variables and of its logits for two images."""
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    logits, variables = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, train=False),
        jax.random.key(0),
        x,
    )
    return variables, logits


# Counted by PyTorch for the authors' ResNet-20, Wide ResNet-18 and ViT, and for
# torchvision's ResNet-50 and MobileNetV3; by hand for the others.
FULL_SIZE = [
    ("custom_cnn", {}, 10, 32, 34_898),
    ("custom_cnn", {"batch_norm": False}, 10, 32, 34_778),
    ("resnet20", {}, 10, 32, 272_474),
    ("resnet20", {"shortcut": "identity"}, 10, 32, 269_722),
    # One bias instead of a scale and a bias: half as many.
    ("resnet20", {"batch_norm": False}, 10, 32, 272_474 - 784),
    (
        "resnet20",
        {"shortcut": "identity", "batch_norm": False},
        10,
        32,
        269_722 - 688,
    ),
    ("wrn18", {}, 100, 32, 11_220_132),
    ("wrn18", {}, 10, 32, 11_173_962),
    ("resnet50", {}, 1000, 224, 25_557_032),
    ("resnet50", {"zero_init_residual": True}, 1000, 224, 25_557_032),
    ("mobilenet_v3_large", {}, 1000, 224, 5_483_032),
    ("mobilenet_v3_large", {"stem": "cifar"}, 1000, 32, 5_483_032),
    ("mobilenet_v3_small", {}, 1000, 224, 2_542_856),
    ("mobilenet_v3_small", {"stem": "cifar"}, 1000, 32, 2_542_856),
    ("vit", {}, 10, 32, 9_523_722),
    ("vit", {"layer_norm": False}, 10, 32, 9_510_410),
    ("vit", {"scan_layers": True}, 10, 32, 9_523_722),
    ("vit", {"scan_layers": True, "remat": True}, 10, 32, 9_523_722),
]


@pytest.mark.parametrize("name, options, num_classes, size, count", FULL_SIZE)
def test_parameter_count_and_output_shape(name, options, num_classes, size, count):
    model = models.create(name, num_classes=num_classes, **options)
    variables, logits = init_shapes(model, size)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(w.size for w in leaves) == count
    assert {w.dtype for w in leaves} == {jnp.dtype("float32")}
    assert logits.shape == (2, num_classes)
    assert logits.dtype == jnp.float32


SMALLEST = [
    ("custom_cnn", {}, 8),
    ("resnet20", {}, 4),
    ("wrn18", {}, 8),
    ("resnet50", {}, 32),
    ("mobilenet_v3_large", {}, 32),
    ("mobilenet_v3_large", {"stem": "cifar"}, 8),
    ("mobilenet_v3_small", {}, 32),
    ("mobilenet_v3_small", {"stem": "cifar"}, 8),
    ("vit", {}, 4),
    ("vit", {"patch": 8}, 8),
]


@pytest.mark.parametrize("rows", [FULL_SIZE, SMALLEST])
def test_each_network_has_a_row(rows):
    assert {name for name, *_ in rows} == set(models.names())


@pytest.mark.parametrize("name, options, size", SMALLEST)
def test_smaller_images_are_an_error_that_names_the_smallest_size(name, options, size):
    model = models.create(name, **options)
    _, logits = init_shapes(model, size)
    assert logits.shape == (2, 10)
    with pytest.raises(ValueError) as error:
        init_shapes(model, size - 1)
    assert f"at least {size}x{size} pixels" in str(error.value)
    assert f"got {size - 1}x{size - 1}" in str(error.value)


@pytest.mark.parametrize("name", models.names())
def test_images_need_four_axes(name):
    model = models.tiny(name)
    with pytest.raises(ValueError, match=r"\(batch, height, width, channels\)"):
        model.init(jax.random.key(0), jnp.zeros((32, 32, 3)), train=False)


@pytest.mark.parametrize("name", models.names())
def test_tiny_variants_take_images_of_8x8(name):
    variables, logits = init_shapes(models.tiny(name), 8)
    assert logits.shape == (2, 10)
    assert sum(w.size for w in jax.tree.leaves(variables["params"])) < 200_000


@pytest.mark.parametrize("name", models.names())
def test_images_need_not_be_square(name):
    model = models.tiny(name)
    x = jax.ShapeDtypeStruct((1, 32, 64, 1), jnp.uint8)
    logits, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
    )
    assert logits.shape == (1, 10)


STAGES = [
    (
        "custom_cnn",  # Table 2
        {},
        32,
        {
            "Conv_0": (32, 32, 8),
            "Conv_1": (16, 16, 16),
            "Conv_2": (8, 8, 32),
            "Conv_3": (4, 4, 64),
        },
    ),
    (
        "resnet20",  # Table 1
        {},
        32,
        {
            "Conv_0": (32, 32, 16),
            "stage_1_block_3": (32, 32, 16),
            "stage_2_block_3": (16, 16, 32),
            "stage_3_block_3": (8, 8, 64),
        },
    ),
    (
        "wrn18",
        {"width": 128},
        32,
        {
            "stage_1_block_2": (32, 32, 128),
            "stage_2_block_2": (16, 16, 256),
            "stage_3_block_2": (8, 8, 512),
            "stage_4_block_2": (4, 4, 1024),
        },
    ),
    (
        "resnet50",  # He et al., Table 1
        {},
        224,
        {
            "Conv_0": (112, 112, 64),
            "stage_1_block_3": (56, 56, 256),
            "stage_2_block_4": (28, 28, 512),
            "stage_3_block_6": (14, 14, 1024),
            "stage_4_block_3": (7, 7, 2048),
        },
    ),
    (
        "mobilenet_v3_large",  # Howard et al., Table 1
        {},
        224,
        {
            "Conv_0": (112, 112, 16),
            "block_1": (112, 112, 16),
            "block_3": (56, 56, 24),
            "block_6": (28, 28, 40),
            "block_10": (14, 14, 80),
            "block_12": (14, 14, 112),
            "block_15": (7, 7, 160),
            "Conv_1": (7, 7, 960),
            "Dense_0": (1280,),
        },
    ),
    (
        "mobilenet_v3_large",
        {"stem": "cifar"},
        32,
        {
            "Conv_0": (32, 32, 16),
            "block_3": (32, 32, 24),
            "block_6": (16, 16, 40),
            "block_10": (8, 8, 80),
            "block_15": (4, 4, 160),
        },
    ),
    (
        "mobilenet_v3_small",  # Howard et al., Table 2
        {},
        224,
        {
            "Conv_0": (112, 112, 16),
            "block_1": (56, 56, 16),
            "block_3": (28, 28, 24),
            "block_6": (14, 14, 40),
            "block_8": (14, 14, 48),
            "block_11": (7, 7, 96),
            "Conv_1": (7, 7, 576),
            "Dense_0": (1024,),
        },
    ),
    (
        "mobilenet_v3_small",
        {"stem": "cifar"},
        32,
        {
            "Conv_0": (32, 32, 16),
            "block_1": (32, 32, 16),
            "block_3": (16, 16, 24),
            "block_6": (8, 8, 40),
            "block_11": (4, 4, 96),
        },
    ),
    (
        "vit",
        {},
        32,
        {"Dense_0": (64, 512), "block_1": (65, 512), "block_6": (65, 512)},
    ),
]


@pytest.mark.parametrize("name, options, size, expected", STAGES)
def test_feature_maps_have_the_expected_shapes(name, options, size, expected):
    model = models.create(name, **options)

    def feature_maps(x):
        variables = model.init(jax.random.key(0), x, train=False)
        _, captured = model.apply(
            variables,
            x,
            train=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        return captured["intermediates"]

    maps = jax.eval_shape(feature_maps, jnp.zeros((1, size, size, 3)))
    shapes = {
        layer: jax.tree.leaves(maps[layer]["__call__"])[0].shape[1:]
        for layer in expected
    }
    assert shapes == expected
