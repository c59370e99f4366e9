"""The paper's custom CNN: four convolutions and a linear layer (Table 2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers


class CustomCNN(nn.Module):
    """The custom CNN of Table 2.

    The network has four 3x3 convolutions with 8, 16, 32 and 64 channels, each followed
    by batch normalization and a ReLU; the last three have stride 2. Dropout, flattening
    and a linear layer follow. For a 32x32 image the feature maps are 32x32x8, 16x16x16,
    8x8x32 and 4x4x64, and the linear layer has 1024 inputs.

    Args:
        num_classes: number of logits.
        batch_norm: normalize after each convolution. Without it (Table 7) the
            convolutions have biases; with it they have none.
        dropout: dropout rate before the linear layer; needs the rng "dropout" when
            `train` is true.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: mapped axis over which to average batch statistics.

    Returns:
        From `__call__(x, train)`, with images `x` of shape (batch, height, width,
        channels), at least 8x8: logits of shape (batch, num_classes), float32.

    Raises:
        ValueError: if `x` is not a batch of images, or the images are smaller than 8x8.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = CustomCNN(num_classes=10)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> variables = jax.eval_shape(
        ...     lambda key: model.init(key, images, train=False), jax.random.key(0))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        34898

    Kernels and biases are initialized from U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
    PyTorch's default, as in the authors' code.

    Source: Table 2 and section 3.2 of the paper ("four convolutional layers, each
    followed by a batch normalization layer"). Table 2 lists no activations; here a ReLU
    follows each normalization. The authors' released network (`models/customcnn.py`)
    differs: it has no ReLU after the first convolution, and a 1x1 convolution of stride
    2 with batch normalization is a shortcut around the second convolution and is added
    after its ReLU. Its last ReLU comes after the dropout, which is equivalent. It has
    no variant without batch normalization.
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
