"""A layer's input covariance as arrays: blocks of X^T X, laid out like its kernel.

The rows of X are the input vectors. The covariance of a kernel of shape (s_1, ..., s_r)
is one array of shape (n_1, ..., n_r, b_1, ..., b_r), or a Kronecker product of several:

- n_i = b_i = s_i: the input vector runs along this axis of the kernel.
- n_i = s_i, 1 < b_i < s_i: it is cut into blocks of b_i along this axis, and
  covariances across blocks are left out.
- n_i = s_i, b_i = 1: a batch axis: every index has a kernel, and an input, of its own.
- n_i < s_i, b_i = 1: an output axis, or, in a Kronecker product, an input axis of the
  other factor. n_i > 1 counts the groups of a grouped convolution, each with an input
  of its own.

So the shape alone tells how a covariance acts on a kernel. Stacked layers have leading
axes in front of that.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from insgd_optax._paths import Shape

# The covariance of a longer input vector is approximated: see `factor_sizes`.
MAX_DIM = 768


class InputCovariance(NamedTuple):
    """Sums over input vectors, which a layer sows as `input_covariance`.

    Both fields are sums, so those of several micro-batches, devices or uses of a layer
    can be added.

    Attributes:
        factors: sums of x x^T, laid out like the kernel: for a kernel (d, m), one array
            of shape (d, 1, d, 1). Or two arrays with the same trace, whose Kronecker
            product, divided by this trace and by `count`, approximates the covariance.
        count: the number of input vectors, in the dtype of `factors`: shape (), or that
            of the stacked axes; 0 if this pass did not capture, or its inputs were not
            finite.
    """

    factors: tuple[jax.Array, ...]
    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count


class Factor(NamedTuple):
    """The layout of one factor: n_i and b_i above."""

    sizes: Shape
    blocks: Shape

    @property
    def counts(self) -> Shape:
        """The number of blocks along each axis."""
        return tuple(-(-n // b) for n, b in zip(self.sizes, self.blocks, strict=True))

    @property
    def length(self) -> int:
        """The length of the vector that its blocks are cut from."""
        return math.prod(
            n for n, b in zip(self.sizes, self.blocks, strict=True) if b > 1
        )

    @property
    def dim(self) -> int:
        """The size of each matrix."""
        return math.prod(self.blocks)


def factor_sizes(
    kernel: Shape,
    inputs: Sequence[int],
    batch: dict[int, int],
    max_dim: int,
    *,
    kronecker: bool = False,
) -> tuple[Factor, ...]:
    """The layout of a layer's covariance.

    Up to `max_dim` the input vector has one matrix. A longer one that runs along three
    axes or more, as in a two-dimensional convolution, has a Kronecker product of two:
    all axes but the last (the taps), and the last (the channels). Any other has
    diagonal blocks. The optimizer, which may know nothing but the kernel's shape, calls
    this function to predict what the layer sows. An empty vector has no factors.

    Args:
        kernel: the shape of the kernel.
        inputs: the axes of the kernel that the input vector runs along.
        batch: the number of separate inputs along each axis that indexes them, such as
            a batch axis, or the output axis of a grouped convolution.
        max_dim: the largest matrix, at least 2.
        kronecker: whether a vector along several axes has the product at any length.
    """

    def factor(blocks: dict[int, int]) -> Factor:
        sizes = [kernel[i] if i in blocks else batch.get(i, 1) for i in range(rank)]
        return Factor(tuple(sizes), tuple(blocks.get(i, 1) for i in range(rank)))

    rank = len(kernel)
    whole = {i: kernel[i] for i in inputs}
    size = math.prod(whole.values())
    if not size:
        return ()
    if kronecker and len(inputs) > 1 or len(inputs) > 2 and size > max_dim:
        *taps, channels = inputs
        return (
            factor(_cut({i: kernel[i] for i in taps}, max_dim)),
            factor(_cut({channels: kernel[channels]}, max_dim)),
        )
    return (factor(_cut(whole, max_dim)),)


def _cut(blocks: dict[int, int], max_dim: int) -> dict[int, int]:
    """Cuts the leading axes into equal blocks until a matrix is small enough.

    Blocks keep at least two entries along an axis, since one marks a batch axis.
    """
    blocks = dict(blocks)
    for axis, size in blocks.items():
        rest = math.prod(blocks.values()) // size
        count = -(-size // max(max_dim // rest, 2))
        blocks[axis] = -(-size // count)
    return blocks


def sum_of_products(
    x: jax.Array,
    axes: Sequence[int | None],
    kernel: Shape,
    factors: Sequence[Factor],
    dtype: DTypeLike,
) -> InputCovariance:
    """Sums x x^T over the rows of an array.

    Args:
        x: input vectors; each axis is one of the kernel's, or one of rows.
        axes: for each axis of `x` the axis of the kernel, or None for rows. An axis of
            groups stands for the output axis it groups.
        kernel: the shape of the kernel.
        factors: the layout of the sums, as returned by `factor_sizes`.
        dtype: the dtype of the sums.
    """
    rank = len(kernel)
    rows = [a for a, k in enumerate(axes) if k is None]
    at = {k: a for a, k in enumerate(axes) if k is not None}
    count = math.prod(x.shape[a] for a in rows)
    sums = []
    for factor in factors:
        own = [i for i in range(rank) if i in at and factor.blocks[i] > 1]
        batch = [
            i for i in range(rank) if i in at and i not in own and factor.sizes[i] > 1
        ]
        others = [at[i] for i in at if i not in own and i not in batch]
        order = [at[i] for i in batch] + rows + others + [at[i] for i in own]
        shape = [x.shape[at[i]] for i in batch]
        y = x.transpose(order)
        y = y.reshape(*shape, -1, *(x.shape[at[i]] for i in own))
        # Now (batch..., rows, inputs...): cut the inputs into blocks.
        lead = len(batch) + 1
        y = jnp.pad(
            y,
            [(0, 0)] * lead
            + [
                (0, factor.counts[i] * factor.blocks[i] - y.shape[lead + j])
                for j, i in enumerate(own)
            ],
        )
        y = y.reshape(
            *y.shape[:lead],
            *(n for i in own for n in (factor.counts[i], factor.blocks[i])),
        )
        cut = list(range(lead, y.ndim, 2))
        inner = list(range(lead + 1, y.ndim, 2))
        y = y.transpose(*range(len(batch)), *cut, len(batch), *inner)
        y = y.reshape(*y.shape[: len(batch) + len(own) + 1], factor.dim)
        product = jnp.einsum(
            "...rd,...re->...de",
            y,
            y,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=dtype,
        ).astype(dtype)
        # From the order (batch..., blocks...) to that of the kernel's axes.
        named = [*batch, *own]
        order = sorted(range(len(named)), key=lambda j: named[j])
        product = product.transpose(*order, product.ndim - 2, product.ndim - 1)
        product = product.reshape(*factor.counts, factor.dim, factor.dim)
        sums.append(from_matrices(product, factor))
    return checked(InputCovariance(tuple(sums), jnp.asarray(count, dtype)))


def checked(covariance: InputCovariance) -> InputCovariance:
    """Returns a covariance, or zeros with a count of 0 if a sum is not finite."""
    factors, count = covariance
    good = jnp.isfinite(count)
    for factor in factors:
        good &= all_finite(factor, lead=count.ndim)
    return InputCovariance(
        tuple(
            jnp.where(leading(good, factor.ndim), factor, jnp.zeros_like(factor))
            for factor in factors
        ),
        jnp.where(good, count, jnp.zeros_like(count)),
    )


def all_finite(x: jax.Array, lead: int) -> jax.Array:
    """Whether all entries are finite, for each index of the first `lead` axes.

    x - x is 0 where x is finite, else nan. On CPUs, XLA adds up numbers faster than it
    combines booleans.
    """
    return (x - x).sum(axis=tuple(range(lead, x.ndim))) == 0


def leading(values: jax.Array, rank: int) -> jax.Array:
    """Values of leading axes, to broadcast against an array with further axes."""
    return values.reshape(values.shape + (1,) * (rank - values.ndim))


def from_matrices(matrices: jax.Array, factor: Factor, lead: int = 0) -> jax.Array:
    """Brings blocks of shape (..., *counts, dim, dim) into the layout of this file."""
    sizes, blocks = factor
    rank = len(sizes)
    stack = matrices.shape[:lead]
    x = matrices.reshape(*stack, *factor.counts, *blocks, *blocks)
    pairs = [a for i in range(rank) for a in (lead + i, lead + rank + i)]
    columns = range(lead + 2 * rank, lead + 3 * rank)
    x = x.transpose(*range(lead), *pairs, *columns)
    x = x.reshape(
        *stack, *(c * b for c, b in zip(factor.counts, blocks, strict=True)), *blocks
    )
    return x[(slice(None),) * lead + tuple(slice(n) for n in sizes)]


def to_matrices(x: jax.Array, factor: Factor, lead: int = 0) -> jax.Array:
    """The inverse of `from_matrices`; a last block that is short is filled with 0."""
    sizes, blocks = factor
    rank = len(sizes)
    stack = x.shape[:lead]
    short = [c * b - n for c, b, n in zip(factor.counts, blocks, sizes, strict=True)]
    x = jnp.pad(x, [(0, 0)] * lead + [(0, n) for n in short] + [(0, 0)] * rank)
    pairs = [n for c, b in zip(factor.counts, blocks, strict=True) for n in (c, b)]
    x = x.reshape(*stack, *pairs, *blocks)
    counts = range(lead, lead + 2 * rank, 2)
    rows = range(lead + 1, lead + 2 * rank, 2)
    columns = range(lead + 2 * rank, lead + 3 * rank)
    x = x.transpose(*range(lead), *counts, *rows, *columns)
    return x.reshape(*stack, *factor.counts, factor.dim, factor.dim)
