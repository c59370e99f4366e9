"""The input covariance of each kind of layer, in the layout of its kernel."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from insgd_optax import _layer_types as layer_types
from insgd_optax._covariance import (
    MAX_DIM,
    InputCovariance,
    factor_sizes,
    sum_of_products,
)
from insgd_optax._layer_norms import einsum_operand
from insgd_optax._layer_types import layer_input, sizes
from insgd_optax._norms import statistic_dtype
from insgd_optax._patches import Thinning, fields_by_position, patches
from insgd_optax._receptive_field import Window

MAX_ROWS = 2048
FORMS = ("patch", "kronecker")


class Settings(NamedTuple):
    """What to measure, of `capture_input_covariances`."""

    max_rows: int | None = MAX_ROWS
    max_dim: int = MAX_DIM
    conv_covariance: str = "patch"


# (layer, its call's arguments by name, settings) -> what to sow.
LayerCovarianceFn = Callable[[Any, Mapping[str, Any], Settings], InputCovariance]


def _array(x: Any) -> jax.Array:
    """An input in a floating-point dtype, cut off from differentiation."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"a layer's input is {x.dtype}: its covariance must be real")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def covariance(
    x: jax.Array,
    axes: Sequence[int | None],
    kernel: Sequence[int],
    settings: Settings,
    *,
    spatial: bool = False,
    batch: Sequence[int] = (),
) -> InputCovariance:
    """Sums x x^T over the rows of an input.

    Args:
        x: the input.
        axes: for each axis of `x` the axis of the kernel it meets, or None.
        kernel: the shape of the kernel; sizes of output axes do not matter.
        settings: of the capture.
        spatial: whether the input vectors are receptive fields.
        batch: the axes of the kernel that index separate inputs, not one vector.
    """
    rows = [a for a, k in enumerate(axes) if k is None]
    if not rows:
        x, axes, rows = x[None], [None, *axes], [0]
    if not spatial:  # Receptive fields are thinned before they are built.
        thin = Thinning([x.shape[a] for a in rows], settings.max_rows)
        x = thin.take(x, rows)
    shape = list(kernel)
    for size, k in zip(x.shape, axes, strict=True):
        if k is not None:
            shape[k] = size
    inputs = sorted(k for k in axes if k is not None and k not in batch)
    max_dim = settings.max_dim
    if spatial and settings.conv_covariance == "kronecker" and len(inputs) > 1:
        # No one matrix, however small, unless there is but one tap.
        taps = math.prod(shape[k] for k in inputs[:-1])
        whole = taps * shape[inputs[-1]]
        factors = factor_sizes(
            tuple(shape),
            inputs,
            {k: shape[k] for k in batch},
            max_dim if taps == 1 else min(max_dim, whole - 1),
            spatial=True,
        )
    else:
        factors = factor_sizes(
            tuple(shape),
            inputs,
            {k: shape[k] for k in batch},
            max_dim,
            spatial=spatial,
        )
    return sum_of_products(x, axes, tuple(shape), factors, statistic_dtype(x.dtype))


def dense(layer: Any, call: Mapping[str, Any], settings: Settings) -> InputCovariance:
    del layer
    x = _array(layer_input(call))
    axes = [*[None] * (x.ndim - 1), 0]
    return covariance(x, axes, (x.shape[-1], 1), settings)


def general(
    x: jax.Array,
    settings: Settings,
    *,
    axis: Sequence[int],
    batch_axes: Sequence[int],
    num_features: int,
) -> InputCovariance:
    """Of a kernel of shape (*batch, *inputs, *features)."""
    x = _array(x)
    batch = sorted(a % x.ndim for a in batch_axes)
    order = [*batch, *sorted(a % x.ndim for a in axis)]
    axes = [order.index(a) if a in order else None for a in range(x.ndim)]
    kernel = [1] * (len(order) + num_features)
    return covariance(x, axes, kernel, settings, batch=range(len(batch)))


def _dense_general(
    layer: nn.DenseGeneral, call: Mapping[str, Any], settings: Settings
) -> InputCovariance:
    return general(
        layer_input(call),
        settings,
        axis=sizes(layer.axis),
        batch_axes=sizes(layer.batch_dims),
        num_features=len(sizes(layer.features)),
    )


def einsum(
    x: jax.Array, settings: Settings, equation: str, kernel: Sequence[int]
) -> InputCovariance:
    """Of a kernel that an equation such as "btd,hdk->bthk" joins with the input."""
    x, labels, kernel_labels, output_labels = einsum_operand(
        _array(x), equation, kernel
    )
    axes: list[int | None] = []
    batch = []
    for a, label in enumerate(labels):
        if label not in kernel_labels:
            axes.append(None)
            continue
        k = kernel_labels.index(label)
        if label in output_labels:
            if x.shape[a] != kernel[k]:
                axes.append(None)  # one input for all kernels along this axis
                continue
            batch.append(k)
        elif x.shape[a] != kernel[k]:
            x = jnp.broadcast_to(x, (*x.shape[:a], kernel[k], *x.shape[a + 1 :]))
        axes.append(k)
    return covariance(x, axes, [1] * len(kernel), settings, batch=batch)


def _einsum(
    layer: nn.Einsum, call: Mapping[str, Any], settings: Settings
) -> InputCovariance:
    equation = layer.einsum_str or call["einsum_str"]
    return einsum(layer_input(call), settings, equation, layer.shape)


def _samples(layer: Any, call: Mapping[str, Any]) -> jax.Array:
    """The input of a convolution with one axis of samples."""
    x = _array(layer_input(call))
    rank = len(sizes(layer.kernel_size)) + 1
    return x.reshape(-1, *x.shape[x.ndim - rank :])


def _rows(x: jax.Array, windows: Sequence[Window], settings: Settings) -> jax.Array:
    """Receptive fields of shape (rows, *taps, channels)."""
    rows = patches(x, windows, settings.max_rows)
    return rows.reshape(rows.shape[0], *(w.kernel for w in windows), rows.shape[-1])


def conv(
    layer: nn.Conv, call: Mapping[str, Any], settings: Settings
) -> InputCovariance:
    x = _samples(layer, call)
    rows = _rows(x, layer_types.conv_windows(layer, x.shape[1:-1]), settings)
    taps, groups = rows.ndim - 2, layer.feature_group_count
    kernel = [1] * (taps + 2)
    if groups == 1:
        axes = [None, *range(taps + 1)]
        return covariance(rows, axes, kernel, settings, spatial=True)
    rows = rows.reshape(*rows.shape[:-1], groups, -1)
    # The groups of channels are those of the outputs.
    axes = [None, *range(taps), taps + 1, taps]
    return covariance(rows, axes, kernel, settings, spatial=True, batch=[taps + 1])


def conv_transpose(
    layer: nn.ConvTranspose, call: Mapping[str, Any], settings: Settings
) -> InputCovariance:
    x = _samples(layer, call)
    rows = _rows(x, layer_types.conv_transpose_windows(layer, x.shape[1:-1]), settings)
    taps = rows.ndim - 2
    kernel = [1] * (taps + 2)
    if not layer.transpose_kernel:
        axes = [None, *range(taps + 1)]
        return covariance(rows, axes, kernel, settings, spatial=True)
    rows = jnp.flip(rows, axis=range(1, taps + 1))
    axes = [None, *range(taps), taps + 1]
    return covariance(rows, axes, kernel, settings, spatial=True)


def _conv_local(
    layer: nn.ConvLocal, call: Mapping[str, Any], settings: Settings
) -> InputCovariance:
    x = _samples(layer, call)
    windows = layer_types.conv_windows(layer, x.shape[1:-1])
    fields = fields_by_position(x, windows, settings.max_rows)
    # Its kernel, (*positions, channels * taps, features), has channels first.
    fields = jnp.swapaxes(fields, -1, -2)
    fields = fields.reshape(*fields.shape[:-2], -1)
    positions = len(windows)
    axes = [None, *range(positions + 1)]
    settings = settings._replace(max_rows=None)
    kernel = [1] * (positions + 2)
    return covariance(fields, axes, kernel, settings, batch=range(positions))


LINEN: dict[type, LayerCovarianceFn] = {
    nn.Dense: dense,
    layer_types.DenseParams: dense,
    nn.DenseGeneral: _dense_general,
    nn.Einsum: _einsum,
    nn.Conv: conv,
    nn.ConvLocal: _conv_local,
    nn.ConvTranspose: conv_transpose,
}
