"""The input power of each kind of layer, in the rank of the kernel it scales.

Every function returns a statistic with singleton axes where it does not vary, so
that what `nn.scan` or `nn.vmap` stack broadcasts against the stacked kernel.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from insgd_optax._norms import mean_power


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
    """Shape (1, ..., 1): a convolution's input map is one vector a sample."""
    sum_axes = range(x.ndim - num_spatial - 1, x.ndim)
    return mean_power(x, p, sum_axes=sum_axes).reshape((1,) * (num_spatial + 2))


def normalization_norm(
    x: jax.Array, p: float, *, sum_axes: Sequence[int], scale_rank: int
) -> jax.Array:
    """Shape (1,) * scale_rank: the power of what a normalization layer is given."""
    return mean_power(x, p, sum_axes=sum_axes).reshape((1,) * scale_rank)


def einsum_operand(
    x: jax.Array, equation: str, kernel_shape: Sequence[int]
) -> tuple[jax.Array, list[str], list[str], set[str]]:
    """What meets the kernel in an einsum of an input and a kernel.

    Returns:
        The input without what einsum sums, or takes the diagonal of, before; and the
        labels of its axes, of the kernel's and of the output's.
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
    return x, _labels(term, x.ndim), kernel_labels, output_labels


def einsum_norm(
    x: jax.Array, p: float, *, equation: str, kernel_shape: Sequence[int]
) -> jax.Array:
    """Shape of the kernel, 1 except along axes it shares with input and output.

    Axes contracted with the kernel make up the input vector, axes that input,
    kernel and output share index separate kernels, and all others are samples.
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
    """One label an axis; those of an ellipsis are counted from its right end."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    hidden = max(rank - len(before) - len(after), 0)
    return [*before, *(f"...{i}" for i in range(-hidden, 0)), *after]
