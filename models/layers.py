"""What the networks share: input checks, PyTorch's initialisers, normalization."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Dtype = Any

# PyTorch's default for nn.Linear and nn.Conv2d kernels, U(-b, b) with
# b = 1 / sqrt(fan_in): kaiming_uniform_(a=sqrt(5)) has the variance 1 / (3 fan_in).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default for biases: U(-b, b) with b = 1 / sqrt(fan_in).

    Args:
      fan_in: Inputs of one output unit; for a convolution, the area of the kernel
        times the input channels of a group.

    Returns:
      An initialiser, called with (key, shape, dtype).
    """

    def init(key: jax.Array, shape: Any, dtype: Dtype = jnp.float32) -> jax.Array:
        bound = 1 / np.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def check_images(x: jax.Array, smallest: int, model: str) -> None:
    """Checks a batch of images against the smallest size a network can take.

    Args:
      x: The input, to be of shape (batch, height, width, channels).
      smallest: The smallest height and width, in pixels.
      model: The network's name, for the message.

    Raises:
      ValueError: `x` has another rank, or is smaller than `smallest`.
    """
    if x.ndim != 4:
        raise ValueError(
            f"{model} takes images of shape (batch, height, width, channels), "
            f"got an array of shape {x.shape}."
        )
    height, width = x.shape[1:3]
    if min(height, width) < smallest:
        raise ValueError(
            f"{model} needs images of at least {smallest}x{smallest} pixels: its "
            f"strides divide each side by {smallest}; got {height}x{width}. Resize "
            "the images, or choose a network with fewer strides."
        )


def to_logits(x: jax.Array) -> jax.Array:
    """Logits in float32 at least, whatever the dtype of the computation."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
