"""Residual networks: ResNet-20 and ResNet-18 for CIFAR, ResNet-50 for ImageNet."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers


class ResidualBlock(nn.Module):
    """relu(F(x) + shortcut(x)), where F is two 3x3 convolutions or a bottleneck.

    Args:
        features: channels of the 3x3 convolutions.
        stride: stride of the first 3x3 convolution and of the shortcut.
        bottleneck: F is 1x1, 3x3 and 1x1 convolutions, the last with four times the
            channels. The stride is in the 3x3 ("v1.5"); in He et al., in the first 1x1.
        shortcut: as in `ResNet`.
        conv: called as `conv(x, features, size, stride)`.
        norm: called as `norm(x)`; its `scale_init` initializes the scale.
        last_scale_init: initializer of the scale in the last normalization of F.
    """

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    conv: Callable[..., jax.Array]
    norm: Callable[..., jax.Array]
    last_scale_init: layers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.bottleneck:
            y = nn.relu(self.norm(self.conv(x, self.features, 1)))
            y = nn.relu(self.norm(self.conv(y, self.features, 3, self.stride)))
            y = self.conv(y, 4 * self.features, 1)
        else:
            y = nn.relu(self.norm(self.conv(x, self.features, 3, self.stride)))
            y = self.conv(y, self.features, 3)
        y = self.norm(y, scale_init=self.last_scale_init)

        added = y.shape[-1] - x.shape[-1]
        if self.stride != 1 or added:
            if self.shortcut == "projection":
                x = self.norm(self.conv(x, y.shape[-1], 1, self.stride))
            else:
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, added)))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network of He et al.; created by `resnet20`, `wrn18` and `resnet50`.

    Args:
        stage_sizes: number of blocks in each stage. Every stage but the first halves
            the feature map and doubles the channels.
        width: channels of the 3x3 convolutions in the first stage, and of the stem.
        num_classes: number of logits.
        bottleneck: use bottleneck blocks instead of two 3x3 convolutions.
        stem: "cifar", a 3x3 convolution, or "imagenet", a 7x7 convolution of stride 2
            and a max-pooling of stride 2.
        shortcut: where the shape changes, "projection" (a strided 1x1 convolution and
            its normalization) or "identity" (subsampled, padded with zero channels).
        batch_norm: normalize after each convolution. Without it the convolutions have
            biases; with it they have none.
        zero_init_residual: initialize the scale of each block's last normalization to
            zero.
        kernel_init: initializer of the convolution kernels.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: mapped axis over which to average batch statistics.

    Returns:
        From `__call__(x, train)`, with images `x` of shape (batch, height, width,
        channels): logits of shape (batch, num_classes), float32.

    Raises:
        ValueError: if `x` is not a batch of images, its sides are shorter than the
            product of the strides, or for an unknown `stem` or `shortcut`.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    stage_sizes: Sequence[int]
    width: int
    num_classes: int = 10
    bottleneck: bool = False
    stem: str = "cifar"
    shortcut: str = "projection"
    batch_norm: bool = True
    zero_init_residual: bool = False
    kernel_init: layers.Initializer = layers.torch_kernel_init
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers.check_choice(self, "stem", ("cifar", "imagenet"))
        layers.check_choice(self, "shortcut", ("projection", "identity"))
        stem_stride = 4 if self.stem == "imagenet" else 1
        layers.check_images(x, self, stem_stride * 2 ** (len(self.stage_sizes) - 1))

        conv = functools.partial(
            layers.conv,
            use_bias=not self.batch_norm,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        norm = _no_norm
        if self.batch_norm:
            norm = functools.partial(
                layers.batch_norm,
                train=train,
                dtype=self.dtype,
                axis_name=self.axis_name,
            )
        last_scale_init = nn.initializers.ones
        if self.zero_init_residual:
            last_scale_init = nn.initializers.zeros

        if self.stem == "cifar":
            x = nn.relu(norm(conv(x, self.width, 3)))
        else:
            x = nn.relu(norm(conv(x, self.width, 7, 2)))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                x = ResidualBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    conv=conv,
                    norm=norm,
                    last_scale_init=last_scale_init,
                    name=f"stage_{stage + 1}_block_{block + 1}",
                )(x)
        x = x.mean(axis=(1, 2))
        return layers.to_logits(layers.dense(x, self.num_classes, dtype=self.dtype))


def resnet20(
    num_classes: int = 10,
    *,
    stage_sizes: Sequence[int] = (3, 3, 3),
    width: int = 16,
    shortcut: str = "projection",
    batch_norm: bool = True,
    dtype: layers.Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """ResNet-20 for CIFAR (Table 1): three stages of 16, 32 and 64 channels.

    Args:
        num_classes: number of logits.
        stage_sizes: number of blocks in each stage; three stages of n blocks give the
            ResNet-(6n + 2) of He et al.
        width: channels of the first stage.
        shortcut: "projection" as in the authors' code, or "identity" as in He et al.
            (their option A).
        batch_norm: without it (Table 7) the convolutions have biases.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: mapped axis over which to average batch statistics.

    Returns:
        A `ResNet` for images of at least 4x4.

    Example:
        >>> model = resnet20(shortcut="identity")
        >>> variables = jax.eval_shape(
        ...     lambda key, x: model.init(key, x, train=False),
        ...     jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        269722

    Kernels and biases are initialized from U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
    PyTorch's default, as in the authors' code. He et al. draw kernels from
    N(0, 2/fan_in).

    Source: Table 1. It prints "3x3, 32" for the first convolutions of Conv4_x, but 64
    channels for their output. They have 64 here, as in He et al. and in the authors'
    code (`models/resnet_flat.py`). On CIFAR, He et al. use identity shortcuts, and the
    authors use projections with batch normalization. He et al. do not say where option
    A pads the zero channels; here they come after the others.
    """
    return ResNet(
        stage_sizes=stage_sizes,
        width=width,
        num_classes=num_classes,
        shortcut=shortcut,
        batch_norm=batch_norm,
        dtype=dtype,
        axis_name=axis_name,
    )


def wrn18(
    num_classes: int = 10,
    *,
    stage_sizes: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    dtype: layers.Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """The paper's "Wide ResNet-18" for CIFAR-100: ResNet-18 with a 3x3 stem.

    Args:
        num_classes: number of logits.
        stage_sizes: number of blocks in each stage.
        width: channels of the first stage; 64 in ResNet-18. All stages scale with it.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: mapped axis over which to average batch statistics.

    Returns:
        A `ResNet` for images of at least 8x8, with projection shortcuts.

    Example:
        >>> model = wrn18(num_classes=100)
        >>> variables = jax.eval_shape(
        ...     lambda key, x: model.init(key, x, train=False),
        ...     jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        11220132

    Kernels and biases are initialized from U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
    PyTorch's default, as in the authors' code.

    Source: the authors' code, which calls this network `Wide_ResNet18_Flat`
    (`models/resnet_flat.py`). The paper cites Zagoruyko and Komodakis (2016), whose
    CIFAR networks differ: they normalize before the convolutions, and have three stages
    of 16k, 32k and 64k channels and a depth of 6n + 4. Their WRN-18 for ImageNet is a
    widened ResNet-18; the network here has widening factor 1, and the stem for CIFAR.
    """
    return ResNet(
        stage_sizes=stage_sizes,
        width=width,
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
    )


def resnet50(
    num_classes: int = 10,
    *,
    stage_sizes: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    zero_init_residual: bool = False,
    dtype: layers.Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """ResNet-50 v1.5 for ImageNet, as in torchvision.

    Args:
        num_classes: number of logits.
        stage_sizes: number of blocks in each stage.
        width: channels of the 3x3 convolutions in the first stage.
        zero_init_residual: initialize the scale of each block's last normalization to
            zero, so that each block starts as its shortcut (Goyal et al. 2017, section
            5.1).
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: mapped axis over which to average batch statistics.

    Returns:
        A `ResNet` for images of at least 32x32, with projection shortcuts.

    Example:
        >>> model = resnet50(num_classes=1000)
        >>> variables = jax.eval_shape(
        ...     lambda key, x: model.init(key, x, train=False),
        ...     jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        >>> sum(w.size for w in jax.tree.leaves(variables["params"]))
        25557032

    The initialization is torchvision's: N(0, 2/fan_out) for convolutions
    (kaiming_normal_ with fan_out), and PyTorch's default, U(-1/sqrt(fan_in),
    1/sqrt(fan_in)), for the linear layer.

    Source: torchvision's `resnet50`, of which the authors' `models/resnet.py` is a
    copy and which PyTorch's ImageNet example trains (section 4.3). The stride is in the
    3x3 convolution; in He et al. it is in the first 1x1 convolution.
    """
    return ResNet(
        stage_sizes=stage_sizes,
        width=width,
        num_classes=num_classes,
        bottleneck=True,
        stem="imagenet",
        zero_init_residual=zero_init_residual,
        kernel_init=layers.kaiming_fan_out_init,
        dtype=dtype,
        axis_name=axis_name,
    )


def _no_norm(x: jax.Array, scale_init: layers.Initializer | None = None) -> jax.Array:
    del scale_init
    return x
