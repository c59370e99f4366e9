"""Norms and inner products of arrays whose squares may leave the range of the dtype."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def extent(
    axes: tuple[int, ...], x: jax.Array, *others: jax.Array
) -> tuple[jax.Array, ...]:
    """Sums over axes of x in units of its largest magnitude.

    An accelerator reads the arrays only once, since starting a reduction takes longer
    than a reduction over a small array.

    Args:
        axes: the axes, which are kept with length 1.
        x: an array.
        *others: arrays of its shape, whose entries are at most about 1.

    Returns:
        The largest magnitude m, or 1 if x is 0; the sum of (x / m)^2; and for each of
        the others, y, the sum of (x / m) y. No derivative flows through m.
    """
    return jax.lax.platform_dependent(
        x,
        *others,
        cpu=functools.partial(in_two_passes, axes),
        default=functools.partial(in_one_pass, axes),
    )


@extent.defjvp
def _extent_jvp(
    axes: tuple[int, ...],
    primals: tuple[jax.Array, ...],
    tangents: tuple[jax.Array, ...],
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    x, *others = primals
    results = extent(axes, *primals)
    unit, change = x / results[0], tangents[0] / results[0]

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=axes, keepdims=True)

    changes = [
        total(change * y + unit * change_of_y)
        for y, change_of_y in zip(others, tangents[1:], strict=True)
    ]
    return results, (jnp.zeros_like(results[0]), total(2 * unit * change), *changes)


def in_two_passes(
    axes: tuple[int, ...], x: jax.Array, *others: jax.Array
) -> tuple[jax.Array, ...]:
    """Finds the largest magnitude first."""
    largest = _or_one(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    unit = x / largest
    return (
        largest,
        *(jnp.sum(unit * y, axis=axes, keepdims=True) for y in (unit, *others)),
    )


def in_one_pass(
    axes: tuple[int, ...], x: jax.Array, *others: jax.Array
) -> tuple[jax.Array, ...]:
    """Adds up partial sums, each in units of the largest magnitude in it.

    Source: the scaled sum of squares of LAPACK's routine xLASSQ.
    """

    def add(
        a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        largest = jnp.maximum(a[0], b[0])
        first, second = (part[0] / _or_one(largest) for part in (a, b))
        return (
            largest,
            a[1] * first**2 + b[1] * second**2,
            *(p * first + q * second for p, q in zip(a[2:], b[2:], strict=True)),
        )

    parts = (jnp.abs(x), jnp.ones_like(x), *(jnp.sign(x) * y for y in others))
    zeros = (jnp.zeros([], x.dtype),) * len(parts)
    largest, *sums = jax.lax.reduce(parts, zeros, add, axes)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    return _or_one(largest.reshape(shape)), *(y.reshape(shape) for y in sums)


def _or_one(largest: jax.Array) -> jax.Array:
    return jnp.where(largest > 0, largest, jnp.ones_like(largest))
