"""The input covariance of each kind of layer, in the layout of its kernel."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from insgd_optax import _layer_types as layer_types
from insgd_optax._compat import DenseParams
from insgd_optax._covariance import (
    InputCovariance,
    factor_sizes,
    sum_of_products,
)
from insgd_optax._layer_types import as_tuple, layer_input
from insgd_optax._norms import einsum_operand, statistic_dtype
from insgd_optax._patches import RowSubsampling, positions, receptive_fields
from insgd_optax._receptive_field import Window

MAX_ROWS = 2048
FORMS = ("patch", "kronecker")


class Settings(NamedTuple):
    """The settings of `capture_input_covariances`."""

    max_rows: int | None
    max_dim: int
    conv_covariance: str


class Measurement(NamedTuple):
    """A layer's subsampled input, and how to compute its covariance.

    The product X^T X is computed inside the capture's `cond`, whose only operand is the
    subsample. If the whole activation were an operand, it would stay alive until the
    `cond`, and XLA could not fuse it into the layer that reads it.
    """

    x: jax.Array
    covariance: Callable[[jax.Array], InputCovariance]


# (layer, its call's arguments by name, settings) -> how to compute what to sow.
LayerCovarianceFn = Callable[[Any, Mapping[str, Any], Settings], Measurement]


def real(x: Any) -> jax.Array:
    """An input in a floating-point dtype, through which no gradient flows."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"a layer's input is {x.dtype}: its covariance must be real")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def of_vectors(
    x: jax.Array,
    axes: Sequence[int | None],
    kernel_rank: int,
    settings: Settings,
    batch: Sequence[int] = (),
) -> Measurement:
    """Measures input vectors that need no unfolding.

    Args:
        x: the input.
        axes: for each axis of `x` the axis of the kernel it meets, or None for rows.
        kernel_rank: the rank of the kernel.
        settings: settings of the capture.
        batch: the axes of the kernel that index separate inputs, not one vector.
    """
    rows = [a for a, k in enumerate(axes) if k is None]
    if not rows:
        x, axes, rows = x[None], [None, *axes], [0]
    x = RowSubsampling([x.shape[a] for a in rows], settings.max_rows).take(x, rows)

    def covariance(x: jax.Array) -> InputCovariance:
        return _sums(x, axes, kernel_rank, settings.max_dim, batch=batch)

    return Measurement(x, covariance)


def _sums(
    x: jax.Array,
    axes: Sequence[int | None],
    kernel_rank: int,
    max_dim: int,
    *,
    batch: Sequence[int] = (),
    kronecker: bool = False,
) -> InputCovariance:
    kernel = [1] * kernel_rank
    for size, k in zip(x.shape, axes, strict=True):
        if k is not None:
            kernel[k] = size
    shape = tuple(kernel)
    inputs = sorted(k for k in axes if k is not None and k not in batch)
    separate = {k: shape[k] for k in batch}
    factors = factor_sizes(shape, inputs, separate, max_dim, kronecker=kronecker)
    return sum_of_products(x, axes, shape, factors, statistic_dtype(x.dtype))


def dense(layer: Any, call: Mapping[str, Any], settings: Settings) -> Measurement:
    del layer
    x = real(layer_input(call))
    return of_vectors(x, [*[None] * (x.ndim - 1), 0], 2, settings)


def general(
    x: jax.Array,
    settings: Settings,
    *,
    axis: Sequence[int],
    batch_axes: Sequence[int],
    num_features: int,
) -> Measurement:
    """Measures the input of a kernel of shape (*batch, *inputs, *features)."""
    x = real(x)
    batch = sorted(a % x.ndim for a in batch_axes)
    order = [*batch, *sorted(a % x.ndim for a in axis)]
    axes = [order.index(a) if a in order else None for a in range(x.ndim)]
    rank = len(order) + num_features
    return of_vectors(x, axes, rank, settings, batch=range(len(batch)))


def _dense_general(
    layer: nn.DenseGeneral, call: Mapping[str, Any], settings: Settings
) -> Measurement:
    return general(
        layer_input(call),
        settings,
        axis=as_tuple(layer.axis),
        batch_axes=as_tuple(layer.batch_dims),
        num_features=len(as_tuple(layer.features)),
    )


def einsum(
    x: jax.Array, settings: Settings, equation: str, kernel: Sequence[int]
) -> Measurement:
    """Measures what an equation such as "btd,hdk->bthk" contracts with a kernel."""
    x, labels, kernel_labels, output_labels = einsum_operand(real(x), equation, kernel)
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
        axes.append(k)
    return of_vectors(x, axes, len(kernel), settings, batch)


def _einsum(
    layer: nn.Einsum, call: Mapping[str, Any], settings: Settings
) -> Measurement:
    equation = layer.einsum_str or call["einsum_str"]
    return einsum(layer_input(call), settings, equation, layer.shape)


def _samples(layer: Any, call: Mapping[str, Any]) -> jax.Array:
    """The input of a convolution with one axis of samples."""
    x = real(layer_input(call))
    rank = len(as_tuple(layer.kernel_size)) + 1
    return x.reshape(math.prod(x.shape[:-rank]), *x.shape[-rank:])


def _of_fields(
    x: jax.Array,
    windows: Sequence[Window],
    axes: Sequence[int | None],
    settings: Settings,
    *,
    groups: int = 1,
    is_flipped: bool = False,
) -> Measurement:
    """Measures receptive fields of axes (samples, *positions, *taps, channels)."""
    subsample = RowSubsampling([x.shape[0], *positions(windows)], settings.max_rows)
    rank = len(windows)
    taps = math.prod(window.kernel for window in windows)

    def covariance(x: jax.Array) -> InputCovariance:
        fields = receptive_fields(x, windows, subsample)
        if is_flipped:
            fields = jnp.flip(fields, axis=range(rank + 1, 2 * rank + 1))
        batch = []
        if groups > 1:
            # The groups of channels are those of the outputs.
            fields = fields.reshape(*fields.shape[:-1], groups, -1)
            batch = [rank + 1]
        kronecker = settings.conv_covariance == "kronecker" and taps > 1
        return _sums(
            fields, axes, rank + 2, settings.max_dim, batch=batch, kronecker=kronecker
        )

    return Measurement(subsample.take(x, [0]), covariance)


def conv(layer: nn.Conv, call: Mapping[str, Any], settings: Settings) -> Measurement:
    x = _samples(layer, call)
    windows = layer_types.conv_windows(layer, x.shape[1:-1])
    rank, groups = len(windows), layer.feature_group_count
    channels = [rank] if groups == 1 else [rank + 1, rank]
    axes = [*[None] * (rank + 1), *range(rank), *channels]
    return _of_fields(x, windows, axes, settings, groups=groups)


def conv_transpose(
    layer: nn.ConvTranspose, call: Mapping[str, Any], settings: Settings
) -> Measurement:
    x = _samples(layer, call)
    windows = layer_types.conv_transpose_windows(layer, x.shape[1:-1])
    rank = len(windows)
    # A transposed kernel is (*taps, outputs, inputs), and mirrored.
    channels = rank + 1 if layer.transpose_kernel else rank
    axes = [*[None] * (rank + 1), *range(rank), channels]
    return _of_fields(x, windows, axes, settings, is_flipped=layer.transpose_kernel)


def _conv_local(
    layer: nn.ConvLocal, call: Mapping[str, Any], settings: Settings
) -> Measurement:
    x = _samples(layer, call)
    windows = layer_types.conv_windows(layer, x.shape[1:-1])
    rank = len(windows)

    def covariance(x: jax.Array) -> InputCovariance:
        everywhere = RowSubsampling([x.shape[0], *positions(windows)], None)
        fields = receptive_fields(x, windows, everywhere)
        # Its kernel, (*positions, channels * taps, features), has channels first.
        fields = jnp.moveaxis(fields, -1, rank + 1)
        fields = fields.reshape(*fields.shape[: rank + 1], -1)
        axes = [None, *range(rank + 1)]
        return _sums(fields, axes, rank + 2, settings.max_dim, batch=range(rank))

    return Measurement(
        RowSubsampling(x.shape[:1], settings.max_rows).take(x, [0]), covariance
    )


LINEN: dict[type, LayerCovarianceFn] = {
    nn.Dense: dense,
    DenseParams: dense,
    nn.DenseGeneral: _dense_general,
    nn.Einsum: _einsum,
    nn.Conv: conv,
    nn.ConvLocal: _conv_local,
    nn.ConvTranspose: conv_transpose,
}
