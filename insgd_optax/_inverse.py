"""The inverse of positive definite matrices, and its square root."""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST
# Rows eliminated per step of `_by_blocks`, chosen by timing.
_BLOCK = 64
# For `positive_definite_inverse_root`, which takes 12 iterations at a condition number
# of 20, and 28 at 10^7.
_MOST_ITERATIONS = 60
# Convergence is quadratic where no entry of (I - Z Y) / 2 exceeds this.
_CONVERGED = 0.01
# Y, Z, the errors of the last two iterations, and their number.
_Iterate = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def positive_definite_inverse(matrices: jax.Array) -> jax.Array:
    """The inverse of each symmetric matrix of shape (..., d, d).

    Where a matrix is not positive definite, some entries of the result are not finite.

    LAPACK's Cholesky factorization can stall for seconds when its threads compete for
    cores, as in containers. CPUs therefore use blockwise Gauss-Jordan elimination.
    """
    shape = matrices.shape
    flat = matrices.reshape(-1, *shape[-2:])
    result = jax.lax.platform_dependent(flat, cpu=_by_blocks, default=_by_cholesky)
    return result.reshape(shape)


def positive_definite_inverse_root(matrices: jax.Array) -> jax.Array:
    """The inverse of the square root of each symmetric matrix of shape (..., d, d).

    The coupled Newton-Schulz iteration needs matrix products alone: Y goes from
    M / ||M|| to the square root of that matrix, and Z from I to the inverse of the
    root. It converges if M is positive definite, since ||M||, the Frobenius norm, is at
    least the largest eigenvalue.

    Source: Higham, Functions of Matrices (2008), Eq. 6.35.

    Returns:
        The roots. Where a matrix is not positive definite, some entries are not finite.
    """
    shape = matrices.shape
    flat = matrices.reshape(-1, *shape[-2:])
    identities = jnp.broadcast_to(jnp.eye(shape[-1], dtype=flat.dtype), flat.shape)
    norm = jnp.linalg.norm(flat, axis=(-2, -1), keepdims=True)
    rounding = jnp.finfo(flat.dtype).eps

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=_HIGHEST)

    def goes_on(carry: _Iterate) -> jax.Array:
        _, _, error, before, iteration = carry
        far = error > _CONVERGED
        # Until rounding is all that is left.
        falls = (error < 0.7 * before) & (error > rounding)
        return (far | falls).any() & (iteration < _MOST_ITERATIONS)

    def iterate(carry: _Iterate) -> _Iterate:
        y, z, before, _, iteration = carry
        correction = 0.5 * (identities - multiply(z, y))
        error = jnp.abs(correction).max(axis=(-2, -1))
        y, z = y + multiply(y, correction), z + multiply(correction, z)
        return y, z, error, before, iteration + 1

    begun = jnp.full(len(flat), jnp.inf, flat.dtype)
    _, z, error, _, _ = jax.lax.while_loop(
        goes_on, iterate, (flat / norm, identities, begun, begun, jnp.zeros((), int))
    )
    good = (error <= _CONVERGED)[:, None, None]
    return jnp.where(good, z / jnp.sqrt(norm), jnp.nan).reshape(shape)


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
