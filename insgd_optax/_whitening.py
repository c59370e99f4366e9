"""The damped covariance as matrices to invert, and the use of their inverses."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from insgd_optax._covariance import Factor, Shape, all_finite, leading, to_matrices
from insgd_optax._covariance_form import Form
from insgd_optax._matrices import identities, product

_HIGHEST = jax.lax.Precision.HIGHEST


def identity(form: Form, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """The initial inverse, which leaves updates unchanged.

    For one factor, it is D, of shape (*stack, *counts, d, d), where `counts` are the
    numbers of blocks. For two factors, taps and channels, it is the eigenvectors of the
    taps, (*stack, *counts, t, t), and for each of them the inverse for the channels,
    (*stack, *counts, t, c, c).
    """
    counts = [factor.counts for factor in form.factors]
    dims = [factor.dim for factor in form.factors]
    first = identities((*form.stack, *counts[0], dims[0], dims[0]), dtype)
    if len(dims) == 1:
        return (first,)
    most: Shape = tuple(map(max, zip(*counts, strict=True)))
    return first, identities((*form.stack, *most, dims[0], dims[1], dims[1]), dtype)


class Damped(NamedTuple):
    """A damped covariance, in a form in which it can be inverted.

    Attributes:
        matrices: the matrices to invert, which have a mean eigenvalue of 1.
        least: a lower bound on the eigenvalues of each.
        unit: what the matrices were divided by.
        basis: for two factors, the eigenvectors of the taps, else None.
    """

    matrices: jax.Array
    least: jax.Array
    unit: jax.Array
    basis: jax.Array | None


def damped(
    form: Form, factors: tuple[jax.Array, ...], damping: jax.Array, eps: jax.Array
) -> Damped:
    """A + (damping tr(A) / d + eps) I.

    Each matrix of a batch axis or group has a trace of its own; the blocks of one
    input vector share theirs.
    """
    lead = len(form.stack)
    matrices = [
        to_matrices(x, factor, lead)
        for x, factor in zip(factors, form.factors, strict=True)
    ]
    size = math.prod(factor.length for factor in form.factors)
    trace = jnp.trace(matrices[-1], axis1=-2, axis2=-1)
    for i, (n, b) in enumerate(zip(*form.factors[-1], strict=True)):
        if 1 < b < n:
            trace = trace.sum(axis=lead + i, keepdims=True)
    # The matrix to invert has a mean eigenvalue of 1, so that neither tiny nor huge
    # inputs, nor huge damping, leave the range of float32.
    scale = trace / size
    known = scale > 0
    one = jnp.ones_like(scale)
    unit = jnp.where(known, scale * (1 + damping) + eps, eps)
    scale = jnp.where(known, scale, one)
    # Beyond 1 / machine epsilon^2, nothing of A is left.
    most = 1 / jnp.finfo(trace.dtype).eps ** 2
    shift = jnp.minimum(damping + eps / scale, most)
    shift = jnp.where(known, shift, one)
    # A / scale has the mean eigenvalue 1, or 0 if A is 0.
    mean = jnp.where(known, 1 + shift, shift)
    scale, shift, mean = (x[..., None, None] for x in (scale, shift, mean))

    def shifted(x: jax.Array, shift: jax.Array, mean: jax.Array) -> jax.Array:
        """x + shift I, in units of its mean eigenvalue."""
        eye = jnp.eye(x.shape[-1], dtype=x.dtype)
        eye = eye.reshape((1,) * (x.ndim - 2) + eye.shape)
        return (x + shift * eye) / mean

    basis = None
    if len(matrices) == 1:
        result = shifted(matrices[0] / scale, shift, mean)
    else:
        # A = A1 x A2 / tr(A), where both factors have the trace of A. In the basis of
        # A1 there is one matrix of channels for each of its eigenvalues.
        taps, channels = matrices
        values, basis = jnp.linalg.eigh(
            taps / jnp.where(known, trace, one)[..., None, None]
        )
        values = jnp.maximum(values, 0)[..., None, None]
        products = values * (channels / scale)[..., None, :, :]
        shift, mean = shift[..., None], mean[..., None]
        result = shifted(products, shift, mean)
    least = jnp.broadcast_to((shift / mean)[..., 0, 0], result.shape[:-2])
    return Damped(result, least, unit, basis)


def guess(covariance: Damped, inverse: jax.Array) -> jax.Array:
    """A former inverse, in input units, in the units of a new damped covariance."""
    return inverse * leading(covariance.unit, inverse.ndim)


def in_input_units(
    form: Form, covariance: Damped, inverse: jax.Array, root: bool
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The inverse of a damped covariance or its root, in the units of the inputs.

    It is exact for one factor and for the Kronecker product of two. A result whose
    entries would leave the range of the dtype is scaled to stay inside, since its
    direction is all that `preserve_norm` needs.

    Args:
        form: the form of the weight.
        covariance: the damped covariance.
        inverse: the inverses of its matrices, or their roots.
        root: whether they are roots.

    Returns:
        The inverse, as `identity` lays it out, and for each stacked layer whether it
        is finite.
    """
    lead = len(form.stack)
    limits = jnp.finfo(inverse.dtype)
    inner = tuple(range(lead, inverse.ndim))
    largest = jnp.abs(inverse).max(axis=inner, keepdims=True)
    least = largest / (limits.max * limits.eps)
    most = largest / (limits.tiny / limits.eps)
    unit = jnp.sqrt(covariance.unit) if root else covariance.unit
    unit = leading(unit, inverse.ndim)
    # With neither inputs nor eps, there is no inverse.
    inverse = jnp.where(unit > 0, inverse / jnp.clip(unit, least, most), jnp.inf)
    basis = covariance.basis
    result = (inverse,) if basis is None else (basis, inverse)
    finite = [all_finite(x, lead) for x in result]
    return result, jnp.stack(finite).all(axis=0)


def apply(form: Form, inverse: tuple[jax.Array, ...], grad: jax.Array) -> jax.Array:
    """D G, in the dtype of the gradient."""
    g = form.split(grad)
    if len(inverse) == 1:
        return form.join(product(inverse[0], g))
    basis, channels = inverse
    g = jnp.einsum("...ta,...tcm->...acm", basis, g, precision=_HIGHEST)
    g = product(channels, g)
    return form.join(jnp.einsum("...ta,...acm->...tcm", basis, g, precision=_HIGHEST))


def condition_number(
    factor: jax.Array, lead: int, inverse: tuple[jax.Array, ...]
) -> jax.Array:
    """The ratio of the extreme eigenvalues of `inverse`, over all its matrices.

    Args:
        factor: the last factor of the covariance.
        lead: the number of its stacked axes.
        inverse: D, or its root, as `identity` lays it out.
    """
    matrices = inverse[-1]
    largest, _ = _largest_eigenvalue(matrices)
    rank = (factor.ndim - lead) // 2
    sizes = Factor(factor.shape[lead : lead + rank], factor.shape[lead + rank :])
    # D is smallest along the top eigenvector of A. Power iteration on A finds this
    # vector; on D, it would find the one along which D is largest.
    _, vector = _largest_eigenvalue(to_matrices(factor, sizes, lead))
    if len(inverse) > 1:  # One matrix of channels for each eigenvector of the taps.
        vector = vector[..., None, :, :]
    smallest = jnp.sum(vector * product(matrices, vector), axis=(-2, -1))
    return largest.max() / jnp.maximum(smallest.min(), jnp.finfo(smallest.dtype).tiny)


def _largest_eigenvalue(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue and its vector (..., d, 1), by power iteration."""
    start = jnp.cos(jnp.arange(matrices.shape[-1], dtype=matrices.dtype))
    start = jnp.broadcast_to(start[:, None], (*matrices.shape[:-1], 1))
    start = start / jnp.linalg.norm(start, axis=-2, keepdims=True)
    # In units of the largest entry, so that squares stay in range.
    size = jnp.abs(matrices).max(axis=(-2, -1), keepdims=True)
    matrices = matrices / jnp.where(size > 0, size, 1)

    def multiply(_: int, v: jax.Array) -> jax.Array:
        w = product(matrices, v)
        length = jnp.linalg.norm(w, axis=-2, keepdims=True)
        # Before the first capture A is zero.
        return jnp.where(length > 0, w / jnp.where(length > 0, length, 1), v)

    v = jax.lax.fori_loop(0, 50, multiply, start)
    return jnp.sum(v * product(matrices, v), axis=(-2, -1)) * size[..., 0, 0], v
