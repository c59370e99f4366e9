"""The NNX layers that have an input vector, and the statistics of their inputs."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from insgd_optax import _layer_covariances as covariances
from insgd_optax import _layer_types as linen
from insgd_optax import _norms as norms


def _linear_general(
    layer: nnx.LinearGeneral, call: Mapping[str, Any], p: float
) -> jax.Array:
    return norms.dense_general_norm(
        linen.layer_input(call),
        p,
        axis=layer.axis,
        batch_axes=tuple(layer.batch_axis),
        num_features=len(layer.out_features),
    )


def _einsum(layer: nnx.Einsum, call: Mapping[str, Any], p: float) -> jax.Array:
    return norms.einsum_norm(
        linen.layer_input(call),
        p,
        equation=call.get("einsum_str") or layer.einsum_str,
        kernel_shape=layer.kernel_shape,
    )


# Most NNX layers name their settings as their Linen counterparts do.
NNX = linen.LayerKinds(
    module=nnx.Module,
    dense={
        nnx.Linear: linen.dense,
        nnx.LinearGeneral: _linear_general,
        nnx.Einsum: _einsum,
    },
    conv={
        "feature_map": {
            nnx.Conv: linen.feature_map,
            nnx.ConvTranspose: linen.feature_map,
        },
        "patch": {
            nnx.Conv: linen.conv_patch,
            nnx.ConvTranspose: linen.conv_transpose_patch,
        },
    },
    normalization={
        nnx.BatchNorm: linen.sample_norm,
        nnx.GroupNorm: linen.sample_norm,
        nnx.InstanceNorm: linen.sample_norm,
        nnx.LayerNorm: linen.vector_norm,
        nnx.RMSNorm: linen.vector_norm,
    },
)


def _linear_general_covariance(
    layer: nnx.LinearGeneral, call: Mapping[str, Any], settings: covariances.Settings
) -> covariances.Measurement:
    return covariances.general(
        linen.layer_input(call),
        settings,
        axis=layer.axis,
        batch_axes=tuple(layer.batch_axis),
        num_features=len(layer.out_features),
    )


def _einsum_covariance(
    layer: nnx.Einsum, call: Mapping[str, Any], settings: covariances.Settings
) -> covariances.Measurement:
    equation = call.get("einsum_str") or layer.einsum_str
    x = linen.layer_input(call)
    return covariances.einsum(x, settings, equation, layer.kernel_shape)


NNX_COVARIANCES: dict[type, covariances.LayerCovarianceFn] = {
    nnx.Linear: covariances.dense,
    nnx.LinearGeneral: _linear_general_covariance,
    nnx.Einsum: _einsum_covariance,
    nnx.Conv: covariances.conv,
    nnx.ConvTranspose: covariances.conv_transpose,
}
