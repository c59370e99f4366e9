"""The mean power of a convolution's receptive fields, the "inputs to the neuron".

A patch is never built: each input entry counts once for every output position and tap
that reads it, and those counts factor over the spatial axes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from insgd_optax._explicit_axes import on_auto_axes
from insgd_optax._norms import entry_powers, nan_or_zero

Padding = str | Sequence[tuple[int, int]]


class Window(NamedTuple):
    """The window of a convolution along one spatial axis."""

    size: int  # input entries
    kernel: int
    stride: int
    kernel_dilation: int
    input_dilation: int
    pad: tuple[int, int]  # zeros before and after the dilated input
    mode: str = "constant"  # or np.pad's "wrap" or "reflect", before dilation
    period: int | None = None  # outputs this far apart are added up into one

    @property
    def outputs(self) -> int:
        """The number of output positions."""
        size = self.size + (sum(self.pad) if self.mode != "constant" else 0)
        span = (size - 1) * self.input_dilation + 1
        if self.mode == "constant":
            span += sum(self.pad)
        reach = (self.kernel - 1) * self.kernel_dilation + 1
        return max((span - reach) // self.stride + 1, 0)

    def counts(self) -> np.ndarray:
        """The number of pairs of output position and tap that read each entry."""
        source = np.arange(self.size)
        before = self.pad[0]
        if self.mode != "constant":
            source = np.pad(source, self.pad, mode=self.mode)  # type: ignore[call-overload]
            before = 0
        position = np.arange(self.outputs)[:, None] * self.stride - before
        tap = np.arange(self.kernel)[None, :] * self.kernel_dilation
        entry, between = np.divmod((position + tap).ravel(), self.input_dilation)
        inside = (between == 0) & (entry >= 0) & (entry < len(source))
        return np.bincount(source[entry[inside]], minlength=self.size)


def conv_windows(
    spatial: Sequence[int],
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Padding,
    input_dilation: Sequence[int],
    kernel_dilation: Sequence[int],
) -> list[Window]:
    """The windows of `nn.Conv`, whose padding may also be circular or reflected."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, kernel_dilation, strict=True)]
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}.get(str(padding), "constant")
    if mode != "constant":
        pads = [((r - 1) // 2, r // 2) for r in reach]
    elif padding == "CAUSAL":
        pads = [(r - 1, 0) for r in reach]
    elif isinstance(padding, str):
        pads = jax.lax.padtype_to_pads(spatial, reach, strides, padding)
    else:
        pads = [(low, high) for low, high in padding]
    return [
        Window(size, kernel, stride, dilation, input_dilated, pad, mode)
        for size, kernel, stride, dilation, input_dilated, pad in zip(
            spatial,
            kernel_size,
            strides,
            kernel_dilation,
            input_dilation,
            pads,
            strict=True,
        )
    ]


def conv_transpose_windows(
    spatial: Sequence[int],
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Padding,
    kernel_dilation: Sequence[int],
) -> list[Window]:
    """The windows of `nn.ConvTranspose`: a convolution of the dilated input."""
    windows = []
    for axis, (n, k, s, d) in enumerate(
        zip(spatial, kernel_size, strides, kernel_dilation, strict=True)
    ):
        reach = (k - 1) * d + 1
        if not isinstance(padding, str):
            pad = (padding[axis][0], padding[axis][1])
        elif padding == "SAME":
            total = reach + s - 2
            low = reach - 1 if s > reach - 1 else -(-total // 2)
            pad = (low, total - low)
        elif padding in ("VALID", "CIRCULAR"):  # CIRCULAR adds up VALID's outputs
            pad = (reach - 1, s - 1 + max(reach - s, 0))
        else:
            raise ValueError(f"padding={padding!r} is not known for ConvTranspose")
        period = n * s if padding == "CIRCULAR" else None
        windows.append(Window(n, k, 1, d, s, pad, period=period))
    return windows


@on_auto_axes
def patch_norm(
    x: jax.Array,
    p: float,
    *,
    windows: Sequence[Window],
    groups: int = 1,
) -> jax.Array:
    """The mean over samples, positions and groups of a receptive field's power.

    Args:
        x: (..., *spatial, channels).
        p: the norm; `jnp.inf` takes each field's largest magnitude.
        windows: one per spatial axis.
        groups: the number of feature groups the channels fall into.

    Returns:
        A statistic of shape (1, ..., 1), of the rank of the kernel.
    """
    rank = len(windows) + 2
    x = x.reshape(math.prod(x.shape[: 1 - rank]), *x.shape[1 - rank :])
    powers = entry_powers(x, p)
    if p == np.inf:
        if any(window.period for window in windows):
            raise ValueError(
                "the infinity norm of a receptive field is not defined for a circular"
                " ConvTranspose, whose outputs add up several fields: use"
                ' conv_input="feature_map" or a finite p'
            )
        mean = _mean_largest(powers, windows, groups) + nan_or_zero(powers, range(rank))
        return mean.reshape((1,) * rank)
    total = jnp.sum(powers, axis=(0, rank - 1))
    # A float, since JAX takes no integers beyond 2^31.
    fields = float(x.shape[0] * groups)
    for axis, window in enumerate(windows):
        shape = [1] * len(windows)
        shape[axis] = window.size
        total = total * jnp.asarray(window.counts(), total.dtype).reshape(shape)
        fields *= window.period or window.outputs
    return (jnp.sum(total) / fields).reshape((1,) * rank)


def _mean_largest(
    magnitude: jax.Array, windows: Sequence[Window], groups: int
) -> jax.Array:
    """The mean over fields of the largest entry, for the infinity norm."""
    *lead, channels = magnitude.shape
    largest = magnitude.reshape(*lead, groups, channels // groups)
    largest = largest.max(axis=-1, initial=0)
    largest, zeros = padded(largest, windows)
    fields = jax.lax.reduce_window(
        largest,
        jnp.zeros((), largest.dtype),
        jax.lax.max,
        window_dimensions=(1, *(w.kernel for w in windows), 1),
        window_strides=(1, *(w.stride for w in windows), 1),
        padding=[(0, 0), *zeros, (0, 0)],
        base_dilation=(1, *(w.input_dilation for w in windows), 1),
        window_dilation=(1, *(w.kernel_dilation for w in windows), 1),
    )
    return jnp.mean(fields)


def padded(
    x: jax.Array, windows: Sequence[Window]
) -> tuple[jax.Array, list[tuple[int, int]]]:
    """Pads the axes of (samples, *spatial, channels) whose padding is not zeros.

    Returns:
        The array, and the zeros that are still to be added along each spatial axis.
    """
    zeros = []
    for axis, window in enumerate(windows, start=1):
        if window.mode == "constant":
            zeros.append(window.pad)
        else:
            width = [(0, 0)] * x.ndim
            width[axis] = window.pad
            x = jnp.pad(x, width, mode=window.mode)
            zeros.append((0, 0))
    return x, zeros
