"""Multiplying gradients by the matrices D of their weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from insgd_optax import _whitening
from insgd_optax._covariance_form import Form
from insgd_optax._covariance_state import LayerCovariance, form_of_state
from insgd_optax._grouping import grouped
from insgd_optax._norms import wider
from insgd_optax._paths import Path

# A group of two or more weights has at most this many entries of gradients and D. A
# larger one would keep an accelerator busy anyway, and its copies would take memory.
MAX_ENTRIES = 2**21

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

    An accelerator multiplies the gradients of small weights of one form in one batch,
    since starting the operations takes longer than the operations.

    Args:
        grads: the gradients.
        layers: the states, of the same paths.
        preserve_norm: whether D G is brought to the Frobenius norm of G.
    """
    pairs = [(grad, layers[path].inverse) for path, grad in grads.items()]
    forms = [form_of_state(layers[path], grad.shape) for path, grad in grads.items()]
    results: list[Any] = [None] * len(pairs)
    for members in groups(pairs, forms):
        some, form = [pairs[i] for i in members], forms[members[0]]
        if len(some) == 1:  # There is nothing to choose, or to trace twice.
            found = one_by_one(some, form, preserve_norm)
        else:
            found = jax.lax.platform_dependent(
                some,
                cpu=lambda some, form=form: one_by_one(some, form, preserve_norm),
                default=lambda some, form=form: together(some, form, preserve_norm),
            )
        for i, result in zip(members, found, strict=True):
            results[i] = result
    updates, following = {}, {}
    for path, (update, cosine) in zip(grads, results, strict=True):
        updates[path], following[path] = update, layers[path]._replace(cosine=cosine)
    return updates, following


def groups(pairs: Sequence[Pair], forms: Sequence[Form]) -> list[list[int]]:
    """The indices of small weights of one form together, and of others alone."""
    leaves = [jax.tree.leaves(pair) for pair in pairs]
    kinds = [
        (form, *(x.dtype for x in arrays))
        for form, arrays in zip(forms, leaves, strict=True)
    ]
    entries = [sum(x.size for x in arrays) for arrays in leaves]
    return grouped(kinds, entries, MAX_ENTRIES)


def one_by_one(pairs: Sequence[Pair], form: Form, preserve_norm: bool) -> list[Result]:
    """Redirects gradients of one form."""
    return [_redirected(*pair, form, preserve_norm) for pair in pairs]


def together(pairs: Sequence[Pair], form: Form, preserve_norm: bool) -> list[Result]:
    """Redirects gradients of one form in one batch, as if of stacked layers."""
    grads, inverses = jax.tree.map(lambda *arrays: jnp.stack(arrays), *pairs)
    form = form._replace(stack=(len(pairs), *form.stack))
    updates, cosines = _redirected(grads, inverses, form, preserve_norm)
    return list(zip(updates, cosines, strict=True))


def _redirected(
    grad: jax.Array, inverse: tuple[jax.Array, ...], form: Form, preserve_norm: bool
) -> Result:
    """D G, or its direction with the norm of G, and the cosine between D G and G."""
    dtype = wider(grad.dtype, inverse[-1].dtype)
    axes = tuple(range(len(form.stack), grad.ndim))

    def unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x in units of its largest entry, so that squares stay in range."""
        # The unit cancels, so derivatives need not flow through it.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
        largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))
        return x / largest, largest

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    before, size = unit(grad.astype(dtype))
    inverse = tuple(x.astype(dtype) for x in inverse)
    after, stretch = unit(_whitening.apply(form, inverse, before))
    lengths = norm(before), norm(after)
    nothing = lengths[1] == 0
    one = jnp.ones_like(lengths[1])
    ratio = lengths[0] / jnp.where(nothing, one, lengths[1])
    product = jnp.sum(before * after, axis=axes, keepdims=True)
    cosine = jnp.where(nothing, one, product) / jnp.where(
        nothing, one, lengths[0] * lengths[1]
    )
    cosine = cosine.reshape(form.stack).astype(inverse[-1].dtype)
    update = after * ((ratio if preserve_norm else stretch) * size)
    return update.astype(grad.dtype), cosine
