"""ResNet-20 in PyTorch, the same function as `models.resnet20`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

# Names of Flax's parameters in PyTorch.
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Corresponds to `models.resnet.ResidualBlock` with shortcut="projection"."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        first = _conv_norm(inputs, outputs, 3, stride)
        second = _conv_norm(outputs, outputs, 3)
        self.residual = nn.Sequential(first, nn.ReLU(), second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the rectified sum of the shortcut and the residual."""
        return torch.relu(self.shortcut(x) + self.residual(x))


def resnet20(
    num_classes: int = 10, *, stage_sizes: Sequence[int] = (3, 3, 3), width: int = 16
) -> nn.Sequential:
    """Like `models.resnet20`, for images of shape (batch, channels, height, width)."""
    layers: list[nn.Module] = [_conv_norm(3, width, 3), nn.ReLU()]
    inputs = width
    for stage, size in enumerate(stage_sizes):
        for block in range(size):
            outputs = width * 2**stage
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(inputs, outputs, stride))
            inputs = outputs
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))
    return nn.Sequential(*layers, *head)


def load_flax(model: nn.Module, params: Mapping[str, Any]) -> None:
    """Gives a network the parameters of its counterpart in `models`.

    Both have their convolutions, normalizations and linear layer in the same order: in
    a block, the residual's before the shortcut's.

    Args:
        model: the model that `resnet20` returns.
        params: parameters of `models.resnet20` with the same options.

    Raises:
        ValueError: if the number of layers differs.
        RuntimeError: if the shape of a parameter differs.
    """
    modules = [m for m in model.modules() if not list(m.children())]
    modules = [m for m in modules if list(m.parameters())]
    layers = list(_layers(params))
    if len(modules) != len(layers):
        raise ValueError(f"{len(layers)} layers do not fit {len(modules)} modules")
    with torch.no_grad():
        for module, layer in zip(modules, layers, strict=True):
            for name, value in layer.items():
                array = np.asarray(value, np.float32)
                # (height, width, in, out) and (in, out) become (out, in, ...).
                array = array.transpose(*reversed(range(array.ndim)))
                if array.ndim == 4:
                    array = array.swapaxes(2, 3)
                getattr(module, _NAMES[name]).copy_(torch.tensor(array))


def _layers(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Layers in the order in which the network applies them."""
    found = []
    blocks = sorted(name for name in params if name.startswith("stage_"))
    stem = [name for name in params if name not in blocks and name != "Dense_0"]
    for layers in ({name: params[name] for name in stem}, *(params[b] for b in blocks)):
        for number in range(len(layers) // 2):
            found += [layers[f"Conv_{number}"], layers[f"BatchNorm_{number}"]]
    return [*found, params["Dense_0"]]
