"""Vision Transformer for small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.errors import NetworkError


class EncoderBlock(nn.Module):
    """Self-attention, then a two-layer perceptron, each added to its input.

    `__call__(x, _)`, with tokens `x` of shape (batch, tokens, width), returns the new
    tokens and None, the form that `nn.scan` takes.

    Args:
        heads: number of attention heads.
        mlp_width: width of the perceptron's hidden layer.
        dropout: rate after the attention and after each layer of the perceptron.
        layer_norm: normalize before the attention and before the perceptron.
        train: whether dropout is on.
        dtype: dtype of the computation.
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
    """The paper's Vision Transformer: patches of 4, width 512, depth 6, 8 heads.

    Each patch is flattened and passes a linear layer; a class token goes before the
    patches, a learned position is added to each token, and the class token's output
    passes a linear layer.

    Args:
        num_classes: number of logits.
        patch: side of a patch, in pixels.
        width: width of a token.
        depth: number of encoder blocks.
        heads: number of attention heads, each of `width // heads`.
        mlp_width: width of the hidden layer in each block's perceptron.
        dropout: rate of the dropouts (after the positions, after the attention, after
            each layer of the perceptron); uses the rng "dropout" when `train` is true.
        layer_norm: normalize before each attention and perceptron and before the last
            layer; without it as in Table 8.
        scan_layers: run the blocks as one `nn.scan`, which compiles one block instead
            of `depth`. The blocks' parameters are stacked under "blocks" with a leading
            axis of size `depth`, where they are "block_1", "block_2" ... otherwise.
            Sown "intermediates" are stacked likewise.
        remat: recompute the blocks' activations in the backward pass instead of keeping
            them. Changes no parameter and no result.
        dtype: dtype of the computation; parameters are float32.
        axis_name: accepted as by every network; without batch statistics it does
            nothing.

    Returns:
        From `__call__(x, train)`, with images `x` of shape (batch, height, width,
        channels) whose sides are multiples of `patch`: logits of shape (batch,
        num_classes), float32. The positions fix the number of patches.

    Raises:
        ValueError: if `x` is no batch of images, its sides are no multiples of `patch`,
            or `heads` does not divide `width`.

    Example:
        >>> model = ViT(num_classes=10)
        >>> variables = jax.eval_shape(
        ...     lambda key, x: model.init(key, x, train=False),
        ...     jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        9523722

    Initialised as in the authors' code: linear layers by PyTorch's default, kernels
    and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); class token and positions from
    N(0, 1).

    Source: section 3.2, and the authors' code (`models/vit.py` with the arguments of
    `main_cifar10.py`, an early form of lucidrains/vit-pytorch), which settles what
    the paper leaves open: the perceptron's width of 512, the dropout of 0.1, queries,
    keys and values without bias. Dosovitskiy et al. (2020) have biases there, a
    perceptron of four times the width, smaller initial positions and a class token
    of zeros. That code has no form without layer normalization; here that form drops
    the one before the last layer too.
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
            # A scan keeps the recomputation apart by itself; elsewhere XLA would
            # merge it with the forward pass.
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
    """Cuts (batch, height, width, channels) into flat patches, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def _layer_norm(x: jax.Array, dtype: layers.Dtype) -> jax.Array:
    """Layer normalization with PyTorch's epsilon."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype)(x)
