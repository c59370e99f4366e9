"""Products of matrices, and identity matrices."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product at the highest precision."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def identities(shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Identity matrices of shape (..., d, d)."""
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)
