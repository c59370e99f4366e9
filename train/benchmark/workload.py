"""Parses workloads of a benchmark, such as `vit:width=128,depth=4@32`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import models
from train import own_code
from train.training import networks


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and a batch.

    Attributes:
        model: name of the network.
        options: options of the network, in the order given.
        batch_size: images per step.
        dtype: compute dtype of the network.
    """

    model: str
    options: tuple[tuple[str, Any], ...]
    batch_size: int
    dtype: str

    @property
    def model_options(self) -> tuple[str, ...]:
        """The options of the network as `--model-options` takes them."""
        return tuple(
            f"{name}={'x'.join(map(str, value)) if type(value) is tuple else value}"
            for name, value in self.options
        )

    @property
    def network(self) -> str:
        """The network in the format of `parse`, without the batch size."""
        return network_text(self.model, self.model_options)

    def replace_option(self, name: str, value: Any) -> "Workload":
        """Returns a copy with another value of an option of the network."""
        options = dict(self.options) | {name: value}
        return dataclasses.replace(self, options=tuple(options.items()))


def network_text(model: str, options: Sequence[str]) -> str:
    """Joins a network and its options in the format of `parse`."""
    return f"{model}:{','.join(options)}" if options else model


def parse(text: str, batch_sizes: Sequence[int], dtype: str) -> list[Workload]:
    """Parses MODEL[:OPTION=VALUE,...][@BATCH].

    Args:
        text: such as "resnet20", "resnet20:width=8@32" or
            "resnet20:stage_sizes=1x1x1".
        batch_sizes: batch sizes if the text has none.
        dtype: compute dtype of the network.

    Returns:
        One workload for each batch size.

    Raises:
        ValueError: if the text is malformed.
    """
    network, at, batch = text.partition("@")
    model, _, listed = network.partition(":")
    if model not in models.names():
        # The name of a network of the user's own, MODULE:NAME, contains a colon.
        name, _, listed = listed.partition(":")
        model = f"{model}:{name}"
        if not own_code.is_reference(model):
            raise ValueError(
                f"{text!r} is not a network: expected one of "
                f"{', '.join(models.names())}, or {own_code.FORM}; with options and a "
                "batch size, for example, vit:width=128,depth=4@32"
            )
    try:
        options = networks.parse_options(part for part in listed.split(",") if part)
        networks.check(model, options)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    if at and not (batch.isdecimal() and int(batch)):
        raise ValueError(f"{text!r}: expected a batch size after @, got {batch!r}")
    sizes = [int(batch)] if at else batch_sizes
    return [Workload(model, tuple(options.items()), size, dtype) for size in sizes]


def _deepened(workload: Workload, depth: int) -> Workload:
    # The user's own networks get the option `depth`.
    own = own_code.is_reference(workload.model)
    stages = (
        None if own else getattr(models.create(workload.model), "stage_sizes", None)
    )
    if stages is not None:
        return workload.replace_option("stage_sizes", (depth,) * len(stages))
    return workload.replace_option("depth", depth)


# What each axis varies, and its default values.
AXES: dict[str, tuple[Callable[[Workload, int], Workload], tuple[int, ...]]] = {
    "width": (lambda w, value: w.replace_option("width", value), (8, 16, 32)),
    "depth": (_deepened, (1, 2, 3)),
    "batch": (
        lambda w, value: dataclasses.replace(w, batch_size=value),
        (8, 32, 128),
    ),
}


def along(axis: str, workload: Workload, values: Sequence[int]) -> list[Workload]:
    """Returns workloads that differ along one axis.

    Args:
        axis: "width" of the network, "depth" (blocks in each stage of a ResNet,
            blocks of a ViT) or "batch".
        workload: the workload to vary.
        values: values along the axis; if empty, the default values.

    Returns:
        One workload per value.

    Raises:
        ValueError: if the network does not have the axis.
    """
    change, default = AXES[axis]
    workloads = [change(workload, value) for value in values or default]
    try:
        for grown in workloads:
            networks.check(grown.model, dict(grown.options))
    except models.NetworkError as error:
        raise ValueError(f"--axis {axis}: {error}") from error
    return workloads
