"""A network small enough to be compiled for every test."""

import flax.linen as nn
import jax.numpy as jnp


class TinyCNN(nn.Module):
    """A convolution, maybe batch normalization and dropout, and a linear layer."""

    batch_norm: bool = True
    num_classes: int = 3
    dropout: float = 0.0
    dtype: str = "float32"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        # A bias before a normalization has gradient 0: only its rounding would show.
        x = nn.Conv(
            4, (3, 3), strides=2, use_bias=not self.batch_norm, dtype=self.dtype
        )(x)
        if self.batch_norm:
            x = nn.BatchNorm(
                use_running_average=not train,
                dtype=self.dtype,
                axis_name=self.axis_name,
            )(x)
        x = nn.relu(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
