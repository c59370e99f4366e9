"""Receptive fields as rows: the input vectors of a convolution's neurons."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from insgd_optax._receptive_field import Window

# Positions kept along an axis before samples are dropped as well: neighbouring
# positions resemble each other, but one position alone would not speak for the map.
_FEWEST_POSITIONS = 4


class Thinning:
    """Which samples and positions become rows, so that at most `max_rows` do.

    Every position axis is thinned with a constant stride and centred; samples are
    thinned last, by a divisor of their number, which keeps sharded batches balanced.
    """

    def __init__(self, sizes: Sequence[int], max_rows: int | None) -> None:
        self.sizes = tuple(sizes)
        self.counts = list(self.sizes)
        if max_rows is not None:
            self._thin_positions(max_rows, _FEWEST_POSITIONS)
            self._thin_samples(max_rows)
            self._thin_positions(max_rows, 1)
        self.steps = [
            -(-n // c) if c else 1 for n, c in zip(self.sizes, self.counts, strict=True)
        ]
        self.counts = [-(-n // s) for n, s in zip(self.sizes, self.steps, strict=True)]

    def _thin_positions(self, max_rows: int, fewest: int) -> None:
        while math.prod(self.counts) > max_rows:
            longest = max(self.counts[1:], default=0)
            if longest <= fewest:
                return
            axis = self.counts.index(longest, 1)
            step = -(-self.sizes[axis] // (longest - 1))
            self.counts[axis] = -(-self.sizes[axis] // step)

    def _thin_samples(self, max_rows: int) -> None:
        samples = self.sizes[0]
        most = max(max_rows // max(math.prod(self.counts[1:]), 1), 1)
        if samples > most:
            divisors = (c for c in range(most, 0, -1) if samples % c == 0)
            count = next(divisors)
            # A prime number of samples has no divisor worth taking.
            self.counts[0] = count if 2 * count > most else most

    def start(self, axis: int) -> int:
        """The first index kept along an axis."""
        if axis == 0:
            return 0
        step, count = self.steps[axis], self.counts[axis]
        return (self.sizes[axis] - 1 - (count - 1) * step) // 2

    def take(self, x: jax.Array, axes: Sequence[int]) -> jax.Array:
        """`x` thinned along its axes of samples and positions."""
        index = [slice(None)] * x.ndim
        for i, axis in enumerate(axes):
            index[axis] = slice(self.start(i), None, self.steps[i])
        return x[tuple(index)]


def patches(
    x: jax.Array, windows: Sequence[Window], max_rows: int | None = None
) -> jax.Array:
    """The receptive fields of a convolution, one a row.

    Args:
        x: (samples, *spatial, channels).
        windows: one a spatial axis.
        max_rows: the most rows; None for every receptive field.

    Returns:
        An array of shape (rows, taps, channels), taps in the kernel's order.
    """
    rank = len(windows)
    fields = _fields(x, windows, max_rows)
    return fields.reshape(-1, *fields.shape[rank + 1 :])


def fields_by_position(
    x: jax.Array, windows: Sequence[Window], max_rows: int | None = None
) -> jax.Array:
    """Every receptive field, of at most `max_rows` samples.

    Returns:
        An array of shape (samples, *positions, taps, channels).
    """
    return _fields(Thinning(x.shape[:1], max_rows).take(x, [0]), windows, None)


def _fields(x: jax.Array, windows: Sequence[Window], max_rows: int | None) -> jax.Array:
    outputs = [window.period or window.outputs for window in windows]
    thin = Thinning([x.shape[0], *outputs], max_rows)
    x = thin.take(x, [0])
    pads = [(0, 0, 0)]
    for axis, window in enumerate(windows, start=1):
        low, high = window.pad
        if window.mode != "constant":
            width = [(0, 0)] * x.ndim
            width[axis] = window.pad
            x = jnp.pad(x, width, mode=window.mode)
            low, high = 0, 0
        pads.append((low, high, window.input_dilation - 1))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [*pads, (0, 0, 0)])
    taps = []
    for tap in itertools.product(*(range(window.kernel) for window in windows)):
        starts, limits, strides = [0], [x.shape[0]], [1]
        for i, (window, t) in enumerate(zip(windows, tap, strict=True), start=1):
            # Fields that are added up cannot be thinned before they are.
            step, count, first = thin.steps[i], thin.counts[i], thin.start(i)
            if window.period:
                step, count, first = 1, window.outputs, 0
            begin = first * window.stride + t * window.kernel_dilation
            stride = step * window.stride
            starts.append(begin)
            limits.append(begin + max(count - 1, 0) * stride + 1 if count else begin)
            strides.append(stride)
        taps.append(
            jax.lax.slice(x, [*starts, 0], [*limits, x.shape[-1]], [*strides, 1])
        )
    fields = jnp.stack(taps, axis=-2)
    for i, window in enumerate(windows, start=1):
        if window.period:
            folded = _folded(fields, i, window.period)
            kept = slice(thin.start(i), None, thin.steps[i])
            fields = folded[(slice(None),) * i + (kept,)]
    return fields


def _folded(fields: jax.Array, axis: int, period: int) -> jax.Array:
    """Adds up the fields of positions a period apart, which are one output."""
    size = fields.shape[axis]
    repeats = -(-size // period)
    width = [(0, 0)] * fields.ndim
    width[axis] = (0, repeats * period - size)
    shape = fields.shape[:axis] + (repeats, period) + fields.shape[axis + 1 :]
    return jnp.pad(fields, width).reshape(shape).sum(axis=axis)
