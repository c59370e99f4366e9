"""Which Linen layers have an input vector, and how each takes its power."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.linen.recurrent import DenseParams

from insgd_optax import _layer_norms as norms
from insgd_optax import _receptive_field as field
from insgd_optax._norms import input_norm

LayerTypes = Sequence[type[nn.Module]] | Mapping[type[nn.Module], int | Sequence[int]]
# (layer, its call's arguments by name, p) -> the statistic to sow. The layer's
# input is the first argument.
LayerNorm = Callable[[Any, Mapping[str, Any], float], jax.Array]


def _input(call: Mapping[str, Any]) -> jax.Array:
    first = next(iter(call.values()))
    return first[0] if isinstance(first, tuple) else first


def _sizes(value: int | Sequence[int] | None, length: int = 1) -> tuple[int, ...]:
    """Flax's reading of a size that may be one number for every axis."""
    if value is None:
        return (1,) * length
    return (value,) * length if isinstance(value, int) else tuple(value)


def _dense(layer: nn.Module, call: Mapping[str, Any], p: float) -> jax.Array:
    del layer
    return norms.dense_norm(_input(call), p)


def _dense_general(
    layer: nn.DenseGeneral, call: Mapping[str, Any], p: float
) -> jax.Array:
    return norms.dense_general_norm(
        _input(call),
        p,
        axis=_sizes(layer.axis),
        batch_axes=_sizes(layer.batch_dims),
        num_features=len(_sizes(layer.features)),
    )


def _einsum(layer: nn.Einsum, call: Mapping[str, Any], p: float) -> jax.Array:
    equation = layer.einsum_str or call["einsum_str"]
    return norms.einsum_norm(
        _input(call), p, equation=equation, kernel_shape=layer.shape
    )


def _feature_map(
    layer: nn.Conv | nn.ConvLocal | nn.ConvTranspose,
    call: Mapping[str, Any],
    p: float,
) -> jax.Array:
    num_spatial = len(_sizes(layer.kernel_size))
    return norms.feature_map_norm(_input(call), p, num_spatial=num_spatial)


def _conv_patch(
    layer: nn.Conv | nn.ConvLocal, call: Mapping[str, Any], p: float
) -> jax.Array:
    x, kernel_size = _input(call), _sizes(layer.kernel_size)
    rank = len(kernel_size)
    windows = field.conv_windows(
        x.shape[-rank - 1 : -1],
        kernel_size,
        strides=_sizes(layer.strides, rank),
        padding=nn.linear.canonicalize_padding(layer.padding, rank),
        input_dilation=_sizes(layer.input_dilation, rank),
        kernel_dilation=_sizes(layer.kernel_dilation, rank),
    )
    return field.patch_norm(x, p, windows=windows, groups=layer.feature_group_count)


def _conv_transpose_patch(
    layer: nn.ConvTranspose, call: Mapping[str, Any], p: float
) -> jax.Array:
    x, kernel_size = _input(call), _sizes(layer.kernel_size)
    rank = len(kernel_size)
    windows = field.conv_transpose_windows(
        x.shape[-rank - 1 : -1],
        kernel_size,
        strides=_sizes(layer.strides, rank),
        padding=nn.linear.canonicalize_padding(layer.padding, rank),
        kernel_dilation=_sizes(layer.kernel_dilation, rank),
    )
    return field.patch_norm(x, p, windows=windows)


def _batch_norm(layer: nn.BatchNorm, call: Mapping[str, Any], p: float) -> jax.Array:
    x = _input(call)
    rank = len(_sizes(layer.axis))
    return norms.normalization_norm(x, p, sum_axes=range(1, x.ndim), scale_rank=rank)


def _sample_norm(
    layer: nn.GroupNorm | nn.InstanceNorm, call: Mapping[str, Any], p: float
) -> jax.Array:
    x = _input(call)
    rank = len(_sizes(getattr(layer, "feature_axes", -1)))
    return norms.normalization_norm(x, p, sum_axes=range(1, x.ndim), scale_rank=rank)


def _vector_norm(
    layer: nn.LayerNorm | nn.RMSNorm, call: Mapping[str, Any], p: float
) -> jax.Array:
    x = _input(call)
    sum_axes = [axis % x.ndim for axis in _sizes(layer.reduction_axes)]
    rank = len(_sizes(layer.feature_axes))
    return norms.normalization_norm(x, p, sum_axes=sum_axes, scale_rank=rank)


def _own_layer(axis: int | Sequence[int]) -> LayerNorm:
    """A user's layer whose input vector lies along `axis`: a scalar statistic."""

    def own_layer(layer: nn.Module, call: Mapping[str, Any], p: float) -> jax.Array:
        del layer
        return input_norm(_input(call), p, axis=axis)

    return own_layer


_NORMALIZATION: dict[type[nn.Module], LayerNorm] = {
    nn.BatchNorm: _batch_norm,
    nn.GroupNorm: _sample_norm,
    nn.InstanceNorm: _sample_norm,
    nn.LayerNorm: _vector_norm,
    nn.RMSNorm: _vector_norm,
}


def layer_norms(
    conv_input: str, norm_layers: bool, layers: LayerTypes | None
) -> dict[type[nn.Module], LayerNorm]:
    """The layer types a capture with these settings listens to."""
    if conv_input not in ("feature_map", "patch"):
        raise ValueError(
            f'conv_input={conv_input!r} is not known: give "feature_map" (the whole'
            ' input of a sample) or "patch" (the mean receptive field)'
        )
    patch = conv_input == "patch"
    table: dict[type[nn.Module], LayerNorm] = {
        nn.Dense: _dense,
        # The kernels of OptimizedLSTMCell lie in these, not in nn.Dense.
        DenseParams: _dense,
        nn.DenseGeneral: _dense_general,
        nn.Einsum: _einsum,
        nn.Conv: _conv_patch if patch else _feature_map,
        nn.ConvLocal: _conv_patch if patch else _feature_map,
        nn.ConvTranspose: _conv_transpose_patch if patch else _feature_map,
    }
    if norm_layers:
        table.update(_NORMALIZATION)
    if layers is None:
        return table
    own = layers if isinstance(layers, Mapping) else dict.fromkeys(layers, -1)
    for kind, axis in own.items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(
                f"layers has {kind!r}, which is no subclass of flax.linen.Module: give"
                " layer classes, or a dict from layer classes to the axes of their"
                " input vector"
            )
        table[kind] = _own_layer(axis)
    return table
