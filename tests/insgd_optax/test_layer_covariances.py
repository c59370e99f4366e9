"""The covariance of every layer's input, and its inverse, against Jacobians."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    MultiSteps,
    capture_input_covariances,
    capture_input_norms,
    covariance_cosines,
    input_covariance_shapes,
    input_powers,
    lms_newton,
    scale_by_input_covariance,
    scale_by_input_power,
)
from insgd_optax._layer_covariances import LINEN as LINEN_COVARIANCES
from insgd_optax._layer_types import LINEN
from insgd_optax._nnx_layer_types import NNX, NNX_COVARIANCES

EPS = 0.3


class Joined(nn.Module):
    """An einsum layer, whose kernel may have any layout."""

    equation: str
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        return nn.Einsum(
            self.shape, self.equation, use_bias=False, param_dtype=x.dtype
        )(x)


F64 = {"param_dtype": jnp.float64, "use_bias": False}


def conv(features, kernel_size, **options):
    return nn.Conv(features, kernel_size, **F64, **options)


def transposed(features, kernel_size, **options):
    return nn.ConvTranspose(features, kernel_size, **F64, **options)


# Layer, shape of its input.
LAYERS = {
    "dense": (nn.Dense(2, **F64), (3, 4)),
    "dense-vector": (nn.Dense(2, **F64), (4,)),
    "dense-tokens": (nn.Dense(3, **F64), (2, 3, 4)),
    "general": (nn.DenseGeneral((2, 3), **F64), (3, 4)),
    "general-out": (nn.DenseGeneral(3, axis=(-2, -1), **F64), (3, 2, 4)),
    "general-axes": (nn.DenseGeneral(3, axis=(-1, 1), **F64), (3, 2, 5, 4)),
    "general-batch": (
        nn.DenseGeneral((2, 3), axis=-1, batch_dims=(0,), **F64),
        (2, 3, 4),
    ),
    "einsum-heads": (Joined("btd,hdk->bthk", (2, 4, 3)), (2, 3, 4)),
    "einsum-experts": (Joined("ebd,edk->ebk", (2, 4, 3)), (2, 5, 4)),
    "einsum-one-input": (Joined("ebd,edk->ebk", (2, 4, 3)), (1, 5, 4)),
    "einsum-out": (Joined("bthk,hkd->btd", (2, 4, 3)), (2, 3, 2, 4)),
    "einsum-last": (Joined("bd,kd->bk", (3, 4)), (5, 4)),
    "einsum-summed": (Joined("btd,dk->bk", (4, 3)), (5, 3, 4)),
    "conv": (conv(3, (3, 3)), (2, 4, 5, 2)),
    "conv-1d": (conv(3, (3,)), (2, 6, 2)),
    "conv-3d": (conv(2, (2, 2, 2)), (1, 3, 3, 3, 2)),
    "conv-valid": (conv(3, (3, 2), padding="VALID"), (2, 5, 4, 2)),
    "conv-strides": (conv(3, (3, 3), strides=2), (2, 5, 6, 2)),
    "conv-dilated": (conv(2, (3, 3), kernel_dilation=2), (2, 6, 5, 2)),
    "conv-input-dilated": (
        conv(2, (3,), input_dilation=2, padding=((2, 1),)),
        (2, 4, 2),
    ),
    "conv-explicit": (conv(2, (3, 3), padding=((0, 2), (1, 0))), (2, 4, 4, 2)),
    "conv-negative": (conv(2, (3,), padding=((-1, 1),)), (2, 6, 2)),
    "conv-causal": (conv(2, (3,), padding="CAUSAL"), (2, 5, 2)),
    "conv-circular": (conv(2, (3,), padding="CIRCULAR"), (2, 5, 2)),
    "conv-reflect": (conv(2, (3,), padding="REFLECT"), (2, 5, 2)),
    "conv-grouped": (conv(6, (3,), feature_group_count=2), (2, 5, 4)),
    "conv-depthwise": (conv(4, (3, 2), feature_group_count=4), (2, 4, 4, 4)),
    "conv-multiplier": (conv(8, (3,), feature_group_count=4), (2, 5, 4)),
    "conv-pointwise": (conv(3, (1, 1)), (2, 3, 3, 4)),
    "conv-no-batch": (conv(3, (3,)), (6, 2)),
    "conv-batches": (conv(2, (3,)), (2, 2, 4, 2)),
    "conv-local": (nn.ConvLocal(2, (3, 2), **F64), (3, 4, 3, 2)),
    "conv-local-1d": (
        nn.ConvLocal(2, (3,), strides=2, padding="VALID", **F64),
        (3, 7, 2),
    ),
    "transposed": (transposed(3, (3, 3)), (2, 3, 4, 2)),
    "transposed-strides": (transposed(2, (3,), strides=(2,)), (2, 4, 2)),
    "transposed-valid": (transposed(2, (4,), strides=(3,), padding="VALID"), (2, 3, 2)),
    "transposed-circular": (
        transposed(2, (3,), strides=(2,), padding="CIRCULAR"),
        (2, 4, 2),
    ),
    "transposed-circular-long": (
        transposed(2, (5,), strides=(1,), padding="CIRCULAR"),
        (2, 3, 2),
    ),
    "transposed-kernel": (
        transposed(3, (3, 2), strides=(2, 1), transpose_kernel=True),
        (2, 3, 4, 2),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_inverse_matches_that_of_the_jacobian(x64, name):
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape)) + 0.5
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    (weight,), treedef = jax.tree.flatten(variables["params"])
    kernel, g = (jnp.asarray(rng.normal(size=weight.shape)) for _ in range(2))
    with capture_input_covariances(max_rows=None):
        like = input_covariance_shapes(layer, jax.random.key(0), x)
    tx = scale_by_input_covariance(
        0.0, damping=0.0, eps=EPS, preserve_norm=False, input_covariances_like=like
    )

    @jax.jit  # As one program: op-by-op compilation takes longer.
    def everything(kernel, g):
        def outputs(kernel):
            params = jax.tree.unflatten(treedef, [kernel])
            return layer.apply({"params": params}, x)

        params = jax.tree.unflatten(treedef, [kernel])
        with capture_input_covariances(max_rows=None):
            _, sown = layer.apply({"params": params}, x, mutable=["intermediates"])
        grads = jax.tree.unflatten(treedef, [g])
        updates, state = jax.jit(tx.update)(
            grads, tx.init(params), input_covariances=sown
        )
        is_leaf = lambda node: hasattr(node, "factors")
        (covariance,) = jax.tree.leaves(sown, is_leaf=is_leaf)
        (update,) = jax.tree.leaves(updates)
        return jax.jacobian(outputs)(kernel), covariance.count, update, state.failures

    jacobian, count, update, failures = everything(kernel, g)
    # An output is linear in the kernel, with an input vector as its gradient: the sum
    # of the outer products of these is X^T X, once for each output feature.
    jacobian = np.asarray(jacobian).reshape(-1, kernel.size)
    products = jacobian.T @ jacobian
    wanted = np.linalg.solve(
        products / float(count) + EPS * np.eye(g.size), np.asarray(g).ravel()
    )
    np.testing.assert_allclose(update.ravel(), wanted, rtol=1e-10, atol=1e-12)
    assert failures == 0
    # Each input vector is multiplied by a kernel once. Entries that padding or dilation
    # sets to 0 are not counted; unless the input has holes, some entry always is.
    most = np.count_nonzero(jacobian, axis=0).max()
    with_holes = name.startswith(("transposed", "conv-input-dilated"))
    assert count >= most if with_holes else count == most


def empty(kind, features, *args, **options):
    return kind(features, *args, kernel_init=nn.initializers.zeros, **options)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (empty(nn.Dense, 2), (5, 0)),
        (empty(nn.Dense, 0), (5, 2)),
        (empty(nn.DenseGeneral, 2, axis=(1, 2)), (5, 2, 0)),
        (empty(nn.Conv, 2, (3, 3)), (5, 4, 4, 0)),
        (empty(nn.Conv, 0, (3, 3)), (5, 4, 4, 2)),
        (empty(nn.ConvTranspose, 2, (3,)), (5, 4, 0)),
    ],
)
def test_a_kernel_without_inputs_or_outputs_is_left_out(layer, shape):
    model = nn.Sequential([layer, lambda y: jnp.ones((5, 3)), nn.Dense(2)])
    key, x = jax.random.key(0), jnp.ones(shape)
    with (
        capture_input_covariances(),
        capture_input_norms(jnp.inf, conv_input="patch"),
    ):
        like = input_covariance_shapes(model, key, x)
        variables = model.init(key, x)
        _, sown = model.apply(variables, x, mutable=["intermediates"])
    tx = optax.chain(
        scale_by_input_power(input_norms_like=like),
        MultiSteps(
            lms_newton(0.1, input_covariances_like=like), 1
        ).gradient_transformation(),
    )
    params = variables["params"]
    _, state = tx.update(
        params, tx.init(params), params, input_norms=sown, input_covariances=sown
    )
    assert list(covariance_cosines(state)) == ["layers_2/kernel"]
    assert input_powers(state)["layers_2/kernel"] == 1


@pytest.mark.parametrize(
    ("norms", "covariances"), [(LINEN, LINEN_COVARIANCES), (NNX, NNX_COVARIANCES)]
)
def test_both_captures_handle_the_same_layers(norms, covariances):
    for convolutions in norms.conv.values():
        assert {*norms.dense, *convolutions} == {*covariances}
