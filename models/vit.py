"""Vision Transformer for small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.errors import NetworkError


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual connection.

    `__call__(x, _)`, with tokens `x` of shape (batch, tokens, width), returns the new
    tokens and None, as `nn.scan` requires.

    Args:
        heads: number of attention heads.
        mlp_width: width of the perceptron's hidden layer.
        dropout: dropout rate after the attention and each layer of the perceptron.
        layer_norm: normalize before the attention and before the perceptron.
        train: apply dropout.
        dtype: compute dtype.
    """

    heads: int
    mlp_width: int
    dropout: float
    layer_norm: bool
    train: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        x = x + self._attention(self._norm(x))
        x = x + self._perceptron(self._norm(x))
        return x, None

    def _attention(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        qkv = layers.dense(x, 3 * width, use_bias=False, dtype=self.dtype)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        x = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x.reshape(batch, tokens, width)
        return self._drop(layers.dense(x, width, dtype=self.dtype))

    def _perceptron(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = layers.dense(x, self.mlp_width, dtype=self.dtype)
        x = self._drop(nn.gelu(x, approximate=False))
        return self._drop(layers.dense(x, width, dtype=self.dtype))

    def _norm(self, x: jax.Array) -> jax.Array:
        return _layer_norm(x, self.dtype) if self.layer_norm else x

    def _drop(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.dropout, deterministic=not self.train)(x)


class ViT(nn.Module):
    """The paper's Vision Transformer: 4x4 patches, width 512, depth 6, 8 heads.

    A linear layer embeds the flattened patches. A class token is prepended, a learned
    position embedding is added to each token, and a linear layer maps the output of the
    class token to the logits.

    Args:
        num_classes: number of logits.
        patch: side of a patch, in pixels.
        width: width of a token.
        depth: number of encoder blocks.
        heads: number of attention heads, each of width `width // heads`.
        mlp_width: width of the hidden layer in the perceptron of each block.
        dropout: dropout rate after the position embedding, after the attention, and
            after each layer of the perceptron; needs the rng "dropout" when `train` is
            true.
        layer_norm: normalize before each attention and perceptron and before the last
            layer; Table 8 has results without.
        scan_layers: run the blocks as one `nn.scan`, which compiles one block instead
            of `depth`. The parameters of the blocks are then stacked under "blocks",
            with a leading axis of size `depth`, instead of under "block_1", "block_2"
            and so on. Sown "intermediates" are stacked in the same way.
        remat: recompute the activations of the blocks in the backward pass instead of
            storing them. Parameters and results do not change.
        dtype: compute dtype; parameters are float32.
        axis_name: ignored, because there are no batch statistics; all networks accept
            it.

    Returns:
        From `__call__(x, train)`, with images `x` of shape (batch, height, width,
        channels) whose sides are multiples of `patch`: logits of shape (batch,
        num_classes), float32. The position embeddings fix the number of patches.

    Raises:
        ValueError: if `x` is not a batch of images, its sides are not multiples of
            `patch`, or `heads` does not divide `width`.

    Example:
        >>> model = ViT(num_classes=10)
        >>> variables = jax.eval_shape(
        ...     lambda key, x: model.init(key, x, train=False),
        ...     jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        9523722

    The initialization is that of the authors' code: PyTorch's default for linear
    layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases, and N(0, 1) for
    the class token and the position embeddings.

    Source: section 3.2, and the authors' code (`models/vit.py` with the arguments of
    `main_cifar10.py`, an early version of lucidrains/vit-pytorch). The code settles
    what the paper leaves open: a perceptron width of 512, a dropout rate of 0.1, and
    queries, keys and values without bias. Dosovitskiy et al. (2020) use biases there, a
    perceptron of four times the width, smaller initial position embeddings and a class
    token of zeros. The authors' code has no variant without layer normalization; the
    one here also omits the normalization before the last layer.
    """

    num_classes: int = 10
    patch: int = 4
    width: int = 512
    depth: int = 6
    heads: int = 8
    mlp_width: int = 512
    dropout: float = 0.1
    layer_norm: bool = True
    scan_layers: bool = False
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.width % self.heads:
            raise NetworkError(
                f"The width of a ViT must be a multiple of its heads, "
                f"got width={self.width} and heads={self.heads}."
            )
        layers.check_images(x, self, smallest=1)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise NetworkError(
                f"ViT takes images of at least {self.patch}x{self.patch} pixels whose "
                f"sides are multiples of its patch, {self.patch}; got "
                f"{x.shape[1]}x{x.shape[2]}. Resize the images, or change the patch."
            )

        x = layers.dense(_patches(x, self.patch), self.width, dtype=self.dtype)
        normal = nn.initializers.normal(1.0)
        token = self.param("class_token", normal, (1, 1, self.width))
        token = jnp.broadcast_to(token, (x.shape[0], 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param("positions", normal, (1, x.shape[1], self.width))
        x = x + positions.astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        x = self._encode(x, train)[:, 0]
        if self.layer_norm:
            x = _layer_norm(x, self.dtype)
        return layers.to_logits(layers.dense(x, self.num_classes, dtype=self.dtype))

    def _encode(self, x: jax.Array, train: bool) -> jax.Array:
        block = EncoderBlock
        if self.remat:
            # Inside a scan, XLA cannot merge the recomputation with the forward pass;
            # elsewhere it would.
            block = nn.remat(block, prevent_cse=not self.scan_layers)
        arguments = {
            "heads": self.heads,
            "mlp_width": self.mlp_width,
            "dropout": self.dropout,
            "layer_norm": self.layer_norm,
            "train": train,
            "dtype": self.dtype,
        }
        if self.scan_layers:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            x, _ = blocks(**arguments, name="blocks")(x, None)
            return x
        for index in range(1, self.depth + 1):
            x, _ = block(**arguments, name=f"block_{index}")(x, None)
        return x


def _patches(x: jax.Array, patch: int) -> jax.Array:
    """Splits (batch, height, width, channels) into flat patches, in row-major order."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def _layer_norm(x: jax.Array, dtype: layers.Dtype) -> jax.Array:
    """Applies layer normalization with PyTorch's epsilon."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype)(x)
