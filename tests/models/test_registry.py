"""Networks by name, and the errors for wrong names and options."""

import jax.numpy as jnp
import pytest

import models

ALL = (
    "custom_cnn",
    "resnet20",
    "wrn18",
    "resnet50",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "vit",
)


def test_names_are_the_papers_networks():
    assert models.names() == ALL


@pytest.mark.parametrize("make", [models.create, models.tiny])
def test_unknown_name_lists_the_known_ones(make):
    with pytest.raises(ValueError) as error:
        make("resnet_20")
    message = str(error.value)
    assert "'resnet_20'; did you mean 'resnet20'?" in message
    assert all(name in message for name in ALL)


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(ValueError, match="Unknown network 'xyz'. Known networks: "):
        models.create("xyz")


@pytest.mark.parametrize("make", [models.create, models.tiny])
def test_unknown_option_names_option_network_and_options(make):
    with pytest.raises(TypeError) as error:
        make("wrn18", with_batch_norm=True)
    assert "'wrn18' has no option 'with_batch_norm'" in str(error.value)
    assert "stage_sizes, width, dtype, axis_name" in str(error.value)
    with pytest.raises(TypeError, match="did you mean 'width'"):
        make("wrn18", widht=8)


def test_linens_own_field_is_not_an_option():
    with pytest.raises(TypeError, match="no option 'parent'"):
        models.create("vit", parent=None)


@pytest.mark.parametrize("name", ALL)
def test_common_options_reach_the_network(name):
    options = {"dtype": jnp.bfloat16, "axis_name": "batch"}
    for make in models.create, models.tiny:
        model = make(name, num_classes=7, **options)
        assert model.num_classes == 7
        assert model.dtype == jnp.bfloat16
        assert model.axis_name == "batch"


def test_options_override_those_of_the_tiny_variant():
    assert models.tiny("vit").width < models.create("vit").width
    assert models.tiny("vit", width=96).width == 96
