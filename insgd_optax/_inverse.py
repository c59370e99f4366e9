"""The inverse of positive definite matrices, fast on every platform."""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST
# Rows eliminated per step of `_by_blocks`, chosen by timing.
_BLOCK = 64


def positive_definite_inverse(matrices: jax.Array) -> jax.Array:
    """The inverse of each symmetric matrix of shape (..., d, d).

    Where a matrix is not positive definite, some entries of the result are not finite.

    LAPACK's Cholesky factorization can stall for seconds when its threads compete for
    cores, as in containers. On CPUs only matrix products are used.
    """
    shape = matrices.shape
    flat = matrices.reshape(-1, *shape[-2:])
    result = jax.lax.platform_dependent(flat, cpu=_by_blocks, default=_by_cholesky)
    return result.reshape(shape)


def _by_cholesky(matrices: jax.Array) -> jax.Array:
    eye = jnp.broadcast_to(
        jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape
    )
    factor = jnp.linalg.cholesky(matrices)
    root = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    return jnp.einsum("...ki,...kj->...ij", root, root, precision=_HIGHEST)


def _by_blocks(matrices: jax.Array) -> jax.Array:
    """Gauss-Jordan elimination in place (the sweep operator), block by block."""
    size = matrices.shape[-1]
    if size <= _BLOCK:
        return _swept(matrices)
    short = -size % _BLOCK
    last = jnp.pad(jnp.zeros(size, matrices.dtype), (0, short), constant_values=1)
    matrices = jnp.pad(matrices, ((0, 0), (0, short), (0, short)))
    matrices = matrices + jnp.diag(last)[None]

    def eliminate(step: jax.Array, a: jax.Array) -> jax.Array:
        start = step * _BLOCK
        rows = jax.lax.dynamic_slice_in_dim(a, start, _BLOCK, axis=1)
        columns = jax.lax.dynamic_slice_in_dim(a, start, _BLOCK, axis=2)
        pivot = _swept(jax.lax.dynamic_slice_in_dim(rows, start, _BLOCK, axis=2))
        rows = jnp.matmul(pivot, rows, precision=_HIGHEST)
        a = a - jnp.matmul(columns, rows, precision=_HIGHEST)
        columns = -jnp.matmul(columns, pivot, precision=_HIGHEST)
        a = jax.lax.dynamic_update_slice_in_dim(a, rows, start, axis=1)
        a = jax.lax.dynamic_update_slice_in_dim(a, columns, start, axis=2)
        return jax.lax.dynamic_update_slice(a, pivot, (0, start, start))

    steps = (size + short) // _BLOCK
    return jax.lax.fori_loop(0, steps, eliminate, matrices)[:, :size, :size]


def _swept(matrices: jax.Array) -> jax.Array:
    """Gauss-Jordan elimination row by row."""
    index = jnp.arange(matrices.shape[-1])

    def eliminate(k: jax.Array, a: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(a, k, 1, axis=1)
        column = jax.lax.dynamic_slice_in_dim(a, k, 1, axis=2)
        pivot = jax.lax.dynamic_slice_in_dim(row, k, 1, axis=2)
        pivot = jnp.where(pivot > 0, pivot, jnp.nan)
        row = row / pivot
        a = a - column * row
        here = index == k
        a = jnp.where(here[None, :, None], row, a)
        a = jnp.where(here[None, None, :], -column / pivot, a)
        return jnp.where(here[None, :, None] & here[None, None, :], 1 / pivot, a)

    return jax.lax.fori_loop(0, matrices.shape[-1], eliminate, matrices)
