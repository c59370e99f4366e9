"""Input checks, initializers and layers that the networks share."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import NetworkError

Dtype = Any
Initializer = nn.initializers.Initializer

# PyTorch's default for kernels, U(-b, b) with b = 1 / sqrt(fan_in): its
# kaiming_uniform_(a=sqrt(5)) has the variance 1 / (3 fan_in).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# torchvision's kaiming_normal_(mode="fan_out"): N(0, 2 / fan_out), where fan_out is
# the kernel's area times the number of output channels, even for grouped kernels.
kaiming_fan_out_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_bias_init(fan_in: int) -> Initializer:
    """PyTorch's default for biases: U(-b, b) with b = 1 / sqrt(fan_in)."""

    def init(
        key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32
    ) -> jax.Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: jax.Array,
    features: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Initializer = torch_kernel_init,
    dtype: Dtype,
) -> jax.Array:
    """Applies a square convolution of odd size, padded by half its size as in PyTorch.

    "SAME" would pad a convolution of stride 2 more on one side than on the other, and
    shift the feature map. Call it inside a compact method; the convolution becomes a
    submodule.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=torch_bias_init(size * size * x.shape[-1] // groups),
    )(x)


def dense(
    x: jax.Array, features: int, *, use_bias: bool = True, dtype: Dtype
) -> jax.Array:
    """Applies a linear layer with PyTorch's initialization; called like `conv`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(x.shape[-1]),
    )(x)


def batch_norm(
    x: jax.Array,
    *,
    train: bool,
    epsilon: float = 1e-5,
    scale_init: Initializer = nn.initializers.ones,
    dtype: Dtype,
    axis_name: str | None,
) -> jax.Array:
    """Applies batch normalization with float32 statistics; called like `conv`.

    The running variance averages the biased batch variances, as in Flax. PyTorch
    averages the unbiased ones.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=scale_init,
        axis_name=axis_name,
    )(x)


def to_logits(x: jax.Array) -> jax.Array:
    """Converts the last layer's output to float32, or keeps it in float64."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def check_images(x: jax.Array, network: nn.Module, smallest: int) -> None:
    """Checks the rank of a batch of images, and their size against the strides.

    Args:
        x: the input; its shape should be (batch, height, width, channels).
        network: the network, named in the message.
        smallest: the smallest side allowed, the product of the strides, in pixels.

    Raises:
        NetworkError: if the rank of `x` is not 4, or a side is shorter than `smallest`.
    """
    name = type(network).__name__
    if x.ndim != 4:
        raise NetworkError(
            f"{name} takes images of shape (batch, height, width, channels), "
            f"got an array of shape {x.shape}."
        )
    height, width = x.shape[1:3]
    if min(height, width) < smallest:
        raise NetworkError(
            f"{name} takes images of at least {smallest}x{smallest} pixels, since its "
            f"strides divide each side by {smallest}; got {height}x{width}. Enlarge "
            "the images, or use a network with fewer strides."
        )


def check_choice(network: nn.Module, option: str, choices: Sequence[str]) -> None:
    """Raises a NetworkError unless the option of the network is one of the choices."""
    value = getattr(network, option)
    if value not in choices:
        raise NetworkError(
            f"{type(network).__name__} has no {option}={value!r}; "
            f"choose one of {', '.join(map(repr, choices))}."
        )
