"""Powers of input vectors: ||x||_p^p, averaged over samples."""

import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from insgd_optax._explicit_axes import on_auto_axes


def check_p(p: float) -> None:
    """Raises unless `p` names a norm."""
    if isinstance(p, bool) or not isinstance(p, numbers.Real) or not p >= 1:
        raise ValueError(
            f"p={p!r} names no norm: give a number of at least 1, or jnp.inf"
        )


def wider(dtype: jnp.dtype, other: jnp.dtype) -> jnp.dtype:
    """The dtype with more bits; `promote_types` fails under strict promotion."""
    return dtype if jnp.finfo(dtype).bits >= jnp.finfo(other).bits else other


def statistic_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype a power is accumulated in: float64 for float64, else float32."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits == 64
    return jnp.dtype("float64") if wide else jnp.dtype("float32")


def _magnitude(x: jax.Array) -> jax.Array:
    """|x| in the statistic's dtype, through which no gradient flows."""
    x = jax.lax.stop_gradient(jnp.asarray(x))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.abs(x)
    return jnp.abs(x.astype(statistic_dtype(x.dtype)))


def entry_powers(x: jax.Array, p: float) -> jax.Array:
    """|x|^p of each entry (|x| for the infinity norm), float32 or float64."""
    magnitude = _magnitude(x)
    if p == 1 or p == np.inf:
        return magnitude
    if p == 2:
        return jnp.square(magnitude)
    return magnitude**p


def nan_or_zero(powers: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns nan if an entry along `axes` is nan, else 0.

    It is added to a maximum: on CPUs, XLA's maximum of a large array ignores nan.
    """
    return jnp.where(jnp.isnan(powers), powers, 0).sum(axis=tuple(axes))


@on_auto_axes
def mean_power(
    x: jax.Array,
    p: float,
    *,
    sum_axes: Sequence[int],
    keep_axes: Sequence[int] = (),
) -> jax.Array:
    """||x||_p^p over `sum_axes`, averaged over all axes but these and `keep_axes`.

    Args:
        x: an array of any dtype.
        p: the norm; `jnp.inf` takes the largest magnitude over `sum_axes`.
        sum_axes: the axes that make up one input vector, not negative.
        keep_axes: the axes along which the result varies, not negative.

    Returns:
        An array with the sizes of `keep_axes`, in ascending order of the axes.
    """
    powers = entry_powers(x, p)
    rest = tuple(
        a for a in range(powers.ndim) if a not in sum_axes and a not in keep_axes
    )
    if p == np.inf:
        largest = jnp.max(powers, axis=tuple(sum_axes), keepdims=True, initial=0.0)
        axes = (*rest, *sum_axes)
        return jnp.mean(largest, axis=axes) + nan_or_zero(powers, axes)
    # A float, since JAX takes no integers beyond 2^31.
    count = float(np.prod([powers.shape[a] for a in rest], dtype=np.int64))
    # One sum over all axes but `keep_axes`: XLA then reads x once and keeps nothing
    # of it.
    return jnp.sum(powers, axis=(*rest, *sum_axes)) / count


def input_norm(
    x: jax.Array, p: float = 2, *, axis: int | Sequence[int] = -1
) -> jax.Array:
    r"""The mean over samples of ||x_n||_p^p, the number whose average is P.

    With x_n the entries of one sample along `axis` and N the number of samples,
    which are all other axes of `x` together,

    .. math::
        \frac{1}{N} \sum_n \sum_i |x_{n,i}|^p \ \text{ for finite } p, \qquad
        \frac{1}{N} \sum_n \max_i |x_{n,i}| \ \text{ for } p = \infty

    Args:
        x: real or complex array of any dtype.
        p: the norm: any number >= 1, or `jnp.inf`.
        axis: the axis or axes that make up one input vector: -1 for the features
            of a Dense layer, (-3, -2, -1) for an image in a convolution.

    Returns:
        A scalar, float32 (float64 for a float64 `x`), in units of |x|^p. It is cut
        off from differentiation: its gradient with respect to `x` is zero.

    Raises:
        ValueError: if `p` is less than 1 or `axis` is not an axis of `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import input_norm
        >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> print(input_norm(x), input_norm(x, p=1), input_norm(x, p=jnp.inf))
        13.0 4.0 2.5

    Source: Eq. 26 (p = 2) and Eq. 29. The paper does not say how the samples of a
    mini-batch are combined; the mean is this library's choice. Nor does it define the
    "p-th power" of the infinity norm: here it is the largest magnitude, which is
    experimental.
    """
    check_p(p)
    x = jnp.asarray(x)
    return mean_power(x, p, sum_axes=input_axes(x, axis))


def input_axes(x: jax.Array, axis: int | Sequence[int]) -> list[int]:
    """The axes of an input vector, counted from 0; raises if x does not have one."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if not -x.ndim <= a < x.ndim:
            raise ValueError(f"axis={axis} is not an axis of x with shape {x.shape}")
    return [a % x.ndim for a in axes]


# The input power of each kind of layer, in the rank of the kernel it scales, with
# singleton axes where it does not vary. Powers that `nn.scan` or `nn.vmap` stacks
# therefore broadcast against the stacked kernel.


def dense_norm(x: jax.Array, p: float) -> jax.Array:
    """Shape (1, 1): every vector along the last axis is one input, tokens too."""
    return mean_power(x, p, sum_axes=[x.ndim - 1]).reshape(1, 1)


def dense_general_norm(
    x: jax.Array,
    p: float,
    *,
    axis: Sequence[int],
    batch_axes: Sequence[int],
    num_features: int,
) -> jax.Array:
    """Shape (*batch sizes, 1, ...): one number for each kernel of the batch."""
    sum_axes = [a % x.ndim for a in axis]
    keep_axes = sorted(a % x.ndim for a in batch_axes)
    power = mean_power(x, p, sum_axes=sum_axes, keep_axes=keep_axes)
    return power.reshape(power.shape + (1,) * (len(sum_axes) + num_features))


def feature_map_norm(x: jax.Array, p: float, *, num_spatial: int) -> jax.Array:
    """Shape (1, ..., 1): a convolution's input map is one vector per sample."""
    sum_axes = range(x.ndim - num_spatial - 1, x.ndim)
    return mean_power(x, p, sum_axes=sum_axes).reshape((1,) * (num_spatial + 2))


def einsum_operand(
    x: jax.Array, equation: str, kernel_shape: Sequence[int]
) -> tuple[jax.Array, list[str], list[str], set[str]]:
    """The einsum operand that is contracted with the kernel.

    Returns:
        The input, reduced as einsum does before it contracts: to the diagonals of its
        repeated axes, and to sums over axes that neither kernel nor output has. Then
        the axis labels of this array, of the kernel and of the output.
    """
    operands, output = equation.replace(" ", "").split("->")
    term, kernel_term = operands.split(",")
    kernel_labels = _labels(kernel_term, len(kernel_shape))
    output_labels = set(_labels(output, x.ndim + len(kernel_shape)))
    seen = set(kernel_labels) | output_labels
    kept = "".join(dict.fromkeys(c for c in term if c in seen and c != "."))
    kept = "..." * ("..." in term) + kept
    if sorted(kept) != sorted(term):
        x = jnp.einsum(f"{term}->{kept}", x)
        term = kept
    labels = _labels(term, x.ndim)
    size = dict(zip(kernel_labels, kernel_shape, strict=True))
    # Contracted axes of length 1 broadcast, as in einsum.
    shape = [
        size[c] if c in size and c not in output_labels else x.shape[a]
        for a, c in enumerate(labels)
    ]
    return jnp.broadcast_to(x, shape), labels, kernel_labels, output_labels


@on_auto_axes
def einsum_norm(
    x: jax.Array, p: float, *, equation: str, kernel_shape: Sequence[int]
) -> jax.Array:
    """Shape of the kernel, 1 except along axes it shares with input and output.

    Axes contracted with the kernel make up the input vector. Axes shared by input,
    kernel and output index separate kernels. All other axes are samples.
    """
    x, labels, kernel_labels, output_labels = einsum_operand(x, equation, kernel_shape)
    size = dict(zip(kernel_labels, kernel_shape, strict=True))
    sum_axes = [a for a, c in enumerate(labels) if c in size and c not in output_labels]
    keep_axes = [
        a
        for a, c in enumerate(labels)
        if c in size and c in output_labels and size[c] == x.shape[a]
    ]
    power = mean_power(x, p, sum_axes=sum_axes, keep_axes=keep_axes)
    kept_labels = [labels[a] for a in keep_axes]
    order = [kept_labels.index(c) for c in kernel_labels if c in kept_labels]
    shape = [size[c] if c in kept_labels else 1 for c in kernel_labels]
    return power.transpose(order).reshape(shape)


def _labels(term: str, rank: int) -> list[str]:
    """One label per axis; those of an ellipsis are counted from its right end."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    hidden = max(rank - len(before) - len(after), 0)
    return [*before, *(f"...{i}" for i in range(-hidden, 0)), *after]
