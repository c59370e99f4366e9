"""The inverse of positive definite matrices, and its square root."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from insgd_optax._grouping import grouped
from insgd_optax._matrices import identities, product
from insgd_optax._refinement import largest_error, refined
from insgd_optax._update_if import update_if

_Arrays = list[jax.Array]

_HIGHEST = jax.lax.Precision.HIGHEST
# The largest matrix that is not halved, chosen by timing.
_UNDIVIDED = 96
# On CPUs, matrices that share a loop are first copied into one array, which has at
# most this many entries unless it is a copy of a single array.
_MOST_ENTRIES = 2**21
# For `positive_definite_inverse_root`, which takes 5 to 7 iterations at a condition
# number of 20 (up to 12 without a bound), and about 13 to 17 at 10^7, depending on the
# size and the eigenvalues.
_MOST_ITERATIONS = 40
# Convergence is quadratic where the norm of (I - Z Y) / 2 does not exceed this.
_CONVERGED = 0.01


class _Block(NamedTuple):
    """A lower triangular matrix, and its inverse."""

    lower: jax.Array
    inverse: jax.Array


class _Halves(NamedTuple):
    """A lower triangular matrix: two diagonal blocks, and the block below the first."""

    first: "_Block | _Halves"
    below: jax.Array
    rest: "_Block | _Halves"


class _Iterate(NamedTuple):
    y: jax.Array
    z: jax.Array
    least: jax.Array  # A lower bound on the square roots of Z Y's eigenvalues.
    error: jax.Array
    error_before: jax.Array
    iterations: jax.Array


def invert_all(
    matrices: Sequence[jax.Array],
    least: Sequence[jax.Array],
    root: bool,
    guesses: Sequence[jax.Array],
) -> list[jax.Array]:
    """The inverse of each symmetric matrix, or the square root of its inverse.

    Matrices of one size and dtype are joined in one batch. An accelerator inverts a
    batch at once, since one matrix alone is too small to occupy it. A CPU inverts them
    one after the other, in a loop per batch; there, a batch of several arrays has at
    most `_MOST_ENTRIES` entries.

    An accelerator factorizes the matrices only if a few steps of Newton's iteration
    from the guesses do not suffice for all of them, since a factorization consists of
    many operations that are too small to occupy it.

    Where a matrix is not positive definite, some entries of the result are not finite.

    Args:
        matrices: arrays of shape (..., d, d); d and the number of axes may differ.
        least: lower bounds on the eigenvalues, of shapes (...).
        root: whether to return the roots of the inverses.
        guesses: symmetric matrices that may be close to the inverses, such as the
            inverses of nearly equal matrices; unused, and may be empty, for roots.
    """
    of_one = positive_definite_inverse_root if root else _by_halves
    others = (least,) if root else ()

    def on_cpu(matrices: _Arrays, others: tuple[_Arrays, ...], _: _Arrays) -> _Arrays:
        function = functools.partial(_one_by_one, of_one)
        return _in_batches(function, matrices, *others, most_entries=_MOST_ENTRIES)

    def on_accelerator(
        matrices: _Arrays, others: tuple[_Arrays, ...], guesses: _Arrays
    ) -> _Arrays:
        if root:
            return _in_batches(positive_definite_inverse_root, matrices, *others)
        found = _in_batches(refined, matrices, guesses)
        # An error of nan is not small.
        near = [(error <= largest_error(error.dtype)).all() for _, error in found]
        return update_if(
            ~jnp.stack(near).all(),
            lambda _: _in_batches(_by_cholesky, matrices),
            [inverse for inverse, _ in found],
        )

    return jax.lax.platform_dependent(
        list(matrices),
        tuple(map(list, others)),
        list(guesses),
        cpu=on_cpu,
        default=on_accelerator,
    )


def _in_batches(
    function: Callable[..., Any],
    matrices: _Arrays,
    *others: _Arrays,
    most_entries: float = math.inf,
) -> list[Any]:
    """Applies a function to batches of matrices of one size and dtype.

    Args:
        function: takes an array of shape (n, d, d) and one of shape (n, ...) for each
            of `others`, and returns arrays of shapes (n, ...).
        matrices: arrays of shape (..., d, d).
        *others: for each of these, an array with the same leading axes.
        most_entries: the most entries of several arrays in one batch.

    Returns:
        For each array of `matrices`, what the function returned for it, with its
        leading axes restored.
    """
    results = [None] * len(matrices)
    for members in _groups(matrices, most_entries):
        stacks = [matrices[i].shape[:-2] for i in members]
        batches = [
            jnp.concatenate(
                [
                    arrays[i].reshape(-1, *arrays[i].shape[len(stack) :])
                    for i, stack in zip(members, stacks, strict=True)
                ]
            )
            for arrays in (matrices, *others)
        ]
        ends = np.cumsum([math.prod(stack) for stack in stacks])
        found = function(*batches)
        for i, stack, end in zip(members, stacks, ends, strict=True):
            rows = slice(end - math.prod(stack), end)
            results[i] = jax.tree.map(
                lambda x, rows=rows, stack=stack: x[rows].reshape(*stack, *x.shape[1:]),
                found,
            )
    return results


def _groups(matrices: Sequence[jax.Array], most_entries: float) -> list[list[int]]:
    """The indices of arrays with one matrix size and dtype together."""
    kinds = [(x.shape[-1], x.dtype) for x in matrices]
    return grouped(kinds, [x.size for x in matrices], most_entries)


def positive_definite_inverse_root(
    matrices: jax.Array, least: ArrayLike = 0.0
) -> jax.Array:
    """The inverse of the square root of each symmetric matrix of shape (..., d, d).

    The coupled Newton-Schulz iteration needs matrix products alone: Y goes from
    M / ||M|| to the square root of that matrix, and Z from I to the inverse of the
    root. It converges if M is positive definite, since ||M||, the Frobenius norm, is at
    least the largest eigenvalue. Until Z Y is close to I, each step also scales Y and Z
    by the factor that most raises the lower bound on the eigenvalues of Z Y. With a
    bound from `least`, this saves a third of the steps at a condition number of 20, and
    nearly half at 10^7.

    Source: Higham, Functions of Matrices (2008), Eq. 6.35. The scaling: Chen and Chow,
    A stable scaling of Newton-Schulz for improving the sign function computation of a
    Hermitian matrix (2014).

    Args:
        matrices: the matrices M.
        least: a lower bound on the eigenvalues of each, of a shape that broadcasts to
            (...). A bound that is too low, such as 0, only costs iterations.

    Returns:
        The inverse roots. All entries are nan where a matrix is not positive definite.
    """
    shape = matrices.shape
    flat = matrices.reshape(-1, *shape[-2:])
    identity = identities(flat.shape, flat.dtype)
    norm = jnp.linalg.norm(flat, axis=(-2, -1), keepdims=True)
    rounding = jnp.finfo(flat.dtype).eps

    def goes_on(now: _Iterate) -> jax.Array:
        far = now.error > _CONVERGED
        # The error was measured before the last step, which has squared it since: stop
        # where its square is within rounding, or where rounding keeps it from falling.
        falls = (now.error < 0.7 * now.error_before) & (now.error > rounding**0.5 / 2)
        return (far | falls).any() & (now.iterations < _MOST_ITERATIONS)

    def iterate(now: _Iterate) -> _Iterate:
        zy = product(now.z, now.y)
        error = jnp.abs(identity - zy).sum(axis=-1).max(axis=-1) / 2
        scale = jnp.sqrt(3 / (1 + now.least + now.least**2))
        scale = jnp.where(error[:, None, None] > _CONVERGED, scale, 1)
        correction = (identity - scale**2 * zy) / 2
        least = scale * now.least
        return _Iterate(
            scale * (now.y + product(now.y, correction)),
            scale * (now.z + product(correction, now.z)),
            jnp.minimum(least * (3 - least**2) / 2, 1),
            error,
            now.error,
            now.iterations + 1,
        )

    bounds = jnp.broadcast_to(jnp.asarray(least, flat.dtype), shape[:-2])
    bounds = jnp.sqrt(jnp.clip(bounds.reshape(-1, 1, 1) / norm, rounding, 1))
    infinite = jnp.full(len(flat), jnp.inf, flat.dtype)
    first = _Iterate(
        flat / norm, identity, bounds, infinite, infinite, jnp.zeros((), int)
    )
    last = jax.lax.while_loop(goes_on, iterate, first)
    good = (last.error <= _CONVERGED)[:, None, None]
    return jnp.where(good, last.z / jnp.sqrt(norm), jnp.nan).reshape(shape)


def _by_cholesky(matrices: jax.Array) -> jax.Array:
    eye = identities(matrices.shape, matrices.dtype)
    factor = jnp.linalg.cholesky(matrices)
    root = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    return jnp.einsum("...ki,...kj->...ij", root, root, precision=_HIGHEST)


def _one_by_one(function: Callable[..., jax.Array], *batches: jax.Array) -> jax.Array:
    """Applies a function of one matrix to each, as large batches slow down CPUs."""
    if len(batches[0]) == 1:
        return function(*(x[0] for x in batches))[None]
    return jax.lax.map(lambda one: function(*one), batches)


def _by_halves(matrix: jax.Array) -> jax.Array:
    """Inverts one matrix by way of its Cholesky factor, mostly in matrix products.

    LAPACK's Cholesky factorization can stall for seconds when its threads compete for
    cores, as in containers.
    """
    return _gram(_inverse_of_factor(_factor(matrix)))


def _factor(matrix: jax.Array) -> _Block | _Halves:
    """The Cholesky factor L of a matrix L L^T."""
    size = matrix.shape[-1]
    if size <= _UNDIVIDED:
        return _factor_by_rows(matrix)
    half = size // 2
    first = _factor(matrix[:half, :half])
    below = _times_transposed_inverse(matrix[half:, :half], first)
    rest = _factor(matrix[half:, half:] - product(below, below.T))
    return _Halves(first, below, rest)


def _factor_by_rows(matrix: jax.Array) -> _Block:
    """Computes a row of L^T and of L^-1 at a time, by substitution.

    The root of a pivot that is not positive makes the results nan or infinite.
    """
    size = matrix.shape[-1]
    index = jnp.arange(size)

    def substitute(k: jax.Array, rows: jax.Array) -> jax.Array:
        # The rows before k are those of [L^T, L^-1], the others those of [M, I].
        column = jax.lax.dynamic_index_in_dim(rows, k, axis=1, keepdims=False)
        row = jax.lax.dynamic_index_in_dim(rows, k, keepdims=False)
        row -= product(jnp.where(index < k, column, 0), rows)
        pivot = jax.lax.dynamic_index_in_dim(row, k, keepdims=False)
        row *= jax.lax.rsqrt(pivot)
        return jax.lax.dynamic_update_index_in_dim(rows, row, k, axis=0)

    both = jnp.concatenate([matrix, jnp.eye(size, dtype=matrix.dtype)], axis=1)
    rows = jax.lax.fori_loop(0, size, substitute, both)
    return _Block(jnp.tril(rows[:, :size].T), rows[:, size:])


def _times_transposed_inverse(a: jax.Array, factor: _Block | _Halves) -> jax.Array:
    """A L^-T, by substitution of blocks.

    A product with the inverse of a block is corrected by its residual. Without this,
    the inverse of the matrix L L^T would be several times less accurate at a condition
    number of 10^6 in float32, and could fail at 3 x 10^6.
    """
    if isinstance(factor, _Block):
        result = product(a, factor.inverse.T)
        residual = a - product(result, factor.lower.T)
        return result + product(residual, factor.inverse.T)
    half = factor.below.shape[-1]
    first = _times_transposed_inverse(a[:, :half], factor.first)
    rest = a[:, half:] - product(first, factor.below.T)
    rest = _times_transposed_inverse(rest, factor.rest)
    return jnp.concatenate([first, rest], axis=1)


def _inverse_of_factor(factor: _Block | _Halves) -> jax.Array:
    if isinstance(factor, _Block):
        return factor.inverse
    first = _inverse_of_factor(factor.first)
    rest = _inverse_of_factor(factor.rest)
    below = -product(rest, product(factor.below, first))
    return jnp.block([[first, jnp.zeros_like(below.T)], [below, rest]])


def _gram(factor: jax.Array) -> jax.Array:
    """M^T M of a lower triangular matrix M."""
    size = factor.shape[-1]
    if size <= _UNDIVIDED:
        return product(factor.T, factor)
    half = size // 2
    below, rest = factor[half:, :half], factor[half:, half:]
    first = _gram(factor[:half, :half]) + product(below.T, below)
    across = product(below.T, rest)
    return jnp.block([[first, across], [across.T, _gram(rest)]])
