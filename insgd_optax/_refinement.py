"""Newton's iteration for the inverse of symmetric matrices, from a guess."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from insgd_optax._matrices import identities, product

# Each step squares the error.
STEPS = 5


def largest_error(dtype: DTypeLike) -> float:
    """The largest error before the last step. Its square, 64 eps, is negligible."""
    return 8 * float(jnp.finfo(dtype).eps) ** 0.5


def refined(matrices: jax.Array, guesses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Improves guesses of the inverses of symmetric matrices.

    X <- X + (I - X M) X needs matrix products alone. It converges to the inverse
    exactly if the eigenvalues of I - X M are between -1 and 1; hence, from a positive
    definite guess, only if M is positive definite.

    With the factors in this order, X M is close to I up to rounding, whatever the
    condition number. With I - M X instead, or if X were made symmetric at the end, M X
    would be close to I, but X M, and thereby X G for a gradient G = M Y, would be off
    by rounding errors times the condition number.

    Source: Schulz (1933); Higham, Functions of Matrices (2008), Section 7.3.

    Args:
        matrices: the matrices M, of shape (n, d, d).
        guesses: symmetric matrices X, of the same shape.

    Returns:
        The results, symmetric up to rounding, and of shape (n,) the Frobenius norm of
        I - X M before the last step, which is nan or infinite if the iteration
        diverged. If it is at most e, the relative error of the result is at most e^2,
        up to rounding.
    """
    identity = identities(matrices.shape, matrices.dtype)
    inverse = guesses
    for _ in range(STEPS):
        residual = identity - product(inverse, matrices)
        inverse += product(residual, inverse)
    return inverse, jnp.sqrt(jnp.sum(jnp.square(residual), axis=(-2, -1)))
