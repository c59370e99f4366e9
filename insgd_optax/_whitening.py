"""Inverting a damped covariance, and applying the inverse to a gradient."""

import math

import jax
import jax.numpy as jnp
import jax.scipy.linalg

from insgd_optax._covariance import Form, to_matrices

_HIGHEST = jax.lax.Precision.HIGHEST


def identity(form: Form, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """The inverse before there is a covariance: it changes nothing.

    One factor: D, of shape (*stack, *blocks, d, d). Two: both bases of eigenvectors,
    and the inverse of the eigenvalues, of shape (*stack, *blocks, d1, d2).
    """
    counts = [factor.counts for factor in form.factors]
    eyes = [
        jnp.broadcast_to(
            jnp.eye(factor.dim, dtype=dtype),
            (*form.stack, *factor.counts, factor.dim, factor.dim),
        )
        for factor in form.factors
    ]
    if len(eyes) == 1:
        return (eyes[0],)
    most = tuple(map(max, zip(*counts, strict=True)))
    dims = [factor.dim for factor in form.factors]
    return (*eyes, jnp.ones((*form.stack, *most, *dims), dtype))


def inverse(
    form: Form, factors: tuple[jax.Array, ...], damping: jax.Array, eps: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(A + (damping tr(A) / d + eps) I)^-1, exactly for either form.

    Each matrix of a batch axis or group has a trace of its own; the blocks of one
    input vector share theirs.

    Returns:
        The inverse, as `identity` lays it out, and for each stacked layer whether it
        is finite.
    """
    lead = len(form.stack)
    matrices = [
        to_matrices(x, factor, lead)
        for x, factor in zip(factors, form.factors, strict=True)
    ]
    size = math.prod(
        n
        for factor in form.factors
        for n, b in zip(factor.sizes, factor.blocks, strict=True)
        if b > 1
    )
    trace = jnp.trace(matrices[-1], axis1=-2, axis2=-1)
    for i, (n, b) in enumerate(zip(*form.factors[-1], strict=True)):
        if 1 < b < n:
            trace = trace.sum(axis=lead + i, keepdims=True)
    # Unit scale inside: neither tiny nor huge inputs leave the range of float32.
    scale = trace / size
    known = scale > 0
    one = jnp.ones_like(scale)
    scale = jnp.where(known, scale, one)
    shift = jnp.where(known, damping + eps / scale, one)
    unit = jnp.where(known, scale, eps)
    if len(matrices) == 1:
        result = _cholesky_inverse(matrices[0], scale, shift, unit)
    else:
        result = _eigen_inverse(matrices, trace, scale, shift, unit)
    finite = [jnp.isfinite(x).all(axis=tuple(range(lead, x.ndim))) for x in result]
    return result, jnp.stack(finite).all(axis=0)


def _cholesky_inverse(
    matrix: jax.Array, scale: jax.Array, shift: jax.Array, unit: jax.Array
) -> tuple[jax.Array, ...]:
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    damped = matrix / scale[..., None, None] + shift[..., None, None] * eye
    # Its entries are nan where the matrix is not positive definite.
    factor = jnp.linalg.cholesky(damped)
    root = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    result = jnp.einsum("...ki,...kj->...ij", root, root, precision=_HIGHEST)
    return (result / unit[..., None, None],)


def _eigen_inverse(
    matrices: list[jax.Array],
    trace: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    unit: jax.Array,
) -> tuple[jax.Array, ...]:
    """Of A = A1 x A2 / tr(A), where both factors have the trace of A."""
    (first, first_basis), (second, second_basis) = map(jnp.linalg.eigh, matrices)
    first = jnp.maximum(first / jnp.where(trace > 0, trace, 1)[..., None], 0)
    second = jnp.maximum(second / scale[..., None], 0)
    damped = first[..., :, None] * second[..., None, :] + shift[..., None, None]
    return first_basis, second_basis, 1 / (damped * unit[..., None, None])


def apply(form: Form, inverse: tuple[jax.Array, ...], grad: jax.Array) -> jax.Array:
    """D G, in the dtype of the gradient."""
    g = form.split(grad)
    if len(form.factors) == 1:
        g = jnp.einsum("...ij,...jm->...im", inverse[0], g, precision=_HIGHEST)
        return form.join(g)
    first, second, values = inverse
    g = jnp.einsum("...ta,...tcm->...acm", first, g, precision=_HIGHEST)
    g = jnp.einsum("...cb,...acm->...abm", second, g, precision=_HIGHEST)
    g = g * values[..., None]
    g = jnp.einsum("...cb,...abm->...acm", second, g, precision=_HIGHEST)
    g = jnp.einsum("...ta,...acm->...tcm", first, g, precision=_HIGHEST)
    return form.join(g)
