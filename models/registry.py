"""Registry of the networks."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from models import options as option_values
from models.custom_cnn import CustomCNN
from models.errors import NetworkError, OptionError
from models.mobilenet_v3 import (
    TINY_LARGE,
    TINY_SMALL,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from models.resnet import resnet20, resnet50, wrn18
from models.vit import ViT


class _Network(NamedTuple):
    build: Callable[..., nn.Module]
    tiny: Mapping[str, Any]  # Options of the tiny variant.


_NETWORKS = {
    "custom_cnn": _Network(CustomCNN, {}),
    "resnet20": _Network(resnet20, {"stage_sizes": (1, 1), "width": 8}),
    "wrn18": _Network(wrn18, {"stage_sizes": (1, 1), "width": 16}),
    "resnet50": _Network(resnet50, {"stage_sizes": (1, 1), "width": 8}),
    "mobilenet_v3_large": _Network(
        mobilenet_v3_large, {"blocks": TINY_LARGE, "width_mult": 0.25}
    ),
    "mobilenet_v3_small": _Network(
        mobilenet_v3_small, {"blocks": TINY_SMALL, "width_mult": 0.25}
    ),
    "vit": _Network(ViT, {"width": 64, "depth": 2, "heads": 2, "mlp_width": 64}),
}


def names() -> tuple[str, ...]:
    """Returns the names of the networks.

    Returns:
        The names that `create` accepts, in the order in which messages list them.

    Example:
        >>> "custom_cnn" in names()
        True
    """
    return tuple(_NETWORKS)


def create(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Creates a network by name.

    Args:
        name: one of `names()`.
        num_classes: number of logits.
        **options: arguments of the network, listed in its docstring. All networks
            accept `dtype` (the compute dtype) and `axis_name` (the mapped axis over
            which to average batch statistics).

    Returns:
        A Linen module. `module.apply(variables, x, train=...)` returns float32 logits
        for images `x` of shape (batch, height, width, channels).

    Raises:
        NetworkError: if the name is unknown; the message lists the names.
        OptionError: if an option or its value is unknown; the message lists the valid
            ones.

    Example:
        >>> create("custom_cnn", num_classes=100, batch_norm=False).num_classes
        100
    """
    check_options(name, options)
    return _lookup(name).build(num_classes=num_classes, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks options of a network, without making it.

    Args:
        name: one of `names()`.
        options: values by name, as `create` takes them.

    Raises:
        NetworkError: if no network has that name.
        OptionError: if `create` would refuse the options.

    Example:
        >>> check_options("vit", {"depth": 2})
    """
    build = _lookup(name).build
    known = _options(build)
    for option in options:
        if option not in known:
            raise OptionError(
                f"The network {name!r} has no option {option!r}"
                f"{_did_you_mean(option, known)} Its options are: {', '.join(known)}."
            )
    option_values.check(name, build, options)


def tiny(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Creates a tiny variant of a network for tests, with fewer and narrower layers.

    The custom CNN, which is small already, is unchanged. Every tiny variant accepts 8x8
    images.

    Args:
        name: one of `names()`.
        num_classes: number of logits.
        **options: as for `create`; they override the options of the tiny variant.

    Returns:
        A Linen module, as from `create`.

    Raises:
        NetworkError: if the name is unknown.
        OptionError: as for `create`.

    Example:
        >>> tiny("custom_cnn").dropout
        0.2
    """
    return create(name, num_classes, **{**_lookup(name).tiny, **options})


def _lookup(name: str) -> _Network:
    if name not in _NETWORKS:
        raise NetworkError(
            f"Unknown network {name!r}{_did_you_mean(name, names())} "
            f"Known networks: {', '.join(names())}."
        )
    return _NETWORKS[name]


def _options(build: Callable[..., nn.Module]) -> list[str]:
    """Lists the options of a network: arguments of `build` that users may set."""
    hidden = ("num_classes", "hidden", "parent", "name")
    return [p for p in inspect.signature(build).parameters if p not in hidden]


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
