"""Input norms and input covariances for models of Flax NNX.

The inputs of NNX layers are captured like those of Linen layers. The optimizers are the
same, and `nnx.Optimizer.update` forwards `input_norms` to them. A complete training
loop:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from insgd_optax import input_powers, insgd
    >>> from insgd_optax.nnx import capture_input_norms

    >>> class MLP(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.linear1 = nnx.Linear(2, 16, rngs=rngs)
    ...         self.linear2 = nnx.Linear(16, 1, rngs=rngs)
    ...
    ...     def __call__(self, x):
    ...         return self.linear2(nnx.tanh(self.linear1(x)))

    >>> def loss_fn(model, x, y):
    ...     with capture_input_norms(p=2):
    ...         prediction, norms = nnx.capture(model, nnx.Intermediate)(x)
    ...     return jnp.mean((prediction - y) ** 2), norms

    >>> @nnx.jit
    ... def train_step(model, optimizer, x, y):
    ...     grad_fn = nnx.value_and_grad(loss_fn, has_aux=True)
    ...     (loss, norms), grads = grad_fn(model, x, y)
    ...     optimizer.update(model, grads, input_norms=norms)
    ...     return loss

    >>> x = 3 * jax.random.normal(jax.random.key(0), (64, 2))
    >>> y = jnp.sin(x[:, :1])
    >>> model = MLP(nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, insgd(learning_rate=0.2), wrt=nnx.Param)
    >>> losses = [float(train_step(model, optimizer, x, y)) for _ in range(200)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    >>> sorted(input_powers(optimizer.opt_state))
    ['linear1/kernel', 'linear2/kernel']

`nnx.capture` is Flax's own (0.12.6 or newer): it returns what layers sow and leaves
none of it in the model. A module that holds its own kernel sows the norm of its input
in one line of its `__call__`:

    self.sow(nnx.Intermediate, "input_norm", insgd_optax.input_norm(x, p=2))

A module with several weights sows one norm per weight, named for example
"input_norm.w1" for w1.
"""

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from insgd_optax._capture import check_sown, shapes_of_call, takes
from insgd_optax._capture_stack import (
    Capture,
    active_captures,
    opened,
    task_settings,
)
from insgd_optax._compat import nnx_captures
from insgd_optax._covariance import MAX_DIM
from insgd_optax._covariance_capture import covariance_capture
from insgd_optax._layer_covariances import MAX_ROWS
from insgd_optax._layer_types import (
    LayerTypes,
    call_arguments,
    check_not_confined,
    input_norm_fns,
    layers_key,
)
from insgd_optax._matching import COVARIANCE_NAME, NAME
from insgd_optax._nnx_layer_types import NNX, NNX_COVARIANCES
from insgd_optax._norms import check_p
from insgd_optax._patching import Call, replaced_calls


@contextlib.contextmanager
def capture_input_norms(
    p: float = 2,
    *,
    conv_input: str = "feature_map",
    norm_layers: bool = False,
    layers: LayerTypes | None = None,
) -> Iterator[None]:
    r"""Makes the layers of any NNX model sow the power of their input.

    Inside the context, and inside `nnx.capture`, every Linear, LinearGeneral, Einsum,
    Conv and ConvTranspose, those within MultiHeadAttention and recurrent cells
    included, sows

    .. math::
        \frac{1}{N} \sum_n \|x_n\|_p^p

    as `input_norm` each time it is called, where N is the number of samples (Eq. 26 and
    29). The definition of a sample x_n, and the rank, dtype and stopped gradient of the
    statistic, are those of `insgd_optax.capture_input_norms`.

    Enter the context inside the traced function. Under `nnx.scan` and `nnx.vmap` norms
    follow the axes of the model: with `in_axes=0` layers are stacked, and so are their
    norms. A model that is shared or carried there needs an axis for what it sows:
    `nnx.StateAxes({nnx.Intermediate: 0, ...: None})` if it is shared,
    `nnx.StateAxes({nnx.Intermediate: 0, ...: nnx.Carry})` if it is carried. For
    `nnx.RNN`, the capture adds such an axis by itself. `nnx.remat` and `nnx.jit` need
    no change; `nnx.while_loop` and `nnx.fori_loop`, which cannot stack, raise an error.

    Args:
        p: see `insgd_optax.capture_input_norms`, also for the other arguments.
        conv_input: "feature_map" or "patch".
        norm_layers: whether normalization layers sow too.
        layers: layer types of your own, subclasses of `nnx.Module`.

    Yields:
        Nothing; see `insgd_optax.capture_input_norms`.

    Raises:
        ValueError: if `p` is less than 1, or an option is unknown.
        TypeError: if `layers` contains anything but subclasses of `nnx.Module`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from insgd_optax.nnx import capture_input_norms
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> with capture_input_norms(p=2):
        ...     y, norms = nnx.capture(model, nnx.Intermediate)(x)
        >>> norms["input_norm"].get_value()
        (Array([[13.]], dtype=float32),)

    Source: section 3.1, Eq. 26 and 29. NNX has no interceptors: while a context is
    open, the `__call__` of each layer class is replaced.
    """
    check_p(p)
    table = takes(input_norm_fns(NNX, conv_input, norm_layers, layers), p)
    key = (p, conv_input, norm_layers, layers_key(layers))
    with listening(Capture("nnx", NAME, table, settings=p, key=key)):
        yield


@contextlib.contextmanager
def capture_input_covariances(
    *,
    when: bool | jax.Array = True,
    max_rows: int | None = MAX_ROWS,
    max_dim: int = MAX_DIM,
    conv_covariance: str = "patch",
    layers: LayerTypes | None = None,
) -> Iterator[None]:
    """Makes the layers of any NNX model sow the covariance of their input.

    The layers are those of `capture_input_norms`, without normalization layers; what
    they sow, the arguments and the errors are as for
    `insgd_optax.capture_input_covariances`. `nnx.Optimizer.update` forwards
    `input_covariances` to the optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from insgd_optax.nnx import capture_input_covariances
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> with capture_input_covariances():
        ...     y, sown = nnx.capture(model, nnx.Intermediate)(x)
        >>> (covariance,) = sown["input_covariance"].get_value()
        >>> print(covariance.factors[0].reshape(2, 2), covariance.count)
        [[ 9. 12.]
         [12. 17.]] 2.0
    """
    capture = covariance_capture(
        "nnx",
        NNX_COVARIANCES,
        nnx.Module,
        when,
        max_rows,
        max_dim,
        conv_covariance,
        layers,
    )
    with listening(capture):
        yield


@contextlib.contextmanager
def listening(capture: Capture) -> Iterator[None]:
    """Makes the layers of any NNX model sow the statistic of `capture`."""
    with opened(capture, replaced_calls([*capture.layers, nnx.RNN], _listening)):
        yield


def _listening(original: Call) -> Call:
    """A layer class's `__call__` while a capture is open in some thread."""

    @functools.wraps(original)
    def call(layer: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        captures, captured = active_captures("nnx"), nnx_captures(layer)
        # Outside `nnx.capture` a sown value would stay in the model.
        if not captures or captured is None:
            return original(layer, *args, **kwargs)
        with task_settings():
            if isinstance(layer, nnx.RNN):
                return _stacked_over_time(original, layer, *args, **kwargs)
            found = [(capture, capture.take(layer)) for capture in captures]
            taken = [(capture.name, take) for capture, take in found if take]
            before = {name: _times_sown(layer, name) for name, _ in taken}
            output = original(layer, *args, **kwargs)
            # A subclass may change the input before it calls `super().__call__`: what
            # reaches the innermost call is what the kernel sees, and it alone is sown.
            wanted = [
                each for each in taken if _times_sown(layer, each[0]) == before[each[0]]
            ]
            if wanted:
                bound = types.MethodType(original, layer)
                arguments = call_arguments(bound, *args, **kwargs)
                for name, take in wanted:
                    value = take(layer, arguments)
                    for variable in captured:
                        check_not_confined(layer, value, variable)
                    layer.sow(nnx.Intermediate, name, value)
            return output

    return call


def _times_sown(layer: nnx.Module, name: str) -> int:
    """The number of values of this name that `nnx.capture` has from the layer."""
    for variable in nnx_captures(layer) or ():
        if type(variable) is nnx.Intermediate:
            return len(variable[name]) if name in variable else 0
    return 0


def _stacked_over_time(original: Call, rnn: nnx.RNN, *args: Any, **kwargs: Any) -> Any:
    """Runs an RNN whose scan returns what the cell sows, stacked over time."""
    if nnx.Intermediate in list(rnn.state_axes):
        return original(rnn, *args, **kwargs)
    # A copy, which shares the cell: other threads may be calling the RNN itself.
    twin = object.__new__(type(rnn))
    vars(twin).update(vars(rnn))
    # By default the cell's state is carried; sown values cannot be.
    axes: dict[Any, Any] = {nnx.Intermediate: 0, **rnn.state_axes}
    object.__setattr__(twin, "state_axes", nnx.StateAxes(axes))
    before = dict(vars(twin))
    output = original(twin, *args, **kwargs)
    # A subclass may set attributes in its call.
    for name, value in vars(twin).items():
        if name not in before or value is not before[name]:
            setattr(rnn, name, value)
    return output


def input_norm_shapes(model: nnx.Module, *args: Any, **kwargs: Any) -> Any:
    """Returns the shapes and dtypes of what a model sows, without computing it.

    Call this function inside the capture. Pass the result as `input_norms_like`, so
    that layers stacked by `nnx.vmap` or `nnx.scan` keep one P each instead of sharing
    their mean.

    Args:
        model: an NNX module; neither it nor its state is changed.
        *args: as for the model's call; arrays or `jax.ShapeDtypeStruct`.
        **kwargs: as for the model's call.

    Returns:
        An `nnx.State` of `jax.ShapeDtypeStruct` like the one `nnx.capture` returns.

    Raises:
        ValueError: if nothing is sown, for example because no capture is open.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from insgd_optax.nnx import capture_input_norms, input_norm_shapes
        >>> @nnx.split_rngs(splits=4)
        ... @nnx.vmap
        ... def make_layers(rngs):
        ...     return nnx.Linear(3, 3, rngs=rngs)
        >>> @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        ... def apply_layers(layer, x):
        ...     return layer(x)
        >>> class Stack(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.layers = make_layers(rngs)
        ...
        ...     def __call__(self, x):
        ...         return apply_layers(self.layers, x)
        >>> with capture_input_norms():
        ...     shapes = input_norm_shapes(Stack(nnx.Rngs(0)), jnp.ones((1, 3)))
        >>> shapes["layers"]["input_norm"].get_value()[0].shape
        (4, 1, 1)
    """
    return _shapes_of_sown(NAME, "capture_input_norms", model, *args, **kwargs)


def input_covariance_shapes(model: nnx.Module, *args: Any, **kwargs: Any) -> Any:
    """Like `input_norm_shapes`, but for the capture `capture_input_covariances`.

    Pass the result as `input_covariances_like`, which tells the optimizer which axes of
    a kernel belong to its input, where the shape alone does not.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from insgd_optax.nnx import (
        ...     capture_input_covariances, input_covariance_shapes)
        >>> model = nnx.LinearGeneral(3, (2, 4), rngs=nnx.Rngs(0), use_bias=False)
        >>> with capture_input_covariances():
        ...     shapes = input_covariance_shapes(model, jnp.ones((5, 3)))
        >>> shapes["input_covariance"].get_value()[0].factors[0].shape
        (3, 1, 1, 3, 1, 1)
    """
    return _shapes_of_sown(
        COVARIANCE_NAME, "capture_input_covariances", model, *args, **kwargs
    )


def _shapes_of_sown(
    name: str, capture: str, model: nnx.Module, *args: Any, **kwargs: Any
) -> Any:
    graphdef, state = nnx.split(model)

    def sown(state: Any, *args: Any, **kwargs: Any) -> Any:
        call = nnx.capture(nnx.merge(graphdef, state), nnx.Intermediate)
        return call(*args, **kwargs)[1]

    shapes = shapes_of_call(sown, state, *args, **kwargs)
    check_sown(shapes, name, f"insgd_optax.nnx.{capture}", model)
    return shapes
