"""Capture for Flax Linen: unmodified layers sow the covariance of their input."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from insgd_optax._capture import listening, shapes_of_sown, sow
from insgd_optax._capture_stack import Capture, Take, active_capture
from insgd_optax._covariance import MAX_DIM, InputCovariance
from insgd_optax._explicit_axes import with_auto_axes
from insgd_optax._layer_covariances import (
    FORMS,
    LINEN,
    MAX_ROWS,
    LayerCovarianceFn,
    Measurement,
    Settings,
    of_vectors,
    real,
)
from insgd_optax._layer_types import (
    LayerTypes,
    OwnInput,
    floating_input,
    layer_input,
    layers_key,
    naming_layer,
    own_layers,
    with_input,
)
from insgd_optax._matching import COLLECTION, COVARIANCE_NAME, entry_name, sown_key
from insgd_optax._norms import input_axes
from insgd_optax._numbers import check_whole_number
from insgd_optax._paths import Path, tuple_path


@contextlib.contextmanager
def capture_input_covariances(
    *,
    when: bool | jax.Array = True,
    max_rows: int | None = MAX_ROWS,
    max_dim: int = MAX_DIM,
    conv_covariance: str = "patch",
    layers: LayerTypes | None = None,
) -> Iterator[None]:
    r"""Makes the layers of any Linen model sow the covariance of their input.

    Inside the context every layer type of `capture_input_norms` except normalization
    layers sows

    .. math::
        \sum_{i=1}^n x_i x_i^T \quad\text{and}\quad n

    as `input_covariance` into the collection "intermediates" each time it is called,
    where n is the number of input vectors. The input vectors x_i are:

    - Dense, DenseGeneral, Einsum, recurrent cells: the vectors along the contracted
      axes, one per token of a sequence. Each kernel along batch axes has a matrix.
    - Conv, ConvTranspose: the receptive fields, including their padding (zeros, unless
      it is circular or reflected). Each group of a grouped convolution has a matrix; in
      ConvLocal, each position.

    Sums of micro-batches, devices and repeated uses add up. They are float32 (float64
    for float64 inputs), and no gradient flows through them. A layer whose sums are not
    finite sows zeros and n = 0.

    Enter the context inside the function that is traced. `capture_input_norms` may be
    open at the same time. As there, what is sown inside `nn.scan`, `nn.vmap` and
    `nn.RNN` is returned stacked along axis 0; the cell of an RNN sows one matrix per
    time step.

    Args:
        when: whether to measure in this pass: a bool, or a traced boolean such as
            `step % 10 == 0`, with which one compiled program serves both cases. A pass
            that does not measure sows n = 0, at no cost if `when` is a bool.
        max_rows: the maximum number of input vectors per matrix and call of a layer,
            taken with strides over positions and samples; None for all. Under `pmap`
            and `shard_map` it applies to each device.
        max_dim: the maximum number of rows of a matrix; see
            `scale_by_input_covariance`.
        conv_covariance: "patch", or "kronecker" for a Kronecker product of kernel
            positions and channels in every Conv and ConvTranspose, even within
            `max_dim`.
        layers: layer types of your own: a sequence of classes whose input vector is
            the last axis of their first argument, or a dict from class to the axis or
            axes, or to a function of the module and the call's arguments by name that
            returns the input vectors, along the last axis. The kernel of such a layer
            must have the shape `(*inputs, outputs)`.

    Yields:
        Nothing. Contexts nest as those of `capture_input_norms` do.

    Raises:
        ValueError: if a number is out of range, or an option is not known.
        TypeError: if `when` is not a bool, or `layers` contains anything but subclasses
            of `nn.Module`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import capture_input_covariances
        >>> model = nn.Dense(3)
        >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> with capture_input_covariances():
        ...     y, sown = model.apply(variables, x, mutable=["intermediates"])
        >>> (covariance,) = sown["intermediates"]["input_covariance"]
        >>> print(covariance.factors[0].reshape(2, 2), covariance.count)
        [[ 9. 12.]
         [12. 17.]] 2.0

    Source: the statistic X^T X / n of docs/input_covariance.md.
    """
    capture = covariance_capture(
        "linen", LINEN, nn.Module, when, max_rows, max_dim, conv_covariance, layers
    )
    with listening(capture):
        yield


def covariance_capture(
    library: str,
    table: Mapping[type, LayerCovarianceFn],
    module: type,
    when: bool | jax.Array,
    max_rows: int | None,
    max_dim: int,
    conv_covariance: str,
    layers: LayerTypes | None,
) -> Capture:
    """Returns what the layers of a library sow with these settings.

    Raises:
        TypeError: if `when` is not a bool.
        ValueError: if a number is out of range, or an option is not known.
    """
    if max_rows is not None:
        check_whole_number("max_rows", max_rows, least=1)
    check_whole_number("max_dim", max_dim, least=2)
    if conv_covariance not in FORMS:
        raise ValueError(
            f'conv_covariance={conv_covariance!r} is not known: give "patch" or'
            ' "kronecker"'
        )
    # A number would count as true unless it is 0: the opposite of what
    # `when=step % 10` means.
    kind = getattr(when, "dtype", type(when))
    if kind not in (bool, jnp.dtype(bool)):
        raise TypeError(
            f"when is of type {getattr(kind, '__name__', kind)}, but must be a bool,"
            " such as step % 10 == 0"
        )
    if jnp.shape(when) != ():
        raise ValueError(f"when has shape {jnp.shape(when)}, but must be a scalar")
    if not isinstance(when, jax.core.Tracer):
        when = bool(when)
    settings = Settings(max_rows, max_dim, conv_covariance)

    def take(measure: LayerCovarianceFn) -> Take:
        return lambda layer, call: measured(
            layer_input(call),
            lambda x: measure(layer, with_input(call, x), settings),
            when,
        )

    def take_vectors(own: OwnInput) -> Take:
        return lambda layer, call: measured(
            _own_vectors(own, layer, call), lambda x: along(x, -1, settings), when
        )

    key: Hashable = object()
    if isinstance(when, bool):
        key = (when, settings, layers_key(layers))
    takes = {kind: take(measure) for kind, measure in table.items()}
    for kind, own in own_layers(layers, module).items():
        takes[kind] = take_vectors(own) if callable(own) else take(_own_layer(own))
    return Capture(library, COVARIANCE_NAME, takes, settings=(settings, when), key=key)


def _own_layer(axis: int | Sequence[int]) -> LayerCovarianceFn:
    def own_layer(
        layer: Any, call: Mapping[str, Any], settings: Settings
    ) -> Measurement:
        with naming_layer(layer):
            return along(floating_input(call), axis, settings)

    return own_layer


def _own_vectors(own: OwnInput, layer: Any, call: Mapping[str, Any]) -> jax.Array:
    with naming_layer(layer):
        return real(own(layer, call))


def along(x: jax.Array, axis: int | Sequence[int], settings: Settings) -> Measurement:
    """Measures vectors along `axis`, the input of a kernel (*inputs, outputs)."""
    x = real(x)
    inputs = input_axes(x, axis)
    axes = [inputs.index(a) if a in inputs else None for a in range(x.ndim)]
    return of_vectors(x, axes, len(inputs) + 1, settings)


def measured(
    x: Any, measure: Callable[[Any], Measurement], when: bool | jax.Array
) -> InputCovariance:
    """The covariance of an input, or n = 0 where `when` is false."""

    def value(x: Any, when: bool | jax.Array = when) -> InputCovariance:
        sample, covariance = measure(x)

        with jax.named_scope(COVARIANCE_NAME):
            if when is True:
                return covariance(sample)
            shapes = jax.eval_shape(covariance, sample)

            def zeros() -> InputCovariance:
                return jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), shapes)

            if when is False:
                return zeros()
            # Without axes of length 1: a layout that differs only in these would make
            # XLA on CPUs copy the arrays, even in a pass that does not measure.
            found = jax.lax.cond(
                when,
                lambda x: jax.tree.map(jnp.squeeze, covariance(x)),
                lambda _: jax.tree.map(jnp.squeeze, zeros()),
                sample,
            )
            return jax.tree.map(lambda y, like: y.reshape(like.shape), found, shapes)

    arrays = (x,) if isinstance(when, bool) else (x, when)
    return with_auto_axes(value, *arrays)


def sow_input_covariance(
    module: nn.Module,
    x: jax.Array,
    *,
    axis: int | Sequence[int] = -1,
    weight: str | None = None,
) -> None:
    """Sows the covariance of a hand-written layer's input, in one line of its call.

    It does so only inside `capture_input_covariances`, with its settings.

    Args:
        module: the module whose `kernel`, of shape `(*inputs, outputs)`, is multiplied
            with the input; `self` in its `__call__`.
        x: the input, an array of any real dtype.
        axis: the axis or axes of `x` that make up one input vector.
        weight: the name of the parameter that is multiplied with this input; see
            `sow_input_norm`.

    Raises:
        ValueError: if `axis` is not an axis of `x`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import capture_input_covariances, sow_input_covariance
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         sow_input_covariance(self, x)
        ...         return x @ self.param("kernel", nn.initializers.ones, (2, 1))
        >>> x = jnp.array([[3.0, 4.0]])
        >>> params = Linear().init(jax.random.key(0), x)["params"]
        >>> with capture_input_covariances():
        ...     _, sown = Linear().apply(
        ...         {"params": params}, x, mutable=["intermediates"]
        ...     )
        >>> sown["intermediates"]["input_covariance"][0].factors[0].reshape(2, 2)
        Array([[ 9., 12.],
               [12., 16.]], dtype=float32)
    """
    around = active_capture("linen", COVARIANCE_NAME)
    if around is not None and module.is_mutable_collection(COLLECTION):
        settings, when = around.settings
        value = measured(x, lambda x: along(x, axis, settings), when)
        sow(module, entry_name(COVARIANCE_NAME, weight), value)


def input_covariance_shapes(
    model: nn.Module, rngs: Any, *args: Any, **kwargs: Any
) -> Any:
    """Returns the shapes and dtypes of what a model sows, without computing it.

    Call this function inside the capture. Pass the result as `input_covariances_like`,
    which tells the optimizer which axes of a kernel belong to its input, where the
    shape alone does not.

    Args:
        model: a Linen module.
        rngs: as for `model.init`.
        *args: as for `model.init`; arrays may be `jax.ShapeDtypeStruct`.
        **kwargs: likewise.

    Returns:
        A tree of `jax.ShapeDtypeStruct` like the model's "intermediates".

    Raises:
        ValueError: if nothing is sown, for example because no capture is open.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import capture_input_covariances, input_covariance_shapes
        >>> model = nn.Conv(8, (3, 3), feature_group_count=2, use_bias=False)
        >>> with capture_input_covariances():
        ...     shapes = input_covariance_shapes(
        ...         model, jax.random.key(0), jnp.ones((1, 8, 8, 4))
        ...     )
        >>> shapes["input_covariance"][0].factors[0].shape
        (3, 3, 2, 2, 3, 3, 2, 1)
    """
    return shapes_of_sown(
        COVARIANCE_NAME, "capture_input_covariances", model, rngs, *args, **kwargs
    )


def covariances_by_layer(tree: Any) -> dict[Path, list[InputCovariance]]:
    """The covariances in what a model sowed, by layer; all else is ignored."""
    if isinstance(tree, Mapping):
        tree = tree.get(COLLECTION, tree)
    nodes = jax.tree.leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, InputCovariance)
    )
    sown: dict[Path, list[InputCovariance]] = {}
    for keys, node in nodes:
        if isinstance(node, InputCovariance):
            key = sown_key(tuple_path(keys), COVARIANCE_NAME)
            if key is not None:
                sown.setdefault(key, []).append(node)
    return sown
