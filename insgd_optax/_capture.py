"""Capture for Flax Linen: unmodified layers sow the power of their input."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from insgd_optax._capture_stack import (
    Calls,
    Capture,
    Take,
    active_capture,
    active_captures,
    opened,
    task_settings,
)
from insgd_optax._compat import InterceptorContext, export_sown
from insgd_optax._layer_types import (
    LINEN,
    InputNormFn,
    LayerTypes,
    call_arguments,
    check_not_confined,
    input_norm_fns,
    layers_key,
)
from insgd_optax._matching import COLLECTION, NAME, entry_name, has_entry, is_entry
from insgd_optax._norms import check_p, input_norm
from insgd_optax._paths import path_string, tuple_path

_calls = Calls()


@contextlib.contextmanager
def capture_input_norms(
    p: float = 2,
    *,
    conv_input: str = "feature_map",
    norm_layers: bool = False,
    layers: LayerTypes | None = None,
) -> Iterator[None]:
    r"""Makes the layers of any Linen model sow the power of their input.

    Inside the context every Dense, DenseGeneral, Einsum, Conv, ConvTranspose and
    ConvLocal, those within attention and recurrent cells included, sows

    .. math::
        \frac{1}{N} \sum_n \|x_n\|_p^p

    as `input_norm` into the collection "intermediates" each time it is called, where N
    is the number of samples (Eq. 26 and 29). A sample x_n is:

    - Dense, DenseGeneral, Einsum: the vector along the contracted axes. Every token
      of a sequence is a sample. Each kernel along batch axes has its own number.
    - Conv, ConvLocal, ConvTranspose: with `conv_input="feature_map"` the whole input
      map of an example, all heights, widths and channels ("the input feature maps of
      each layer", section 3.1); with `conv_input="patch"` each receptive field (the
      "inputs to the neuron", Eq. 25), including its padding (zeros, unless it is
      circular or reflected), averaged over groups. The two differ by a factor of about
      height * width / kernel area, so a 1x1 convolution and a Dense layer on the same
      map have different multipliers with "feature_map".
    - normalization layers, with `norm_layers=True`: for LayerNorm and RMSNorm, the
      vector that they normalize; for the others, the whole input of an example.

    The statistic has the rank of the kernel it scales, with singleton axes where it
    does not vary. Its dtype is float32 (float64 for float64 inputs), and no gradient
    flows through it.

    Enter the context inside the function that is traced, so that one compiled function
    has one setting. The settings are a part of JAX's cache keys: a function that was
    traced outside the context, or with other settings, is traced again. The model must
    be applied with "intermediates" in `mutable`. `nn.scan`, `nn.vmap` and `nn.RNN`
    return norms stacked along axis 0 if their `variable_axes` do not mention
    "intermediates". If they stack the parameters along another axis, `variable_axes`
    must give "intermediates" the same axis.

    Args:
        p: the norm: any number >= 1, or `jnp.inf`.
        conv_input: "feature_map" or "patch".
        norm_layers: whether BatchNorm, LayerNorm, RMSNorm, GroupNorm and InstanceNorm
            also sow; their scale and bias are scaled with `scope="layer"`.
        layers: layer types of your own: a sequence of classes whose input vector is
            the last axis of their first argument, or a dict from class to the axis or
            axes, or to a function of the module and the call's arguments by name that
            returns the power, such as `lambda module, call: input_norm(call["x"], p)`.
            A subclass of a known layer needs no entry. Two functions with the same
            code that refer to the same values count as one setting; a function that
            refers to an array counts as a new setting in each context, so that eager
            passes are compiled again; run the pass under `jax.jit` to avoid this.

    Yields:
        Nothing. Contexts nest; of those that sow the same statistic, only the innermost
        is active. Other threads are unaffected. So are other asyncio tasks, provided
        that the task that enters the context does not `await` inside it.

    Raises:
        ValueError: if `p` is less than 1, or an option is unknown.
        TypeError: if `layers` contains anything but subclasses of `nn.Module`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import capture_input_norms
        >>> model = nn.Dense(3)
        >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> with capture_input_norms(p=2):
        ...     y, sown = model.apply(variables, x, mutable=["intermediates"])
        >>> sown["intermediates"]
        {'input_norm': (Array([[13.]], dtype=float32),)}

    Source: section 3.1, Eq. 26 and 29; the two readings of a convolution's input are
    both the paper's own words.
    """
    check_p(p)
    table = input_norm_fns(LINEN, conv_input, norm_layers, layers)
    key = (p, conv_input, norm_layers, layers_key(layers))
    with listening(Capture("linen", NAME, takes(table, p), settings=p, key=key)):
        yield


def takes(table: Mapping[type, InputNormFn], p: float) -> dict[type, Take]:
    """Binds p in a table of layer types."""

    def take(input_norm_fn: InputNormFn) -> Take:
        return lambda layer, arguments: input_norm_fn(layer, arguments, p)

    return {kind: take(input_norm_fn) for kind, input_norm_fn in table.items()}


@contextlib.contextmanager
def listening(capture: Capture) -> Iterator[None]:
    """Makes the layers of any Linen model sow the statistic of `capture`."""
    export_sown(
        COLLECTION, lambda: {each.name for each in active_captures("linen")}, is_entry
    )
    with opened(capture, nn.intercept_methods(_intercept)):
        yield


def _intercept(
    next_fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    """Runs one method of a module, once for all open captures.

    Each open capture registers this interceptor. The first to see a call handles it.
    """
    if _calls.is_intercepted(context):
        return next_fun(*args, **kwargs)
    with _calls.intercepted(context) as is_outermost, task_settings():
        module = context.module
        captures = active_captures("linen")
        if is_outermost:
            _check_not_fed_back(module, {capture.name for capture in captures})
        if context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        found = [(capture, capture.take(module)) for capture in captures]
        taken = [(capture, take) for capture, take in found if take is not None]
        if not taken:
            return next_fun(*args, **kwargs)
        # Identified by path and `take`, not by object: lifting creates a new module
        # object, and a model applied inside a layer can share the layer's path.
        layers = [(capture.name, module.path, take) for capture, take in taken]
        output, innermost = _calls.run(layers, lambda: next_fun(*args, **kwargs))
        if module.is_mutable_collection(COLLECTION):
            call = call_arguments(context.orig_method, *args, **kwargs)
            for (capture, take), is_innermost in zip(taken, innermost, strict=True):
                if is_innermost:
                    sow(module, capture.name, take(module, call))
        return output


def sow(module: nn.Module, name: str, value: Any) -> None:
    """`module.sow`, which raises if the value would be lost."""
    check_not_confined(module, value, module.scope)
    module.sow(COLLECTION, name, value)


def _check_not_fed_back(module: nn.Module, names: Iterable[str]) -> None:
    """Raises if a model starts out with values that an earlier pass has sown."""
    scope = module.scope
    if scope is None or module.path or not module.is_mutable_collection(COLLECTION):
        return
    # A bound module may be called again. So may a lifted one, such as that of `nn.jit`:
    # its scope, which has a debug path, starts with the values its last call sowed.
    if scope.root in _calls.started or scope.debug_path:
        return
    _calls.started.add(scope.root)
    sown = module.variables.get(COLLECTION, {})
    for keys, _ in jax.tree.leaves_with_path(sown):
        path = tuple_path(keys)
        for name in names:
            if any(is_entry(key, name) for key in path):
                raise ValueError(
                    f"the variables passed to {type(module).__name__} hold"
                    f" {path_string(path)} of an earlier pass, which would be averaged"
                    f' with this pass\'s {name}: do not pass "intermediates" to apply'
                )


def sow_input_norm(
    module: nn.Module,
    x: jax.Array,
    p: float | None = None,
    *,
    axis: int | Sequence[int] = -1,
    weight: str | None = None,
) -> None:
    """Sows the power of a hand-written layer's input, in one line of its `__call__`.

    Sows `input_norm(x, p, axis=axis)`, a scalar, beside the parameters of `module`.
    With `input_norms_like`, the scalars of a layer that `nn.scan` or `nn.vmap` stacks
    are read as one value per layer. In a recurrent cell, whose steps share a kernel,
    sow the norm with the kernel's rank instead:
    `self.sow("intermediates", "input_norm", input_norm(x).reshape(1, 1))`.

    Args:
        module: the module whose `kernel` is multiplied with the input; `self` in its
            `__call__`.
        x: the input, an array of any dtype.
        p: the norm; None, the default, is the p of the surrounding
            `capture_input_norms`, so that all layers of a model agree; outside of any,
            it is 2.
        axis: the axis or axes of `x` that make up one input vector.
        weight: the name of the parameter of `module` that is multiplied with this
            input; None if the module has a single scaled weight, besides its bias. A
            module with several scaled weights calls this once for each; `update` raises
            an error if one norm would apply to several of them.

    Raises:
        ValueError: if `p` is less than 1 or `axis` is not an axis of `x`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import sow_input_norm
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         sow_input_norm(self, x)
        ...         return x @ self.param("kernel", nn.initializers.ones, (2, 1))
        >>> x = jnp.array([[3.0, 4.0]])
        >>> params = Linear().init(jax.random.key(0), x)["params"]
        >>> _, sown = Linear().apply({"params": params}, x, mutable=["intermediates"])
        >>> sown["intermediates"]["input_norm"]
        (Array(25., dtype=float32),)

    Source: Eq. 26 and 29.
    """
    if p is None:
        around = active_capture("linen", NAME)
        p = 2 if around is None else around.settings
    check_p(p)
    if module.is_mutable_collection(COLLECTION):
        sow(module, entry_name(NAME, weight), input_norm(x, p, axis=axis))


def input_norm_shapes(
    model: nn.Module,
    rngs: jax.Array | Mapping[str, jax.Array],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Returns the shapes and dtypes of what a model sows, without computing it.

    Call this function inside the capture. Pass the result as `input_norms_like`, so
    that layers stacked by `nn.scan` or `nn.vmap` keep one running power P each instead
    of one P for the whole stack.

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
        >>> from insgd_optax import capture_input_norms, input_norm_shapes
        >>> model = nn.vmap(
        ...     nn.Dense,
        ...     variable_axes={"params": 0, "intermediates": 0},
        ...     split_rngs={"params": True},
        ... )(3)
        >>> with capture_input_norms():
        ...     x = jnp.ones((4, 1, 2))
        ...     shapes = input_norm_shapes(model, jax.random.key(0), x)
        >>> shapes["input_norm"][0].shape
        (4, 1, 1)
    """
    return shapes_of_sown(NAME, "capture_input_norms", model, rngs, *args, **kwargs)


def shapes_of_sown(
    name: str,
    capture: str,
    model: nn.Module,
    rngs: jax.Array | Mapping[str, jax.Array],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The shapes of what a model sows; raises unless there is a value of this name."""
    init = functools.partial(model.init, mutable=True)
    sown = shapes_of_call(init, rngs, *args, **kwargs).get(COLLECTION, {})
    check_sown(sown, name, f"insgd_optax.{capture}", model)
    return sown


def shapes_of_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`jax.eval_shape` that leaves arguments such as `train=True` as they are."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}

    def call(arrays: dict[int, Any]) -> Any:
        whole = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(treedef, whole)
        return function(*args, **kwargs)

    return jax.eval_shape(call, arrays)


def check_sown(sown: Any, name: str, capture: str, model: Any) -> None:
    """Raises unless a tree holds a value of this name."""
    if not has_entry(sown, name):
        raise ValueError(
            f"{type(model).__name__} sows no {name.replace('_', ' ')}: call"
            f" {name}_shapes inside `with {capture}(...)`, with the options training"
            " will use"
        )
