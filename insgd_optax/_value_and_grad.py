"""Loss, gradients and a statistic of the inputs in one call."""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax

from insgd_optax._capture import capture_input_norms
from insgd_optax._covariance import MAX_DIM
from insgd_optax._covariance_capture import capture_input_covariances
from insgd_optax._layer_covariances import MAX_ROWS
from insgd_optax._layer_types import LayerTypes
from insgd_optax._matching import COLLECTION, COVARIANCE_NAME, NAME, is_entry
from insgd_optax._paths import only

_NO_INTERMEDIATES = (
    "the loss returned no 'intermediates': it must return (loss, variables), or with"
    " has_aux=True (loss, (variables, aux)), where variables is the second value that"
    " model.apply(..., mutable=['intermediates']) returns"
)


def value_and_grad_with_input_norms(
    loss_fn: Callable[..., Any],
    p: float = 2,
    has_aux: bool = False,
    *,
    conv_input: str = "feature_map",
    norm_layers: bool = False,
    layers: LayerTypes | None = None,
) -> Callable[..., tuple[tuple[jax.Array, Any], Any, Any]]:
    """`jax.value_and_grad` of a loss that also returns the input norms.

    Args:
        loss_fn: a function of the parameters and whatever else it needs, which applies
            a Linen model with "intermediates" in `mutable` and returns
            `(loss, variables)`, where `variables` is what the model mutated; with
            `has_aux`, `(loss, (variables, extra))`.
        p: the norm; see `capture_input_norms`.
        has_aux: whether the loss function returns auxiliary data in addition to the
            variables.
        conv_input: see `capture_input_norms`.
        norm_layers: see `capture_input_norms`.
        layers: see `capture_input_norms`.

    Returns:
        A function with the arguments of `loss_fn` that returns
        `((loss, aux), grads, norms)`: the loss; the second value that `loss_fn`
        returned (`variables`, or with `has_aux` the pair `(variables, extra)`), with
        the input norms removed; the gradients with respect to the first argument; and
        the input norms, to pass to `update` as `input_norms`.

    Raises:
        ValueError: if the variables hold no "intermediates", or p is out of range.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import value_and_grad_with_input_norms
        >>> model, x = nn.Dense(1), jnp.array([[3.0, 4.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> def loss_fn(params, x):
        ...     y, variables = model.apply(
        ...         {"params": params}, x, mutable=["intermediates"]
        ...     )
        ...     return jnp.mean(y**2), variables
        >>> grad_fn = value_and_grad_with_input_norms(loss_fn)
        >>> (loss, aux), grads, norms = grad_fn(params, x)
        >>> norms["input_norm"][0].shape, aux
        ((1, 1), {'intermediates': {}})
    """
    capture = functools.partial(
        capture_input_norms,
        p,
        conv_input=conv_input,
        norm_layers=norm_layers,
        layers=layers,
    )
    return _value_and_grad(loss_fn, capture, NAME, has_aux)


def value_and_grad_with_input_covariances(
    loss_fn: Callable[..., Any],
    has_aux: bool = False,
    *,
    when: bool | jax.Array = True,
    max_rows: int | None = MAX_ROWS,
    max_dim: int = MAX_DIM,
    conv_covariance: str = "patch",
    layers: LayerTypes | None = None,
) -> Callable[..., tuple[tuple[jax.Array, Any], Any, Any]]:
    """`jax.value_and_grad` of a loss that also returns the input covariances.

    Args:
        loss_fn: see `value_and_grad_with_input_norms`.
        has_aux: whether the loss function returns auxiliary data in addition to the
            variables.
        when: whether this pass measures, as in `capture_input_covariances`. It may be
            traced: inside a jitted step, `when=step % 10 == 0`.
        max_rows: see `capture_input_covariances`.
        max_dim: see `capture_input_covariances`.
        conv_covariance: see `capture_input_covariances`.
        layers: see `capture_input_covariances`.

    Returns:
        A function with the arguments of `loss_fn` that returns
        `((loss, aux), grads, covariances)`, the last for `update`'s
        `input_covariances`: see `value_and_grad_with_input_norms`.

    Raises:
        ValueError: if the variables hold no "intermediates", or a setting is out of
            range.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import value_and_grad_with_input_covariances
        >>> model, x = nn.Dense(1), jnp.array([[3.0, 4.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> def loss_fn(params, x):
        ...     y, variables = model.apply(
        ...         {"params": params}, x, mutable=["intermediates"]
        ...     )
        ...     return jnp.mean(y**2), variables
        >>> grad_fn = value_and_grad_with_input_covariances(loss_fn)
        >>> (loss, aux), grads, covariances = grad_fn(params, x)
        >>> covariances["input_covariance"][0].factors[0].reshape(2, 2)
        Array([[ 9., 12.],
               [12., 16.]], dtype=float32)
    """
    capture = functools.partial(
        capture_input_covariances,
        when=when,
        max_rows=max_rows,
        max_dim=max_dim,
        conv_covariance=conv_covariance,
        layers=layers,
    )
    return _value_and_grad(loss_fn, capture, COVARIANCE_NAME, has_aux)


def _value_and_grad(
    loss_fn: Callable[..., Any],
    capture: Callable[[], AbstractContextManager[None]],
    statistic: str,
    has_aux: bool,
) -> Callable[..., tuple[tuple[jax.Array, Any], Any, Any]]:
    def captured(*args: Any, **kwargs: Any) -> tuple[jax.Array, Any]:
        with capture():
            result = loss_fn(*args, **kwargs)
        if not _is_pair(result):
            raise ValueError(_NO_INTERMEDIATES)
        return result

    def value_and_grad(*args: Any, **kwargs: Any) -> Any:
        (loss, aux), grads = jax.value_and_grad(captured, has_aux=True)(*args, **kwargs)
        if has_aux and not _is_pair(aux):
            raise ValueError(_NO_INTERMEDIATES)
        variables = aux[0] if has_aux else aux
        if not isinstance(variables, Mapping) or COLLECTION not in variables:
            raise ValueError(_NO_INTERMEDIATES)
        sown = variables[COLLECTION]
        found = only(sown, lambda name: is_entry(name, statistic))
        rest = only(sown, lambda name: not is_entry(name, statistic))
        variables = {**variables, COLLECTION: rest}
        return (loss, (variables, aux[1]) if has_aux else variables), grads, found

    return value_and_grad


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2
