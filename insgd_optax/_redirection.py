"""Multiplying gradients by the matrices D of their weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from insgd_optax import _whitening
from insgd_optax._covariance_form import Form
from insgd_optax._covariance_state import LayerCovariance, form_of_state
from insgd_optax._norms import wider
from insgd_optax._paths import Path

# An accelerator multiplies gradients in one batch if a gradient and its D together have
# at most this many entries. A single larger one keeps it busy, and copies of larger
# ones would take memory.
MAX_ENTRIES = 2**20

# A gradient and D as `LayerCovariance.inverse` holds it.
Pair = tuple[jax.Array, tuple[jax.Array, ...]]
# An update and its cosine to the gradient.
Result = tuple[jax.Array, jax.Array]


def redirected(
    grads: Mapping[Path, jax.Array],
    layers: Mapping[Path, LayerCovariance],
    preserve_norm: bool,
) -> tuple[dict[Path, jax.Array], dict[Path, LayerCovariance]]:
    """D G for each weight, in the gradient's dtype, and the states with new cosines.

    An accelerator multiplies the gradients of weights of one form in one batch: for a
    small weight, starting the operations takes longer than the operations.

    Args:
        grads: the gradients.
        layers: the states, of the same paths.
        preserve_norm: whether D G is brought to the Frobenius norm of G.
    """
    forms = [form_of_state(layers[path], grad.shape) for path, grad in grads.items()]

    def one_by_one(pairs: Sequence[Pair]) -> list[Result]:
        return [
            _redirected(*pair, form, preserve_norm)
            for pair, form in zip(pairs, forms, strict=True)
        ]

    results = jax.lax.platform_dependent(
        [(grad, layers[path].inverse) for path, grad in grads.items()],
        cpu=one_by_one,
        default=lambda pairs: in_groups(pairs, forms, preserve_norm),
    )
    updates, following = {}, {}
    for path, (update, cosine) in zip(grads, results, strict=True):
        updates[path], following[path] = update, layers[path]._replace(cosine=cosine)
    return updates, following


def in_groups(
    pairs: Sequence[Pair], forms: Sequence[Form], preserve_norm: bool
) -> list[Result]:
    """Redirects all gradients of one form at once, if they are small."""
    groups: dict[Any, list[int]] = {}
    for i, (pair, form) in enumerate(zip(pairs, forms, strict=True)):
        leaves = jax.tree.leaves(pair)
        small = sum(x.size for x in leaves) <= MAX_ENTRIES
        kind = (form, *(x.dtype for x in leaves)) if small else i
        groups.setdefault(kind, []).append(i)
    results: list[Any] = [None] * len(pairs)
    for members in groups.values():
        form = forms[members[0]]
        if len(members) == 1:
            results[members[0]] = _redirected(*pairs[members[0]], form, preserve_norm)
            continue
        # As if these were the layers of one stack.
        form = form._replace(stack=(len(members), *form.stack))
        grads, inverses = jax.tree.map(
            lambda *arrays: jnp.stack(arrays), *(pairs[i] for i in members)
        )
        updates, cosines = _redirected(grads, inverses, form, preserve_norm)
        for i, update, cosine in zip(members, updates, cosines, strict=True):
            results[i] = update, cosine
    return results


def _redirected(
    grad: jax.Array, inverse: tuple[jax.Array, ...], form: Form, preserve_norm: bool
) -> Result:
    """D G, or its direction with the norm of G, and the cosine between D G and G."""
    dtype = wider(grad.dtype, inverse[-1].dtype)
    axes = tuple(range(len(form.stack), grad.ndim))

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=axes, keepdims=True)

    wide = grad.astype(dtype)
    # In units of its largest entry, so that squares stay in range.
    size = jnp.max(jnp.abs(wide), axis=axes, keepdims=True)
    size = jnp.where(size > 0, size, jnp.ones_like(size))
    before = wide / size
    after = _whitening.apply(form, tuple(x.astype(dtype) for x in inverse), before)
    # Dividing `after` by its largest entry, too, would take another pass over it.
    # Instead, one pass takes all sums in three units; then the unit in which they stay
    # in range is chosen.
    squares = [total(jnp.square(x)) for x in _in_units(after)]
    products = [total(before * x) for x in _in_units(after)]
    square, product, unit = _in_range(squares, products)
    lengths = jnp.sqrt(total(jnp.square(before))), jnp.sqrt(square)
    one = jnp.ones_like(square)
    nothing = square == 0
    cosine = jnp.where(nothing, one, product) / jnp.where(
        nothing, one, lengths[0] * lengths[1]
    )
    cosine = cosine.reshape(form.stack).astype(inverse[-1].dtype)
    if preserve_norm:
        after = after * unit * (lengths[0] / jnp.where(nothing, one, lengths[1]))
    return (after * size).astype(grad.dtype), cosine


def _in_units(x: jax.Array) -> list[jax.Array]:
    """x, and x times two powers of 2: for small entries and for large ones."""
    shift = 5 * jnp.finfo(x.dtype).maxexp // 8
    return [x, *(x * np.ldexp(x.dtype.type(1), power) for power in (shift, -shift))]


def _in_range(
    squares: Sequence[jax.Array], products: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Picks the sums in the unit in which they stay in range, and returns this unit.

    Args:
        squares: the sum of the squares of an array, in each unit of `_in_units`.
        products: the sum of its products with another array, in each of these units.
    """
    limits = jnp.finfo(squares[0].dtype)
    units = _in_units(jnp.ones_like(squares[0]))
    # A sum below this may lack squares that underflowed; beyond the range, the sum
    # has overflowed.
    small = squares[0] < np.ldexp(limits.dtype.type(1), -limits.maxexp // 2)
    ordinary = squares[0] <= limits.max
    square, product, unit = (
        jnp.where(small, up, jnp.where(ordinary, as_is, down))
        for as_is, up, down in (squares, products, units)
    )
    return square, product, unit
