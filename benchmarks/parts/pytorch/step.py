"""A step of PyTorch's SGD, compiled where that works."""

import sys

import torch
from torch import nn


class Step:
    """Trains a network, one batch a call.

    Args:
        model: on the device, in the channels-last format.
        mode: mode of torch.compile; "reduce-overhead" uses CUDA graphs, None is eager.
        dtype: "bfloat16" for mixed precision, as in our networks.
        learning_rate: initial learning rate.
    """

    def __init__(
        self, model: nn.Module, mode: str | None, dtype: str, learning_rate: float
    ):
        self.model = model
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=learning_rate,
            momentum=0.9,
            weight_decay=5e-4,
            fused=True,
        )
        device = next(model.parameters()).device.type

        def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            enabled = dtype == "bfloat16"
            with torch.autocast(device, torch.bfloat16, enabled=enabled):
                return nn.functional.cross_entropy(model(images), labels)

        self._graphs = mode == "reduce-overhead"
        self._loss_fn = loss_fn if mode is None else torch.compile(loss_fn, mode=mode)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Takes a step; returns the loss, to be used before the next one."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss_fn(images, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def device() -> str:
    """Returns the device on which PyTorch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def enable_autotuning_and_tf32() -> None:
    """Enables PyTorch's convolution autotuning, and TF32 matmuls and convolutions."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def warn(mode: str | None, error: Exception) -> str:
    """Prints that a mode of torch.compile does not work here; returns the message."""
    text = f"torch.compile, mode {mode}: {type(error).__name__}: {error}"[:1000]
    print(text, file=sys.stderr)
    return text


def versions() -> dict[str, str | None]:
    """Returns the versions of PyTorch and its CUDA."""
    return {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
