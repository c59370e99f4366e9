"""The axes that a statistic shares with its weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax._matching import (
    ShapeMismatchError,
    by_layer,
    excess_axes,
    matches,
    mean_over_calls,
    power_shape,
)
from insgd_optax._paths import flatten


def shape_of(*shapes, weight, kernel=None):
    uses = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return power_shape(uses, weight, kernel or weight)


@pytest.mark.parametrize(
    ("statistic", "weight", "axes"),
    [
        ((1, 1), (4, 5), ()),
        ((7, 1, 1), (4, 5), (0,)),
        ((3, 1, 1), (3, 4, 5), ()),
        ((3, 7, 1, 1), (3, 4, 5), (1,)),
        ((7, 3, 1, 1), (3, 4, 5), (0,)),
        ((7, 3, 1, 1), (3, 7, 5), (0,)),  # not the one that leaves (7, 3, 1)
        ((2, 7, 1, 1), (4, 5), (0, 1)),
        ((2, 3, 7, 1, 1), (2, 3, 4, 5), (2,)),
        ((3, 1, 1), (3, 5), (0,)),  # not one of those that leave (3, 1)
    ],
)
def test_axes_that_the_weight_lacks_are_averaged(statistic, weight, axes):
    assert excess_axes(statistic, weight) == axes


@pytest.mark.parametrize(
    ("statistic", "weight", "left", "axes"),
    [
        ((1, 3, 1, 1), (3, 4, 5), (3, 1, 1), (0,)),  # not (1,), the longer one
        ((1, 3), (3,), (3,), (0,)),
        ((3, 1), (3,), (3,), (1,)),
        ((1, 1), (1,), (1,), (1,)),
        ((7, 1, 1), (7, 5), (1, 1), (0,)),
        ((1, 1, 1), (3, 4, 5), (3, 1, 1), ()),  # from a call that does not vary
    ],
)
def test_a_known_shape_decides_which_axes_are_averaged(statistic, weight, left, axes):
    assert excess_axes(statistic, weight, left) == axes


@pytest.mark.parametrize(
    ("statistic", "weight", "words"),
    [
        ((3, 3, 1, 1), (3, 4, 5), "more than one way"),
        ((2, 1, 1), (3, 4, 5), "does not broadcast"),
        ((1,), (4, 5), "fewer axes"),
    ],
)
def test_a_statistic_that_does_not_fit_or_fits_twice_is_an_error(
    statistic, weight, words
):
    with pytest.raises(ShapeMismatchError, match=words):
        excess_axes(statistic, weight)


def test_the_shape_of_a_power_follows_from_statistic_and_weight():
    assert shape_of((1, 1), weight=(4, 5)) == ()
    assert shape_of((1, 1, 1), weight=(4, 5)) == ()
    assert shape_of((3, 1, 1), weight=(3, 4, 5)) == (3, 1, 1)
    assert shape_of((3, 1, 1), (1, 1, 1), weight=(3, 4, 5)) == (3, 1, 1)
    assert shape_of((3, 1, 1), weight=(3, 5), kernel=(3, 4, 5)) == (3, 1)
    assert shape_of((1, 3, 1), weight=(5, 3), kernel=(4, 3, 5)) == (1, 3)


def test_a_bias_is_aligned_like_its_kernel_or_scale():
    shapes = {"scale": (3, 4, 5), "bias": (3, 5)}
    weights = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    sown = by_layer({"d": {"input_norm": jax.ShapeDtypeStruct((3, 1, 1), jnp.float32)}})
    found = matches(sown, flatten({"d": weights}).present)
    powers = {path[-1]: match.power_shape() for path, match in found.items()}
    assert powers == {"scale": (3, 1, 1), "bias": (3, 1)}


def test_a_scalar_sown_by_hand_is_padded_on_the_right():
    assert shape_of((), weight=(4, 5)) == ()
    assert shape_of((3,), weight=(3, 4, 5)) == (3, 1, 1)
    value = mean_over_calls([jnp.arange(3.0)], (3, 4, 5), (3, 4, 5), (3, 1, 1))
    np.testing.assert_array_equal(value.ravel(), [0, 1, 2])


def test_one_call_of_stacked_layers_keeps_their_values_apart():
    norm = jnp.arange(3.0).reshape(1, 3, 1, 1)  # as in a scan over one micro-batch
    for weight, shape in [((3, 4, 5), (3, 1, 1)), ((3, 5), (3, 1))]:
        value = mean_over_calls([norm], weight, (3, 4, 5), shape)
        np.testing.assert_array_equal(value.ravel(), [0, 1, 2])


def test_a_value_that_varies_along_an_axis_to_cut_is_an_error():
    with pytest.raises(ShapeMismatchError, match="cannot be cut"):
        shape_of((1, 4), weight=(5,), kernel=(4, 4))


def test_an_update_never_changes_a_shape():
    with pytest.raises(
        ShapeMismatchError, match=r"gives \(3, 1, 1\), but P has the shape \(2"
    ):
        mean_over_calls([jnp.ones((3, 1, 1))], (3, 4, 5), (3, 4, 5), (2, 1, 1))
