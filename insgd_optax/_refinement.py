"""Newton's iteration for the inverse of symmetric matrices, from a guess."""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST
# Each step squares the error. After the last one, at most 10^-5 remains.
STEPS = 5
LARGEST_ERROR = 0.003


def refined(matrices: jax.Array, guesses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Improves guesses of the inverses of symmetric matrices.

    X <- X + X (I - M X) needs matrix products alone. It converges to the inverse if the
    eigenvalues of I - M X are between -1 and 1; hence, from a positive definite guess,
    only if M is positive definite.

    Source: Schulz (1933); Higham, Functions of Matrices (2008), Section 7.3.

    Args:
        matrices: the matrices M, of shape (n, d, d).
        guesses: symmetric matrices X, of the same shape.

    Returns:
        The results, and of shape (n,) the Frobenius norm of I - M X before the last
        step, which is nan or infinite if the iteration diverged. If it is at most e,
        the relative error of the result is at most e^2, up to rounding.
    """
    identity = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    inverse = guesses
    for _ in range(STEPS):
        residual = identity - _product(matrices, inverse)
        inverse += _product(inverse, residual)
    error = jnp.sqrt(jnp.sum(jnp.square(residual), axis=(-2, -1)))
    return (inverse + inverse.mT) / 2, error


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_HIGHEST)
