"""MobileNetV3, large and small, for ImageNet and for CIFAR."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers


class Block(NamedTuple):
    """One row of Table 1 or 2 of Howard et al. (2019); widths in channels."""

    kernel_size: int
    expanded: int
    features: int
    squeeze_excite: bool
    hard_swish: bool
    stride: int


LARGE = (
    Block(3, 16, 16, False, False, 1),
    Block(3, 64, 24, False, False, 2),
    Block(3, 72, 24, False, False, 1),
    Block(5, 72, 40, True, False, 2),
    Block(5, 120, 40, True, False, 1),
    Block(5, 120, 40, True, False, 1),
    Block(3, 240, 80, False, True, 2),
    Block(3, 200, 80, False, True, 1),
    Block(3, 184, 80, False, True, 1),
    Block(3, 184, 80, False, True, 1),
    Block(3, 480, 112, True, True, 1),
    Block(3, 672, 112, True, True, 1),
    Block(5, 672, 160, True, True, 2),
    Block(5, 960, 160, True, True, 1),
    Block(5, 960, 160, True, True, 1),
)
SMALL = (
    Block(3, 16, 16, True, False, 2),
    Block(3, 72, 24, False, False, 2),
    Block(3, 88, 24, False, False, 1),
    Block(5, 96, 40, True, True, 2),
    Block(5, 240, 40, True, True, 1),
    Block(5, 240, 40, True, True, 1),
    Block(5, 120, 48, True, True, 1),
    Block(5, 144, 48, True, True, 1),
    Block(5, 288, 96, True, True, 2),
    Block(5, 576, 96, True, True, 1),
    Block(5, 576, 96, True, True, 1),
)
# For tests: rows with and without a gate, of both nonlinearities and both strides.
TINY_LARGE = (LARGE[0], LARGE[3], LARGE[12])
TINY_SMALL = (SMALL[0], SMALL[2], SMALL[8])


def round_channels(channels: float) -> int:
    """Rounds to the nearest multiple of 8 that is at least 8 and 0.9 * `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate, computed from the means of all channels."""

    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        squeezed = round_channels(channels / 4)
        gate = x.mean(axis=(1, 2))
        for features, nonlinearity in (
            (squeezed, nn.relu),
            (channels, nn.hard_sigmoid),
        ):
            gate = nonlinearity(
                nn.Dense(
                    features,
                    dtype=self.dtype,
                    kernel_init=layers.kaiming_fan_out_init,
                )(gate)
            )
        return x * gate[:, None, None, :]


class InvertedResidual(nn.Module):
    """An expansion, a depthwise convolution, an optional gate, and a projection.

    Args:
        block: the row of the table, with the channels and stride to use.
        norm: called as `norm(x)`.
        dtype: compute dtype.
    """

    block: Block
    norm: Callable[..., jax.Array]
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = self.block
        conv = functools.partial(
            layers.conv, kernel_init=layers.kaiming_fan_out_init, dtype=self.dtype
        )
        nonlinearity = nn.hard_swish if block.hard_swish else nn.relu

        y = x
        if block.expanded != x.shape[-1]:
            y = nonlinearity(self.norm(conv(y, block.expanded, 1)))
        depthwise = conv(
            y, block.expanded, block.kernel_size, block.stride, groups=block.expanded
        )
        y = nonlinearity(self.norm(depthwise))
        if block.squeeze_excite:
            y = SqueezeExcite(self.dtype)(y)
        y = self.norm(conv(y, block.features, 1))
        if block.stride == 1 and block.features == x.shape[-1]:
            y = x + y
        return y


class MobileNetV3(nn.Module):
    """MobileNetV3; `mobilenet_v3_large` and `mobilenet_v3_small` bind its table.

    Both have torchvision's numbers of parameters.

    Args:
        blocks: the rows of the network's table; fewer give a shallower network.
        hidden: width of the hidden layer of the classifier.
        num_classes: number of logits.
        stem: "imagenet" for images of at least 32x32; or "cifar" for at least 8x8,
            where the stem and the first block of stride 2 have stride 1 instead.
        width_mult: multiplies every width except the number of logits.
        dropout: dropout rate before the last layer; needs the rng "dropout" when
            `train` is true.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: mapped axis over which to average batch statistics.

    Returns:
        From `__call__(x, train)`, with images `x` of shape (batch, height, width,
        channels): logits of shape (batch, num_classes), float32.

    Raises:
        ValueError: if `x` is not a batch of images, its sides are shorter than the
            product of the strides, or for an unknown `stem`.

    The initialization is torchvision's: N(0, 2/fan_out) for convolutions and gates
    (kaiming_normal_ with fan_out), N(0, 0.01^2) for the classifier, and zero biases.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, Tables 1 and 2, as
    built by torchvision: the gate comes after the nonlinearity, its width is rounded to
    a multiple of 8, it has biases, and no normalization follows the classifier's hidden
    layer. Batch normalization uses torchvision's epsilon of 0.001, and a momentum (in
    Flax's sense) of 0.9 as in the authors' code; torchvision uses 0.99. The authors'
    network (`models/mobilenetv3.py`) puts the gate before the nonlinearity, and has no
    biases in the gates and the hidden layer. It selects its CIFAR form by the size of
    the image; that form is the one here. Their optimizer fails on its grouped
    convolutions.

    Example:
        >>> model = mobilenet_v3_large(num_classes=1000)
        >>> variables = jax.eval_shape(
        ...     lambda key, x: model.init(key, x, train=False),
        ...     jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        5483032
    """

    blocks: Sequence[Block]
    hidden: int
    num_classes: int = 10
    stem: str = "imagenet"
    width_mult: float = 1.0
    dropout: float = 0.2
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers.check_choice(self, "stem", ("imagenet", "cifar"))
        stem_stride, blocks = self._strides_and_widths()
        layers.check_images(x, self, stem_stride * math.prod(b.stride for b in blocks))

        conv = functools.partial(
            layers.conv, kernel_init=layers.kaiming_fan_out_init, dtype=self.dtype
        )
        norm = functools.partial(
            layers.batch_norm,
            train=train,
            epsilon=0.001,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01)
        )

        x = conv(x, round_channels(16 * self.width_mult), 3, stem_stride)
        x = nn.hard_swish(norm(x))
        for index, block in enumerate(blocks, start=1):
            x = InvertedResidual(block, norm, self.dtype, name=f"block_{index}")(x)
        x = nn.hard_swish(norm(conv(x, 6 * x.shape[-1], 1)))
        x = x.mean(axis=(1, 2))
        x = nn.hard_swish(dense(round_channels(self.hidden * self.width_mult))(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return layers.to_logits(dense(self.num_classes)(x))

    def _strides_and_widths(self) -> tuple[int, list[Block]]:
        """Returns the stride of the stem, and the blocks with this network's widths."""
        blocks = [
            block._replace(
                expanded=round_channels(block.expanded * self.width_mult),
                features=round_channels(block.features * self.width_mult),
            )
            for block in self.blocks
        ]
        if self.stem == "imagenet":
            return 2, blocks
        for index, block in enumerate(blocks):
            if block.stride == 2:
                blocks[index] = block._replace(stride=1)
                break
        return 1, blocks


mobilenet_v3_large = functools.partial(MobileNetV3, blocks=LARGE, hidden=1280)
mobilenet_v3_small = functools.partial(MobileNetV3, blocks=SMALL, hidden=1024)
