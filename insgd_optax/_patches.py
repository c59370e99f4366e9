"""Receptive fields as rows: the input vectors of a convolution's neurons."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from insgd_optax._receptive_field import Window, padded

# Samples are reduced first, so that less of an activation is computed a second time for
# the capture, but at first only where there are more than 32, and to no fewer than 17:
# the receptive fields of one sample resemble each other. Then positions are reduced, at
# first only along axes that have more than 4, and to no fewer than 3: neighboring
# positions resemble each other, too.
_FEWEST_SAMPLES = 32
_FEWEST_POSITIONS = 4


class RowSubsampling:
    """Chooses samples and positions so that there are at most `max_rows` rows.

    Samples are taken with a stride that divides their number, which keeps sharded
    batches balanced, unless that would leave at most half as many as are allowed.
    Positions are taken with a stride along each axis, centered.
    """

    def __init__(self, sizes: Sequence[int], max_rows: int | None) -> None:
        self.sizes = tuple(sizes)
        self.counts = list(self.sizes)
        if max_rows is not None:
            self._reduce_samples(max_rows, _FEWEST_SAMPLES)
            self._reduce_positions(max_rows, _FEWEST_POSITIONS)
            self._reduce_samples(max_rows, 1)
            self._reduce_positions(max_rows, 1)
        self.steps = [
            -(-n // c) if c else 1 for n, c in zip(self.sizes, self.counts, strict=True)
        ]
        self.counts = [-(-n // s) for n, s in zip(self.sizes, self.steps, strict=True)]

    def _reduce_positions(self, max_rows: int, fewest: int) -> None:
        while math.prod(self.counts) > max_rows:
            longest = max(self.counts[1:], default=0)
            if longest <= fewest:
                return
            axis = self.counts.index(longest, 1)
            step = -(-self.sizes[axis] // (longest - 1))
            self.counts[axis] = -(-self.sizes[axis] // step)

    def _reduce_samples(self, max_rows: int, fewest: int) -> None:
        samples = self.sizes[0]
        most = max(max_rows // max(math.prod(self.counts[1:]), 1), fewest)
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


def positions(windows: Sequence[Window]) -> list[int]:
    """The sizes of a convolution's output map."""
    return [window.period or window.outputs for window in windows]


def receptive_fields(
    x: jax.Array, windows: Sequence[Window], subsample: RowSubsampling
) -> jax.Array:
    """The receptive fields of a convolution.

    Args:
        x: (samples, *spatial, channels), with the samples already chosen.
        windows: one per spatial axis.
        subsample: which positions to take.

    Returns:
        An array of shape (samples, *positions, *taps, channels).
    """
    x, zeros = padded(x, windows)
    pads = [
        (*pad, window.input_dilation - 1)
        for pad, window in zip(zeros, windows, strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    taps = []
    for tap in itertools.product(*(range(window.kernel) for window in windows)):
        starts, limits, strides = [0], [x.shape[0]], [1]
        for i, (window, t) in enumerate(zip(windows, tap, strict=True), start=1):
            if window.period:
                # Fields that are added up cannot be thinned before they are.
                step, count, first = 1, window.outputs, 0
            else:
                step, count = subsample.steps[i], subsample.counts[i]
                first = subsample.start(i)
            begin = first * window.stride + t * window.kernel_dilation
            stride = step * window.stride
            starts.append(begin)
            limits.append(begin + (count - 1) * stride + 1 if count else begin)
            strides.append(stride)
        taps.append(
            jax.lax.slice(x, [*starts, 0], [*limits, x.shape[-1]], [*strides, 1])
        )
    fields = jnp.stack(taps, axis=-2)
    kernel = [window.kernel for window in windows]
    fields = fields.reshape(*fields.shape[:-2], *kernel, x.shape[-1])
    for i, window in enumerate(windows, start=1):
        if window.period:
            folded = _folded(fields, i, window.period)
            kept = slice(subsample.start(i), None, subsample.steps[i])
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
