"""Which axes of a sown statistic are a weight's own, and which are averaged.

A layer sows a statistic of its kernel's rank. `nn.scan`, `nn.vmap` and `nn.RNN` stack
it along leading axes: one for layers stacked in the kernel too, which keep one power
each, or one for the uses of a shared kernel, which are averaged.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]


class Misfit(ValueError):
    """A statistic that cannot belong to its weight; the message says why."""


def _fits(shape: Shape, weight: Shape) -> bool:
    """Whether a statistic of this shape broadcasts against the weight."""
    return len(shape) == len(weight) and all(
        n in (1, m) for n, m in zip(shape, weight, strict=True)
    )


def averaged_axes(statistic: Shape, weight: Shape) -> tuple[int, ...]:
    """The axes of a statistic that its weight does not have.

    As many axes as the statistic has in excess are averaged, such that the rest
    broadcasts against the weight. Of several choices the one that averages the most
    axes longer than 1 holds, since what a layer sows by itself ends in singletons.

    Raises:
        Misfit: if no choice fits, or several different ones do.
    """
    excess = len(statistic) - len(weight)
    if excess < 0:
        raise Misfit(f"{statistic} has fewer axes than the weight {weight}")
    choices: dict[tuple[int, ...], tuple[int, ...]] = {}
    for axes in itertools.combinations(range(len(statistic)), excess):
        rest = tuple(n for a, n in enumerate(statistic) if a not in axes)
        if _fits(rest, weight):
            choices[tuple(a for a in axes if statistic[a] > 1)] = axes
    if not choices:
        raise Misfit(f"{statistic} does not broadcast against the weight {weight}")
    most = max(map(len, choices))
    best = [axes for long, axes in choices.items() if len(long) == most]
    if len(best) > 1:
        raise Misfit(
            f"{statistic} fits the weight {weight} in more than one way: stacked axes"
            " and repeated uses have the same length"
        )
    return best[0]


def _padded(statistic: Shape, rank: int) -> Shape:
    """A hand-sown scalar, stacked or not, in the rank of its weight."""
    return statistic + (1,) * (rank - len(statistic))


def _cut(statistic: Shape, weight: Shape) -> Shape:
    """A kernel's statistic in the rank of a bias: without trailing singletons."""
    cut = statistic[: len(weight)]
    if any(n != 1 for n in statistic[len(weight) :]) or not _fits(cut, weight):
        raise Misfit(f"{statistic} cannot be cut to fit the weight {weight}")
    return cut


def align(
    use: jax.Array | jax.ShapeDtypeStruct, weight: Shape, kernel: Shape
) -> tuple[tuple[int, ...], Shape, Shape]:
    """How one sown statistic becomes the power of one weight.

    Args:
        use: what one call of the layer sowed.
        weight: the shape of the weight it scales.
        kernel: the shape of the layer's kernel; the weight's own if it has none.

    Returns:
        The shape to give the statistic, the axes to average then, and the shape of
        the result, which broadcasts against the weight.
    """
    shape = _padded(use.shape, len(kernel))
    axes = averaged_axes(shape, kernel)
    rest = tuple(n for a, n in enumerate(shape) if a not in axes)
    return axes, shape, _cut(rest, weight)


def power_shape(
    uses: Sequence[jax.ShapeDtypeStruct], weight: Shape, kernel: Shape
) -> Shape:
    """The shape of a weight's P: () if nothing varies, else of the weight's rank."""
    shapes = [align(use, weight, kernel)[2] for use in uses]
    shape = tuple(map(max, zip(*shapes, strict=True)))
    return shape if any(n > 1 for n in shape) else ()


def mean_over_uses(
    uses: Sequence[jax.Array], weight: Shape, kernel: Shape, shape: Shape
) -> jax.Array:
    """The statistics a layer sowed in one pass, as one value of shape `shape`."""
    values = []
    for use in uses:
        if shape == ():
            values.append(jnp.mean(use))
            continue
        axes, padded, cut = align(use, weight, kernel)
        if tuple(map(max, zip(cut, shape, strict=True))) != shape:
            raise Misfit(f"{use.shape} gives {cut}, but P has the shape {shape}")
        value = jnp.mean(jnp.reshape(use, padded), axis=axes).reshape(cut)
        values.append(jnp.broadcast_to(value, shape))
    return functools.reduce(jnp.add, values) / len(values)
