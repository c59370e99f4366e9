"""The layout of a weight's covariance, and the conversion of covariances to it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from insgd_optax._covariance import Factor, Shape, factor_sizes
from insgd_optax._matching import ShapeMismatchError


class Form(NamedTuple):
    """How the covariance of one weight is laid out relative to the weight."""

    stack: Shape  # the axes of stacked layers, which come first
    kernel: Shape  # the shape of one layer's kernel
    factors: tuple[Factor, ...]

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of the arrays that hold it."""
        return [(*self.stack, *f.sizes, *f.blocks) for f in self.factors]

    @property
    def axes(self) -> list[tuple[int, list[int], int]]:
        """Each axis of the kernel as (block count, block size by factor, outputs)."""
        result = []
        for i, size in enumerate(self.kernel):
            n = max(f.sizes[i] for f in self.factors)
            blocks = [f.blocks[i] for f in self.factors]
            count = max(f.counts[i] for f in self.factors)
            result.append((count, blocks, size // n))
        return result

    def split(self, grad: jax.Array) -> jax.Array:
        """A weight as matrices: (*stack, *counts, inputs by factor..., outputs)."""
        lead, axes = len(self.stack), self.axes
        width = [
            (0, count * math.prod(blocks) * outputs - size)
            for size, (count, blocks, outputs) in zip(self.kernel, axes, strict=True)
        ]
        grad = jnp.pad(grad, [(0, 0)] * lead + width)
        pieces = [n for count, blocks, out in axes for n in (count, *blocks, out)]
        grad = grad.reshape(*self.stack, *pieces).transpose(self._order())
        rank = len(self.kernel)
        dims = [factor.dim for factor in self.factors]
        return grad.reshape(*grad.shape[: lead + rank], *dims, -1)

    def join(self, matrices: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        lead, axes = len(self.stack), self.axes
        pieces = [n for count, blocks, out in axes for n in (count, *blocks, out)]
        order = self._order()
        shape = [(*self.stack, *pieces)[a] for a in order]
        inverse = [order.index(a) for a in range(len(order))]
        weight = matrices.reshape(shape).transpose(inverse)
        weight = weight.reshape(
            *self.stack,
            *(count * math.prod(blocks) * out for count, blocks, out in axes),
        )
        return weight[(slice(None),) * lead + tuple(slice(n) for n in self.kernel)]

    def _order(self) -> list[int]:
        """The transposition of `split`: block counts, each factor's inputs, outputs."""
        lead, each = len(self.stack), len(self.factors) + 2
        return [
            *range(lead),
            *(
                lead + i * each + part
                for part in range(each)
                for i in range(len(self.kernel))
            ),
        ]


def form_of(shapes: Sequence[Shape], weight: Shape, lead: int | None = None) -> Form:
    """The form of a weight whose covariance has arrays of these shapes.

    Args:
        shapes: shapes of the factors, stacked axes first.
        weight: the shape of the weight.
        lead: the number of leading axes of `shapes` that are not the layer's own; None
            if these are exactly the stacked axes of the weight.

    Raises:
        ShapeMismatchError: if they do not fit.
    """
    ndim = len(shapes[0])
    rank = ndim - len(weight) if lead is None else (ndim - lead) // 2
    lead = ndim - 2 * rank if lead is None else lead
    stacked = len(weight) - rank
    if rank < 1 or stacked < 0 or stacked > lead or any(len(s) != ndim for s in shapes):
        raise ShapeMismatchError(
            f"{list(shapes)} are not laid out like a weight {weight}"
        )
    kernel = weight[stacked:]
    factors = tuple(Factor(s[lead : lead + rank], s[lead + rank :]) for s in shapes)
    for i, size in enumerate(kernel):
        n = max(f.sizes[i] for f in factors)
        fits = n == size or (size % n == 0 and all(f.blocks[i] == 1 for f in factors))
        if not fits or any(f.sizes[i] not in (1, n) for f in factors):
            raise ShapeMismatchError(
                f"a covariance of inputs {factors[0].sizes} does not fit a kernel"
                f" {kernel}"
            )
    return Form(weight[:stacked], kernel, factors)


def assumed_form(weight: Shape, bias: Shape | None, max_dim: int) -> Form:
    """The form of a weight of which nothing but its shape is known.

    All axes but the last are assumed to be inputs; if the layer has a bias, all axes
    but those of the bias, as in Dense layers, convolutions, and attention with biases.
    """
    outputs = 1
    if bias and len(bias) < len(weight) and weight[-len(bias) :] == bias:
        outputs = len(bias)
    inputs = range(max(len(weight) - outputs, 1))
    return Form((), weight, factor_sizes(weight, inputs, {}, max_dim))


def reduced(factors: Sequence[jax.Array], lead: int, form: Form) -> list[jax.Array]:
    """Brings a covariance into a smaller form: partial traces and diagonal blocks.

    Raises:
        ShapeMismatchError: if it lacks what the form needs.
    """
    rank = len(form.kernel)
    if len(factors) != 1 and len(factors) != len(form.factors):
        raise ShapeMismatchError(
            f"it has {len(factors)} factors, not {len(form.factors)}"
        )
    results = []
    for k, target in enumerate(form.factors):
        x = factors[k] if len(factors) > 1 else factors[0]
        for i in range(rank):
            row, column = lead + i, lead + rank + i
            n, b = x.shape[row], x.shape[column]
            want_n, want_b = target.sizes[i], target.blocks[i]
            if (n, b) == (want_n, want_b):
                continue
            if n == b and want_n == want_b == 1 and len(form.factors) > 1:
                x = jnp.expand_dims(
                    jnp.trace(x, axis1=row, axis2=column), (row, column)
                )
            elif n == b == want_n and 1 < want_b < b:
                x = _diagonal_blocks(x, row, column, want_b)
            else:
                raise ShapeMismatchError(
                    f"axis {i} of the kernel has a covariance of {n} by {b}, not"
                    f" {want_n} by {want_b}"
                )
        results.append(x)
    return results


def _diagonal_blocks(x: jax.Array, row: int, column: int, size: int) -> jax.Array:
    """The blocks on the diagonal of two axes: each row keeps its block's columns."""
    n = x.shape[row]
    count = -(-n // size)
    x = jnp.moveaxis(x, (row, column), (-2, -1))
    width = [(0, 0)] * (x.ndim - 2) + [(0, count * size - n)] * 2
    x = jnp.pad(x, width).reshape(*x.shape[:-2], count, size, count, size)
    x = jnp.moveaxis(jnp.diagonal(x, axis1=-4, axis2=-2), -1, -3)
    x = x.reshape(*x.shape[:-3], count * size, size)[..., :n, :]
    return jnp.moveaxis(x, (-2, -1), (row, column))
