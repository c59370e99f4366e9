"""The norm of an input vector, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import capture_input_covariances, capture_input_norms, input_norm
from insgd_optax._norms import mean_power
from tests.insgd_optax.references.algorithm1_reference import batch_norm_to_the_p


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, np.inf, np.float32(2)])
def test_matches_the_reference(p):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_allclose(input_norm(x, p), batch_norm_to_the_p(x, p), rtol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
@pytest.mark.parametrize("shape", [(2, 3), (128, 784)])
def test_nan_in_an_input_is_nan_in_the_norm(p, shape):
    """XLA's own maximum of a large array ignores nan on CPUs."""
    x = jnp.ones(shape).at[1, 2].set(jnp.nan)
    assert jnp.isnan(input_norm(x, p))
    assert jnp.isposinf(input_norm(jnp.ones(shape).at[1, 2].set(-jnp.inf), p))


@pytest.mark.parametrize("p", [2, np.inf])
def test_nan_stays_in_the_norm_of_its_own_kernel(p):
    x = jnp.ones((3, 4, 5)).at[1, 2, 3].set(jnp.nan)
    norms = mean_power(x, p, sum_axes=[2], keep_axes=[0])
    np.testing.assert_array_equal(jnp.isnan(norms), [False, True, False])


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_axes_make_up_one_vector(p):
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    images = input_norm(x, p, axis=(-3, -2, -1))
    np.testing.assert_allclose(images, batch_norm_to_the_p(x, p), rtol=1e-6)
    pixels = input_norm(x, p, axis=3)
    np.testing.assert_allclose(
        pixels, batch_norm_to_the_p(x.reshape(-1, 2), p), rtol=1e-6
    )


def test_complex_entries_enter_by_magnitude():
    x = jnp.array([[3 + 4j, 0], [0, 1j]])
    assert input_norm(x, 1) == 3.0
    assert input_norm(x, 2) == 13.0


def test_half_precision_is_summed_in_float32():
    x = jnp.full((2, 100_000), 0.1, jnp.bfloat16)
    norm = input_norm(x)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 1e5 * float(x[0, 0]) ** 2, rtol=1e-4)
    big = jnp.full((1, 10), 300.0, jnp.float16)  # its square overflows float16
    np.testing.assert_allclose(input_norm(big), 9e5, rtol=1e-6)


def test_integers_are_converted_to_float32():
    assert input_norm(jnp.full((1, 2), 200, jnp.uint8)) == 80_000


def test_float64_is_kept(x64):
    assert input_norm(jnp.ones((2, 3), jnp.float64)).dtype == jnp.float64
    assert input_norm(jnp.ones((2, 3), jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_is_cut_off_from_differentiation(p):
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_array_equal(jax.grad(lambda x: input_norm(x, p))(x), 0.0)


@pytest.mark.parametrize("p", [0.5, 0, -1, np.nan, "2", None, True])
def test_a_p_that_defines_no_norm_is_an_error(p):
    with pytest.raises(ValueError, match="names no norm.*at least 1, or jnp.inf"):
        input_norm(jnp.ones((1, 2)), p)


def test_an_axis_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"axis=2 is not an axis of x.*\(1, 2\)"):
        input_norm(jnp.ones((1, 2)), axis=2)


@pytest.mark.parametrize("p", [2, np.inf])
def test_there_may_be_more_samples_than_int32_can_count(p):
    x = jax.ShapeDtypeStruct((2**31, 2), jnp.bfloat16)
    assert jax.eval_shape(lambda x: input_norm(x, p), x).shape == ()


def test_einsum_broadcasts_a_contracted_axis():
    """As `jnp.einsum` does: the kernel multiplies each copy of an entry."""
    layer = nn.Einsum((3, 2), "bd,dk->bk", use_bias=False)
    x = jnp.array([[2.0], [1.0]])
    params = {"kernel": jnp.ones((3, 2))}
    for p in (2, np.inf):
        apply = jax.jit(
            lambda x: layer.apply({"params": params}, x, mutable=["intermediates"])
        )
        with capture_input_norms(p), capture_input_covariances():
            sown = apply(x)[1]["intermediates"]
        repeated = np.repeat(x, 3, axis=1)
        expected = batch_norm_to_the_p(repeated, p)
        np.testing.assert_allclose(sown["input_norm"][0], expected)
    (covariance,) = sown["input_covariance"]
    np.testing.assert_allclose(
        covariance.factors[0].reshape(3, 3), repeated.T @ repeated
    )
