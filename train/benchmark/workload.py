"""What a benchmark measures, in words: `vit:width=128,depth=4@32`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import models
from train import model_options


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and a batch.

    Attributes:
        model: its name.
        options: the network's own options, in the order given.
        batch_size: images a step.
        dtype: of the network's computations.
    """

    model: str
    options: tuple[tuple[str, Any], ...]
    batch_size: int
    dtype: str

    @property
    def network(self) -> str:
        """The network as `parse` takes it, without its batch size."""
        options = ",".join(
            f"{name}={'x'.join(map(str, value)) if type(value) is tuple else value}"
            for name, value in self.options
        )
        return f"{self.model}:{options}" if options else self.model

    def replace_option(self, name: str, value: Any) -> "Workload":
        """The same but for an option of the network."""
        options = dict(self.options) | {name: value}
        return dataclasses.replace(self, options=tuple(options.items()))


def parse(text: str, batch_sizes: Sequence[int], dtype: str) -> list[Workload]:
    """Reads MODEL[:OPTION=VALUE,...][@BATCH].

    Args:
        text: such as "resnet20", "resnet20:width=8@32" or
            "resnet20:stage_sizes=1x1x1".
        batch_sizes: those of a network without its own.
        dtype: of the network's computations.

    Returns:
        One workload for each batch size.

    Raises:
        ValueError: if the text is no network; it says what is wrong.
    """
    network, at, batch = text.partition("@")
    model, _, listed = network.partition(":")
    if model not in models.names():
        raise ValueError(
            f"{text!r} names no network: give one of {', '.join(models.names())}, "
            "as in vit:width=128,depth=4@32"
        )
    try:
        options = model_options.parse_all(part for part in listed.split(",") if part)
        model_options.check(model, options)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if at and not (batch.isdecimal() and int(batch)):
        raise ValueError(f"{text!r}: after @ comes a batch size, got {batch!r}")
    sizes = [int(batch)] if at else batch_sizes
    return [Workload(model, tuple(options.items()), size, dtype) for size in sizes]


def _deepened(workload: Workload, depth: int) -> Workload:
    stages = getattr(models.create(workload.model), "stage_sizes", None)
    if stages is not None:
        return workload.replace_option("stage_sizes", (depth,) * len(stages))
    return workload.replace_option("depth", depth)


# What grows along an axis, and through which values by default.
AXES: dict[str, tuple[Callable[[Workload, int], Workload], tuple[int, ...]]] = {
    "width": (lambda w, value: w.replace_option("width", value), (8, 16, 32)),
    "depth": (_deepened, (1, 2, 3)),
    "batch": (
        lambda w, value: dataclasses.replace(w, batch_size=value),
        (8, 32, 128),
    ),
}


def along(axis: str, workload: Workload, values: Sequence[int]) -> list[Workload]:
    """Workloads that differ in one thing.

    Args:
        axis: "width" of the network, "depth" (blocks in each stage of a ResNet,
            blocks of a ViT) or "batch".
        workload: what they are otherwise.
        values: along the axis; empty for the axis's own.

    Returns:
        One workload a value.

    Raises:
        ValueError: if the network has no such thing.
    """
    change, default = AXES[axis]
    workloads = [change(workload, value) for value in values or default]
    try:
        for grown in workloads:
            models.check_options(grown.model, dict(grown.options))
    except models.NetworkError as error:
        raise ValueError(f"--axis {axis}: {error}") from error
    return workloads
