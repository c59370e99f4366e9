"""Norms and inner products in units of the largest entry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import _extent

WAYS = [_extent.in_two_passes, _extent.in_one_pass]
AXES = (1, 2)


def arrays():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 40, 7)).astype(np.float32)
    return x, y / np.abs(y).max()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1.0, 1e20, 1e37])
def test_sums_are_in_units_of_the_largest_entry(way, scale):
    x, y = arrays()
    x = x * np.float32(scale)
    largest, square, product = jax.jit(functools.partial(way, AXES))(x, y)
    wanted = np.abs(x).max(axis=AXES, keepdims=True)
    np.testing.assert_array_equal(largest, wanted)
    unit = x.astype(float) / wanted
    np.testing.assert_allclose(
        square, (unit**2).sum(axis=AXES, keepdims=True), rtol=1e-5
    )
    np.testing.assert_allclose(
        product, (unit * y).sum(axis=AXES, keepdims=True), rtol=1e-4
    )


@pytest.mark.parametrize("way", WAYS)
def test_zero_has_the_unit_one_and_nan_is_kept(way):
    x = jnp.stack([jnp.zeros((5, 2)), jnp.ones((5, 2)), jnp.ones((5, 2))])
    x = x.at[2, 3, 1].set(jnp.nan)
    largest, square, product = way(AXES, x, jnp.ones_like(x))
    assert largest.ravel()[:2].tolist() == [1, 1]
    assert square.ravel()[:2].tolist() == product.ravel()[:2].tolist() == [0, 10]
    assert jnp.isnan(square[2]).all() and jnp.isnan(product[2]).all()


@pytest.mark.parametrize("way", WAYS)
def test_other_arrays_are_optional(way):
    x, y = arrays()
    alone = way(AXES, x)
    assert len(alone) == 2
    for a, b in zip(alone, way(AXES, x, y), strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_derivative_is_that_of_the_sums_in_a_fixed_unit(x64):
    x, y = (jnp.asarray(a[0], float) for a in arrays())
    unit = jnp.abs(x).max()

    def found(x, y):
        _, square, product = _extent.extent((0, 1), x, y)
        return (square + 3 * product).sum()

    def wanted(x, y):
        return jnp.sum((x / unit) ** 2 + 3 * x / unit * y)

    for a, b in zip(*(jax.grad(f, (0, 1))(x, y) for f in (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
