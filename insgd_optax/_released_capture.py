"""Capture for the released code: the power of inputs that it first standardises."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.recurrent import DenseParams

from insgd_optax import _layer_norms as norms
from insgd_optax._capture import listening, takes
from insgd_optax._layer_types import LayerNorm, layer_input, sizes
from insgd_optax._norms import check_p, mean_power, statistic_dtype
from insgd_optax._open_calls import Capture

# Another name than `input_norm`: each optimizer finds its own and misses the other's.
RELEASED_NAME = "released_input_norm"
_STD_FLOOR = 0.01
_DENSE_OFFSET = 0.1


@contextlib.contextmanager
def capture_released_norms(p: float = 2, tokens: str = "samples") -> Iterator[None]:
    r"""Makes the layers of any Linen model sow what `insgd_as_released` needs.

    The released code standardises a sample's input x before it takes its power,

    .. math::
        z = (x - \mathrm{mean}(x)) / \max(\mathrm{std}(x), 0.01)

    with the unbiased std. Each call of a layer sows, as `released_input_norm`:

    - Conv, ConvTranspose: one number an input channel c. mean and std run over the
      positions of the channel, and P_c = mean over samples of sum over positions of
      |z|^p. A grouped convolution has one an input channel of each group.
    - Dense, DenseGeneral and the kernels of recurrent cells: one number. mean and std
      run over the features, and P = mean over samples of sum over features of |z|^p,
      plus 0.1. For a sequence of tokens see `tokens`.

    A sample with a single position or feature has no std and counts as zero.

    Args:
        p: the norm: any number >= 1, but not infinity.
        tokens: what a Dense layer makes of an input with axes between the first and
            the features, such as (batch, tokens, features): "samples" takes each token
            for a sample, as the released ImageNet script does; "as_is" takes mean and
            std over the tokens, feature by feature, as the CIFAR scripts do.

    Yields:
        Nothing. Contexts nest: the innermost one is active. `capture_input_norms` may
        be open at the same time, and layers then sow both. Enter it where that one is
        entered: in the function that is traced.

    Raises:
        ValueError: if `p` is less than 1 or infinite, or `tokens` is not known.

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

    Source: the authors' released PyTorch code; the paper has no standardisation. That
    code fails on grouped convolutions, which are extended here.
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
            ' or "as_is" (standardised over the tokens)'
        )
    dense = functools.partial(_dense, tokens=tokens)
    table: dict[type, LayerNorm] = {
        nn.Dense: dense,
        DenseParams: dense,
        nn.DenseGeneral: functools.partial(_dense_general, tokens=tokens),
        nn.Conv: _conv,
        nn.ConvTranspose: _conv_transpose,
    }
    with listening(
        Capture("linen", RELEASED_NAME, takes(table, p), p=p, key=(p, tokens))
    ):
        yield


def _standardised(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """z: x without its mean and std over `axes`, cut off from differentiation."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    x = x.astype(statistic_dtype(x.dtype))
    if np.prod([x.shape[a] for a in axes]) < 2:
        # Its std is 0 / 0, for which the released code takes 0.001; x - mean is 0.
        return jnp.zeros_like(x)
    axes = tuple(axes)
    mean = jnp.mean(x, axis=axes, keepdims=True)
    std = jnp.std(x, axis=axes, ddof=1, keepdims=True)
    return (x - mean) / jnp.maximum(std, _STD_FLOOR)


def _axes(
    x: jax.Array, features: Sequence[int], batch: Sequence[int], tokens: str
) -> Sequence[int]:
    """The axes a Dense layer's input is standardised over."""
    between = [a for a in range(1, x.ndim) if a not in features and a not in batch]
    return between if tokens == "as_is" and between else features


def _dense(
    layer: nn.Module, call: Mapping[str, Any], p: float, *, tokens: str
) -> jax.Array:
    del layer
    x = layer_input(call)
    z = _standardised(x, _axes(x, [x.ndim - 1], [], tokens))
    return norms.dense_norm(z, p) + _DENSE_OFFSET


def _dense_general(
    layer: nn.DenseGeneral, call: Mapping[str, Any], p: float, *, tokens: str
) -> jax.Array:
    x = layer_input(call)
    features = [a % x.ndim for a in sizes(layer.axis)]
    batch = [a % x.ndim for a in sizes(layer.batch_dims)]
    power = norms.dense_general_norm(
        _standardised(x, _axes(x, features, batch, tokens)),
        p,
        axis=features,
        batch_axes=batch,
        num_features=len(sizes(layer.features)),
    )
    return power + _DENSE_OFFSET


def _channel_powers(
    layer: nn.Conv | nn.ConvTranspose, call: Mapping[str, Any], p: float
) -> jax.Array:
    """P_c, shape (channels,)."""
    x = layer_input(call)
    spatial = range(x.ndim - len(sizes(layer.kernel_size)) - 1, x.ndim - 1)
    z = _standardised(x, spatial)
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
    return by_group.reshape((1,) * len(sizes(layer.kernel_size)) + by_group.shape)


def _conv_transpose(
    layer: nn.ConvTranspose, call: Mapping[str, Any], p: float
) -> jax.Array:
    """Shape (1, ..., channels, 1), or (..., 1, channels) for a transposed kernel."""
    powers = _channel_powers(layer, call, p)
    shape = (1, powers.size) if layer.transpose_kernel else (powers.size, 1)
    return powers.reshape((1,) * len(sizes(layer.kernel_size)) + shape)
