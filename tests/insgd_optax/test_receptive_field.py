"""`conv_input="patch"` against explicitly built patches."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import capture_input_norms, input_norm_shapes


def sown_norm(layer, x, p):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), variables)
    with capture_input_norms(p, conv_input="patch"):
        _, sown = layer.apply(variables, x, mutable=["intermediates"])
    (norm,) = sown["intermediates"]["input_norm"]
    kernel = variables["params"]["kernel"]
    assert norm.shape == (1,) * kernel.ndim
    return norm.item()


def inputs_of_each_neuron(layer, x):
    """How often each output of a layer reads each entry of a sample.

    This is the derivative of the output with respect to the entry if all entries of
    the kernel are 1.
    """
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    ones = {"params": {"kernel": jnp.ones(variables["params"]["kernel"].shape)}}
    one = x[:1]
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply(ones, x)))(one)
    outputs = int(np.prod(jacobian.shape[: one.ndim]))
    return np.asarray(jacobian).reshape(outputs, -1).round().astype(int)


def reference(reads, x, p):
    total = []
    for sample in np.abs(np.asarray(x, np.float64)).reshape(len(x), -1):
        for neuron in reads:
            entries = np.repeat(sample, neuron)
            if p == np.inf:
                total.append(entries.max(initial=0.0))
            else:
                total.append((entries**p).sum())
    return np.mean(total)


def assert_sows_the_mean_patch(layer, x, norms=(1, 2, np.inf), shared=None):
    reads = inputs_of_each_neuron(shared or layer, x)
    for p in norms:
        np.testing.assert_allclose(
            sown_norm(layer, x, p), reference(reads, x, p), 1e-5, err_msg=str(p)
        )


CONVS = {
    "3x3 same": {"kernel_size": (3, 3)},
    "3x2 strided valid": {"kernel_size": (3, 2), "strides": (2, 1), "padding": "VALID"},
    "strided same": {"kernel_size": (3, 3), "strides": 2},
    "dilated": {"kernel_size": (3, 3), "kernel_dilation": 2},
    "input dilated": {"kernel_size": (3, 3), "input_dilation": 2, "padding": 1},
    "explicit padding": {"kernel_size": (3, 3), "padding": [(2, 0), (1, 3)]},
    "circular": {"kernel_size": (3, 3), "padding": "CIRCULAR"},
    "circular dilated": {
        "kernel_size": (3, 3),
        "padding": "CIRCULAR",
        "kernel_dilation": 2,
    },
    "reflect strided": {"kernel_size": (3, 3), "padding": "REFLECT", "strides": 2},
    "grouped": {"kernel_size": (3, 3), "feature_group_count": 2, "features": 4},
    "depthwise": {"kernel_size": (3, 3), "feature_group_count": 4, "features": 4},
    "1x1": {"kernel_size": (1, 1)},
    "larger than the input": {"kernel_size": (9, 9)},
}


@pytest.mark.parametrize("name", CONVS)
def test_conv_sows_the_mean_patch(name):
    options = {"features": 2, "use_bias": False, **CONVS[name]}
    x = jax.random.normal(jax.random.key(1), (2, 6, 5, 4))
    assert_sows_the_mean_patch(nn.Conv(**options), x)


@pytest.mark.parametrize("p", [2, np.inf])
def test_nan_in_the_input_is_nan_in_the_norm_of_patches(p):
    x = jnp.ones((4, 16, 16, 64)).at[1, 3, 2, 1].set(jnp.nan)
    assert jnp.isnan(sown_norm(nn.Conv(2, (3, 3), use_bias=False), x, p))


def test_conv_of_one_and_three_dimensions_sows_the_mean_patch():
    causal = nn.Conv(2, 3, padding="CAUSAL", kernel_dilation=2, use_bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 7, 3))
    assert_sows_the_mean_patch(causal, x)
    volume = nn.Conv(2, (2, 3, 2), strides=(1, 2, 1), use_bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 3, 2))
    assert_sows_the_mean_patch(volume, x)


TRANSPOSED = [
    {"kernel_size": (k, 3), "strides": s, "padding": pad, "kernel_dilation": d}
    for k, s, pad, d in itertools.product(
        [2, 3], [(1, 1), (2, 3)], ["SAME", "VALID", ((1, 2), (0, 1))], [None, (2, 1)]
    )
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_conv_transpose_sows_the_mean_patch(options):
    layer = nn.ConvTranspose(2, use_bias=False, **options)
    x = jax.random.normal(jax.random.key(1), (2, 4, 3, 2))
    assert_sows_the_mean_patch(layer, x)


def test_a_padding_that_conv_transpose_lacks_is_an_error():
    """Flax passes it to a JAX function that accepts it as another name for SAME."""
    layer = nn.ConvTranspose(2, (3,), padding="SAME_LOWER", use_bias=False)
    params = {"kernel": jnp.ones((3, 2, 2))}
    with (
        capture_input_norms(conv_input="patch"),
        pytest.raises(ValueError, match="'SAME_LOWER' is not known for ConvTranspose"),
    ):
        jax.eval_shape(
            lambda x: layer.apply({"params": params}, x, mutable=["intermediates"]),
            jnp.ones((1, 4, 2)),
        )


def test_circular_conv_transpose_sows_the_mean_patch_for_finite_p():
    layer = nn.ConvTranspose(
        2, (4, 3), strides=(2, 1), padding="CIRCULAR", use_bias=False
    )
    x = jax.random.normal(jax.random.key(1), (2, 5, 4, 2))
    assert_sows_the_mean_patch(layer, x, norms=(1, 2))
    with pytest.raises(ValueError, match="not defined for a circular ConvTranspose"):
        sown_norm(layer, x, np.inf)


def test_conv_local_sows_the_mean_patch():
    layer = nn.ConvLocal(2, (3, 2), strides=(2, 1), use_bias=False)
    shared = nn.Conv(2, (3, 2), strides=(2, 1), use_bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 6, 5, 2))
    # Its neurons read the same entries as those of a convolution with shared weights.
    assert_sows_the_mean_patch(layer, x, shared=shared)


def test_extra_batch_axes_are_samples():
    layer = nn.Conv(2, (3, 3), use_bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 3, 6, 5, 2))
    flat = x.reshape(6, 6, 5, 2)
    np.testing.assert_allclose(sown_norm(layer, x, 2), sown_norm(layer, flat, 2), 1e-6)
    one = sown_norm(layer, flat[0], 2)
    np.testing.assert_allclose(one, sown_norm(layer, flat[:1], 2), 1e-6)


@pytest.mark.parametrize("p", [2, np.inf])
def test_there_may_be_more_fields_than_int32_can_count(p):
    """A depthwise convolution of a large batch, sharded over many devices."""
    model = nn.Conv(144, (3, 3), feature_group_count=144)
    x = jax.ShapeDtypeStruct((2048, 112, 112, 144), jnp.bfloat16)
    with capture_input_norms(p, conv_input="patch"):
        shapes = input_norm_shapes(model, jax.random.key(0), x)
    assert shapes["input_norm"][0].shape == (1, 1, 1, 1)
