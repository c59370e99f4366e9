"""The Linen layers that have an input vector, and the power of each one's input."""

import contextlib
import inspect
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from insgd_optax import _norms as norms
from insgd_optax import _receptive_field as field
from insgd_optax._compat import DenseParams, canonicalize_padding, is_confined
from insgd_optax._norms import input_norm, statistic_dtype

# (layer, its call's arguments by name) -> its input power, or its input vectors.
OwnInput = Callable[[Any, Mapping[str, Any]], jax.Array]
LayerTypes = Sequence[type] | Mapping[type, int | Sequence[int] | OwnInput]
# (layer, its call's arguments by name, p) -> the statistic to sow. The layer's
# input is the first of its call's arguments.
InputNormFn = Callable[[Any, Mapping[str, Any], float], jax.Array]


class VarArgs(tuple[Any, ...]):
    """The values of a call's `*args`, as opposed to an argument that is a tuple."""


def call_arguments(
    call: Callable[..., Any], *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """A call's arguments by name."""
    signature = inspect.signature(call)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL and name in arguments:
            arguments[name] = VarArgs(arguments[name])
    return arguments


def layer_input(call: Mapping[str, Any]) -> jax.Array:
    """The first argument of a call, even if it was passed by keyword."""
    first = next(iter(call.values()))
    return first[0] if isinstance(first, VarArgs) else first


def with_input(call: Mapping[str, Any], x: Any) -> dict[str, Any]:
    """A call's arguments by name, with another first argument."""
    name, first = next(iter(call.items()))
    return {**call, name: VarArgs((x, *first[1:])) if isinstance(first, VarArgs) else x}


def as_tuple(value: int | Sequence[int] | None, length: int = 1) -> tuple[int, ...]:
    """A setting of Flax as a tuple: one int counts for each axis, and None is 1."""
    if value is None:
        return (1,) * length
    return (value,) * length if isinstance(value, int) else tuple(value)


def dense(layer: nn.Module, call: Mapping[str, Any], p: float) -> jax.Array:
    del layer
    return norms.dense_norm(layer_input(call), p)


def _dense_general(
    layer: nn.DenseGeneral, call: Mapping[str, Any], p: float
) -> jax.Array:
    return norms.dense_general_norm(
        layer_input(call),
        p,
        axis=as_tuple(layer.axis),
        batch_axes=as_tuple(layer.batch_dims),
        num_features=len(as_tuple(layer.features)),
    )


def _einsum(layer: nn.Einsum, call: Mapping[str, Any], p: float) -> jax.Array:
    equation = layer.einsum_str or call["einsum_str"]
    return norms.einsum_norm(
        layer_input(call), p, equation=equation, kernel_shape=layer.shape
    )


def feature_map(
    layer: nn.Conv | nn.ConvLocal | nn.ConvTranspose,
    call: Mapping[str, Any],
    p: float,
) -> jax.Array:
    num_spatial = len(as_tuple(layer.kernel_size))
    return norms.feature_map_norm(layer_input(call), p, num_spatial=num_spatial)


def conv_windows(
    layer: nn.Conv | nn.ConvLocal, spatial: Sequence[int]
) -> list[field.Window]:
    """The windows of a convolution over a map with these spatial sizes."""
    kernel_size = as_tuple(layer.kernel_size)
    rank = len(kernel_size)
    return field.conv_windows(
        spatial,
        kernel_size,
        strides=as_tuple(layer.strides, rank),
        padding=canonicalize_padding(layer.padding, rank),
        input_dilation=as_tuple(layer.input_dilation, rank),
        kernel_dilation=as_tuple(layer.kernel_dilation, rank),
    )


def conv_transpose_windows(
    layer: nn.ConvTranspose, spatial: Sequence[int]
) -> list[field.Window]:
    """The windows of a transposed convolution."""
    kernel_size = as_tuple(layer.kernel_size)
    rank = len(kernel_size)
    return field.conv_transpose_windows(
        spatial,
        kernel_size,
        strides=as_tuple(layer.strides, rank),
        padding=canonicalize_padding(layer.padding, rank),
        kernel_dilation=as_tuple(layer.kernel_dilation, rank),
    )


def _spatial(layer: Any, x: jax.Array) -> tuple[int, ...]:
    return x.shape[-len(as_tuple(layer.kernel_size)) - 1 : -1]


def conv_patch(
    layer: nn.Conv | nn.ConvLocal, call: Mapping[str, Any], p: float
) -> jax.Array:
    x = layer_input(call)
    windows = conv_windows(layer, _spatial(layer, x))
    return field.patch_norm(x, p, windows=windows, groups=layer.feature_group_count)


def conv_transpose_patch(
    layer: nn.ConvTranspose, call: Mapping[str, Any], p: float
) -> jax.Array:
    x = layer_input(call)
    return field.patch_norm(
        x, p, windows=conv_transpose_windows(layer, _spatial(layer, x))
    )


def sample_norm(
    layer: nn.BatchNorm | nn.GroupNorm | nn.InstanceNorm,
    call: Mapping[str, Any],
    p: float,
) -> jax.Array:
    """The power of a sample's whole input, in the rank of the layer's scale."""
    x = layer_input(call)
    rank = len(as_tuple(getattr(layer, "feature_axes", -1)))
    return norms.mean_power(x, p, sum_axes=range(1, x.ndim)).reshape((1,) * rank)


def vector_norm(
    layer: nn.LayerNorm | nn.RMSNorm, call: Mapping[str, Any], p: float
) -> jax.Array:
    x = layer_input(call)
    sum_axes = [axis % x.ndim for axis in as_tuple(layer.reduction_axes)]
    rank = len(as_tuple(layer.feature_axes))
    return norms.mean_power(x, p, sum_axes=sum_axes).reshape((1,) * rank)


def _own_layer(own: int | Sequence[int] | OwnInput) -> InputNormFn:
    """A user's layer with its input axes, or with a function that returns its power."""

    def own_layer(layer: Any, call: Mapping[str, Any], p: float) -> jax.Array:
        with naming_layer(layer):
            if callable(own):
                power = jnp.asarray(own(layer, call))
                return jax.lax.stop_gradient(power).astype(statistic_dtype(power.dtype))
            return input_norm(floating_input(call), p, axis=own)

    return own_layer


@contextlib.contextmanager
def naming_layer(layer: Any) -> Iterator[None]:
    """Adds a user's layer to errors that are raised when its input is measured."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"layers=: the input of {layer_name(layer)} could not be measured:"
            f" {type(error).__name__}: {error}"
        ) from error


def layer_name(layer: Any) -> str:
    """A layer's class and its path; in NNX the class alone: layers have no path."""
    path = "/".join(map(str, getattr(layer, "path", ())))
    return f"{type(layer).__name__} at {path}" if path else type(layer).__name__


def check_not_confined(layer: Any, value: Any, holder: Any) -> None:
    """Raises if what a layer sows cannot leave the transformation it is called in."""
    if is_confined(value, holder):
        raise ValueError(
            f"the model calls {layer_name(layer)} inside a transformation of JAX, such"
            " as jax.vmap, jax.lax.scan, jax.checkpoint or jax.jit, which does not"
            " return what the layer sows: use the transformation of Flax, such as"
            " nn.vmap, nn.scan, nn.remat or nn.jit (in NNX nnx.vmap and so on, with"
            " the layer as an argument)"
        )


def floating_input(call: Mapping[str, Any]) -> jax.Array:
    """A user layer's first argument; raises unless it is a floating-point array."""
    x = layer_input(call)
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        name = type(x).__name__
        kind = f"of type {name}" if dtype is None else f"an array of {dtype}"
        raise TypeError(
            f"its first argument, {next(iter(call))}, is {kind}, not a floating-point"
            " array. Give the class a function instead of an axis,"
            " layers={Class: lambda module, arguments: ...}, which takes the input from"
            f" {list(call)}, and returns its power, such as"
            ' insgd_optax.input_norm(arguments["x"]) (for capture_input_covariances the'
            " input vectors)"
        )
    return x


class LayerKinds(NamedTuple):
    """The layer types of Linen or of NNX."""

    module: type  # what every layer type derives from
    dense: Mapping[type, InputNormFn]
    conv: Mapping[str, Mapping[type, InputNormFn]]  # by conv_input
    normalization: Mapping[type, InputNormFn]


LINEN = LayerKinds(
    module=nn.Module,
    dense={
        nn.Dense: dense,
        # The kernels of OptimizedLSTMCell lie in these, not in nn.Dense.
        DenseParams: dense,
        nn.DenseGeneral: _dense_general,
        nn.Einsum: _einsum,
    },
    conv={
        "feature_map": {
            nn.Conv: feature_map,
            nn.ConvLocal: feature_map,
            nn.ConvTranspose: feature_map,
        },
        "patch": {
            nn.Conv: conv_patch,
            nn.ConvLocal: conv_patch,
            nn.ConvTranspose: conv_transpose_patch,
        },
    },
    normalization={
        nn.BatchNorm: sample_norm,
        nn.GroupNorm: sample_norm,
        nn.InstanceNorm: sample_norm,
        nn.LayerNorm: vector_norm,
        nn.RMSNorm: vector_norm,
    },
)


def input_norm_fns(
    kinds: LayerKinds, conv_input: str, norm_layers: bool, layers: LayerTypes | None
) -> dict[type, InputNormFn]:
    """The layer types a capture with these settings listens to."""
    if conv_input not in kinds.conv:
        raise ValueError(
            f'conv_input={conv_input!r} is not known: give "feature_map" (the whole'
            ' input of a sample) or "patch" (the mean receptive field)'
        )
    table = {**kinds.dense, **kinds.conv[conv_input]}
    if norm_layers:
        table.update(kinds.normalization)
    own = own_layers(layers, kinds.module)
    return {**table, **{kind: _own_layer(axis) for kind, axis in own.items()}}


def own_layers(
    layers: LayerTypes | None, module: type
) -> Mapping[type, int | Sequence[int] | OwnInput]:
    """A user's layer types with their input axes, or with their function.

    Raises:
        TypeError: if one is not a layer type.
    """
    if layers is None:
        return {}
    if isinstance(layers, type):
        raise TypeError(f"layers is one class: give layers=[{layers.__name__}]")
    own = layers if isinstance(layers, Mapping) else dict.fromkeys(layers, -1)
    for kind in own:
        if not (isinstance(kind, type) and issubclass(kind, module)):
            library = module.__module__.removesuffix(".module")
            raise TypeError(
                f"layers has {kind!r}, which is not a subclass of {library}.Module:"
                " give layer classes, or a dict from layer classes to the axes of"
                " their input vector or to a function"
            )
    return own


def layers_key(layers: LayerTypes | None) -> Hashable:
    """Equal for equal layer types; equal to nothing if they cannot be compared."""
    own = layers or ()
    pairs = own.items() if isinstance(own, Mapping) else [(kind, -1) for kind in own]
    try:
        return frozenset((kind, _axes_key(axes)) for kind, axes in pairs)
    except (TypeError, ValueError):  # no hash, or a variable that is not yet set
        return object()


def _axes_key(own: int | Sequence[int] | OwnInput) -> Hashable:
    if isinstance(own, Sequence):
        return tuple(own)
    if not isinstance(own, types.FunctionType):
        return own
    # A lambda that is written inline is another object in each pass. Two lambdas give
    # the same values if they have the same code and the code refers to the same values.
    values = [cell.cell_contents for cell in own.__closure__ or ()]
    values += [*(own.__defaults__ or ()), *(own.__kwdefaults__ or {}).values()]
    values += [own.__globals__.get(name) for name in _names(own.__code__)]
    return own.__code__, tuple((type(value), value) for value in values)


def _names(code: types.CodeType) -> list[str]:
    """The names of globals and attributes in a function's code."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]
