"""The optimizer of the authors' released code, and the capture of its norms."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from insgd_optax import _norms as norms
from insgd_optax._capture import listening, takes
from insgd_optax._capture_stack import Capture
from insgd_optax._compat import DenseParams, is_placeholder
from insgd_optax._input_power import scaled_by
from insgd_optax._layer_types import InputNormFn, as_tuple, layer_input
from insgd_optax._matching import RELEASED_NAME, by_layer, matches
from insgd_optax._momentum import add_decayed_weights, dampened_trace
from insgd_optax._norms import check_p, mean_power, statistic_dtype
from insgd_optax._numbers import check_fraction, check_not_negative, is_number
from insgd_optax._paths import (
    Path,
    flatten,
    path_list,
    replace,
    scope_predicate,
)

_EPS = 0.01
_STD_FLOOR = 0.01
_DENSE_OFFSET = 0.1
_CAPTURE = (
    "capture with `with insgd_optax.capture_released_norms():`, inside the function"
    " that is traced, and give model.apply mutable=['intermediates']"
)


def insgd_as_released(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: ArrayLike = 0.9,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""INSGD as the authors' released code computes it, for comparisons.

    With g the gradient of a weight w,

    .. math::
        d &= g + \lambda w \\
        V &= \gamma V + d \quad (V = d \text{ at the first step}) \\
        w &\leftarrow w - \mu \frac{\kappa}{\max(\log P, 0.01)} V, \quad
        \kappa = \frac{\sqrt{1 + 10^{-6}}}{\sqrt{1 - \gamma} + 10^{-6}}

    where mu is `learning_rate`, gamma `momentum` and lambda `weight_decay`. P comes
    from `capture_released_norms`: one number per input channel of a convolution, one
    for a Dense kernel, of this batch alone. Parameters with a name other than "kernel"
    (biases, normalization layers, embeddings, class tokens) follow w <- w - mu V.

    P is the power of a standardized input and therefore, for p = 2, nearly the same at
    every step: close to height * width - 1 for a convolution, and to features - 0.9 for
    a Dense layer. See docs/released_code.md before treating its results as the paper's.

    Args:
        learning_rate: mu, a number of at least 0 or an optax schedule.
        momentum: gamma, in [0, 1). kappa is 3.162269 at 0.9 and 1 at 0.
        nesterov: whether the update is d + gamma V instead of V.
        weight_decay: lambda, at least 0. Unlike `insgd`'s it is normalized too.

    Returns:
        A transformation whose `update` requires the keyword `input_norms`, and the
        parameters where weight decay is not 0. It keeps no running average of P.
        `MultiSteps` does not pass the norms on, so it cannot contain this
        transformation. The dtype of an update is that of `dampened_trace`.

    Raises:
        ValueError: if a number is out of its range; from `init`, if there is no
            kernel; from `update`, when it is traced, if norms are missing, do not fit
            or are those of `capture_input_norms`. The message names the weights.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from insgd_optax import capture_released_norms, insgd_as_released
        >>> model = nn.Dense(1)
        >>> x = jnp.array([[3.0, 4.0], [5.0, 1.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> tx = insgd_as_released(learning_rate=1e-4, weight_decay=5e-4)
        >>> opt_state = tx.init(params)
        >>> def loss_fn(params):
        ...     with capture_released_norms(p=2):
        ...         y, sown = model.apply(
        ...             {"params": params}, x, mutable=["intermediates"]
        ...         )
        ...     return jnp.mean(y**2), sown
        >>> losses = []
        >>> for _ in range(20):
        ...     (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        ...     updates, opt_state = tx.update(
        ...         grads, opt_state, params, input_norms=norms
        ...     )
        ...     params = optax.apply_updates(params, updates)
        ...     losses.append(float(loss))
        >>> losses[-1] < losses[0]
        True

    Source: the authors' released PyTorch code. Algorithm 1 has no kappa, normalizes
    before weight decay and momentum, and remembers P: that is `insgd`.
    """
    check_not_negative(learning_rate=learning_rate)
    check_fraction(momentum=momentum)
    return optax.chain(
        add_decayed_weights(weight_decay),
        dampened_trace(momentum, nesterov=nesterov),
        _scale_by_released_norms(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_released_norms(
    momentum: Any,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each kernel's update by kappa / max(log P, 0.01)."""
    is_kernel = scope_predicate("kernel")
    sqrt = math.sqrt if is_number(momentum) else jnp.sqrt
    kappa = math.sqrt(1 + 1e-6) / (sqrt(1 - momentum) + 1e-6)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        paths = list(flatten(params).present)
        if not any(map(is_kernel, paths)) and not is_placeholder(params):
            raise ValueError(
                'no parameter is named "kernel", so nothing would be normalized. The'
                f" parameters are:\n{path_list(paths) or '  none'}"
            )
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        input_norms: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        if input_norms is None:
            raise ValueError(
                "input_norms is missing: call tx.update(grads, opt_state, params,"
                f" input_norms=sown); {_CAPTURE}."
                " insgd_optax.MultiSteps and flax's TrainState do not forward them"
            )
        grads = flatten(updates).present
        found = matches(by_layer(input_norms, RELEASED_NAME), grads)
        if absent := [path for path in grads if is_kernel(path) and path not in found]:
            raise ValueError(_missing(absent, input_norms))
        for path, grad in grads.items():
            if is_kernel(path):
                power = found[path].mean(found[path].power_shape())
                # A channel that is zero has P = 0, whose log is -inf.
                divisor = jnp.maximum(jnp.log(power), _EPS)
                grads[path] = scaled_by(kappa / divisor, grad)
        return replace(updates, grads.values()), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _missing(absent: list[Path], input_norms: Any) -> str:
    """The error message for kernels without a norm."""
    message = f"these kernels have no {RELEASED_NAME}:\n{path_list(absent)}\n"
    if by_layer(input_norms):
        return (
            f"{message}input_norms holds the paper's norms, which capture_input_norms"
            f" sows for insgd: {_CAPTURE}"
        )
    return (
        f"{message}Only Dense, DenseGeneral, Conv, ConvTranspose and recurrent cells"
        f" have one: {_CAPTURE}"
    )


@contextlib.contextmanager
def capture_released_norms(p: float = 2, tokens: str = "samples") -> Iterator[None]:
    r"""Makes the layers of any Linen model sow what `insgd_as_released` needs.

    The released code standardizes a sample's input x before it takes the power,

    .. math::
        z = (x - \mathrm{mean}(x)) / \max(\mathrm{std}(x), 0.01)

    with the unbiased std. Each call of a layer sows, as `released_input_norm`:

    - Conv, ConvTranspose: one number per input channel c. mean and std run over the
      positions of the channel, and P_c = mean over samples of sum over positions of
      |z|^p. A grouped convolution has one per input channel of each group.
    - Dense, DenseGeneral and the kernels of recurrent cells: one number. mean and std
      run over the features, and P = mean over samples of sum over features of |z|^p,
      plus 0.1. For a sequence of tokens see `tokens`.

    A sample with a single position or feature has no std and counts as zero.

    Args:
        p: the norm: any number >= 1, but not infinity.
        tokens: how a Dense layer's input with axes between the first and the features,
            such as (batch, tokens, features), is standardized: "samples" treats each
            token as a sample, as the released ImageNet script does; "as_is" computes
            mean and std over the tokens, feature by feature, as the CIFAR scripts do.

    Yields:
        Nothing. Contexts nest; the innermost one is active. `capture_input_norms` may
        be open at the same time, and layers then sow both. Enter the context inside
        the traced function.

    Raises:
        ValueError: if `p` is less than 1 or infinite, or `tokens` is unknown.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import capture_released_norms
        >>> model = nn.Dense(3)
        >>> x = jnp.array([[3.0, 4.0, 8.0], [0.0, 0.0, 0.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> with capture_released_norms(p=2):
        ...     y, sown = model.apply(variables, x, mutable=["intermediates"])
        >>> (norm,) = sown["intermediates"]["released_input_norm"]
        >>> print(norm.round(4))  # ((3 - 1) + 0) / 2 + 0.1
        [[1.1]]

    Source: the authors' released PyTorch code; the paper has no standardization. That
    code fails on grouped convolutions, which are an extension of this library.
    """
    check_p(p)
    if p == np.inf:
        raise ValueError(
            "p=inf is not a norm of the released code: give a finite p, or use insgd"
            " with capture_input_norms(p=jnp.inf)"
        )
    if tokens not in ("samples", "as_is"):
        raise ValueError(
            f'tokens={tokens!r} is not known: give "samples" (each token is a sample)'
            ' or "as_is" (standardized over the tokens)'
        )
    dense = functools.partial(_dense, tokens=tokens)
    table: dict[type, InputNormFn] = {
        nn.Dense: dense,
        DenseParams: dense,
        nn.DenseGeneral: functools.partial(_dense_general, tokens=tokens),
        nn.Conv: _conv,
        nn.ConvTranspose: _conv_transpose,
    }
    with listening(Capture("linen", RELEASED_NAME, takes(table, p), key=(p, tokens))):
        yield


def _standardized(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """z: x without its mean and std over `axes`, through which no gradient flows."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    x = x.astype(statistic_dtype(x.dtype))
    if np.prod([x.shape[a] for a in axes]) < 2:
        # The std is 0 / 0, which the released code replaces by 0.001, not by the floor
        # of 0.01. With any value, z is 0, because x - mean is 0.
        return jnp.zeros_like(x)
    axes = tuple(axes)
    mean = jnp.mean(x, axis=axes, keepdims=True)
    std = jnp.std(x, axis=axes, ddof=1, keepdims=True)
    return (x - mean) / jnp.maximum(std, _STD_FLOOR)


def _axes(
    x: jax.Array, features: Sequence[int], batch: Sequence[int], tokens: str
) -> Sequence[int]:
    """The axes a Dense layer's input is standardized over."""
    between = [a for a in range(1, x.ndim) if a not in features and a not in batch]
    return between if tokens == "as_is" and between else features


def _dense(
    layer: nn.Module, call: Mapping[str, Any], p: float, *, tokens: str
) -> jax.Array:
    del layer
    x = layer_input(call)
    z = _standardized(x, _axes(x, [x.ndim - 1], [], tokens))
    return norms.dense_norm(z, p) + _DENSE_OFFSET


def _dense_general(
    layer: nn.DenseGeneral, call: Mapping[str, Any], p: float, *, tokens: str
) -> jax.Array:
    x = layer_input(call)
    features = [a % x.ndim for a in as_tuple(layer.axis)]
    batch = [a % x.ndim for a in as_tuple(layer.batch_dims)]
    power = norms.dense_general_norm(
        _standardized(x, _axes(x, features, batch, tokens)),
        p,
        axis=features,
        batch_axes=batch,
        num_features=len(as_tuple(layer.features)),
    )
    return power + _DENSE_OFFSET


def _channel_powers(
    layer: nn.Conv | nn.ConvTranspose, call: Mapping[str, Any], p: float
) -> jax.Array:
    """P_c, shape (channels,)."""
    x = layer_input(call)
    spatial = range(x.ndim - len(as_tuple(layer.kernel_size)) - 1, x.ndim - 1)
    z = _standardized(x, spatial)
    return mean_power(z, p, sum_axes=spatial, keep_axes=[x.ndim - 1])


def _conv(layer: nn.Conv, call: Mapping[str, Any], p: float) -> jax.Array:
    """Shape (1, ..., channels of a group, 1), or (..., features) if grouped."""
    powers = _channel_powers(layer, call, p)
    groups = layer.feature_group_count
    by_group = powers.reshape(groups, -1).T
    if groups > 1:
        # A grouped kernel has the channels of one group; its output features, group
        # after group, tell which.
        by_group = jnp.repeat(by_group, layer.features // groups, axis=1)
    return by_group.reshape((1,) * len(as_tuple(layer.kernel_size)) + by_group.shape)


def _conv_transpose(
    layer: nn.ConvTranspose, call: Mapping[str, Any], p: float
) -> jax.Array:
    """Shape (1, ..., channels, 1), or (..., 1, channels) for a transposed kernel."""
    powers = _channel_powers(layer, call, p)
    shape = (1, powers.size) if layer.transpose_kernel else (powers.size, 1)
    return powers.reshape((1,) * len(as_tuple(layer.kernel_size)) + shape)
