"""The paper's own small network: four convolutions and a linear layer (Table 2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers


class CustomCNN(nn.Module):
    """The custom CNN of Table 2.

    Four 3x3 convolutions with 8, 16, 32 and 64 channels, the last three of stride 2,
    each followed by batch normalization and a ReLU; then dropout, flattening and a
    linear layer. For a 32x32 image the feature maps are 32x32x8, 16x16x16, 8x8x32
    and 4x4x64, and the linear layer sees 1024 values.

    Args:
        num_classes: number of logits.
        batch_norm: normalize after each convolution. Without it (Table 7) the
            convolutions have biases; with it they have none.
        dropout: rate of the dropout before the linear layer; uses the rng "dropout"
            when `train` is true.
        dtype: dtype of the computation; parameters and statistics are float32.
        axis_name: mapped axis over which batch statistics are averaged.

    Returns:
        From `__call__(x, train)`, with images `x` of shape (batch, height, width,
        channels), at least 8x8: logits of shape (batch, num_classes), float32.

    Raises:
        ValueError: if `x` is no batch of images, or they are smaller than 8x8.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = CustomCNN(num_classes=10)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> variables = jax.eval_shape(
        ...     lambda key: model.init(key, images, train=False), jax.random.key(0))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        34898

    Initialised as PyTorch does by default, as in the authors' code: kernels and
    biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Source: Table 2 and section 3.2 of the paper ("four convolutional layers, each
    followed by a batch normalization layer"). Table 2 prints no activations; a ReLU
    follows each normalization here. The authors' released network
    (`models/customcnn.py`) is another one: it has no ReLU after the first
    convolution, and adds a 1x1 convolution of stride 2 with batch normalization as a
    shortcut around the second, after that one's ReLU; its last ReLU comes after the
    dropout, which changes nothing. It has no form without batch normalization.
    """

    num_classes: int = 10
    batch_norm: bool = True
    dropout: float = 0.2
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers.check_images(x, self, smallest=8)
        for features, stride in ((8, 1), (16, 2), (32, 2), (64, 2)):
            x = layers.conv(
                x, features, 3, stride, use_bias=not self.batch_norm, dtype=self.dtype
            )
            if self.batch_norm:
                x = layers.batch_norm(
                    x, train=train, dtype=self.dtype, axis_name=self.axis_name
                )
            x = nn.relu(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        return layers.to_logits(layers.dense(x, self.num_classes, dtype=self.dtype))
