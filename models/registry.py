"""The networks by name."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from models.custom_cnn import CustomCNN


class _Entry(NamedTuple):
    module: type[nn.Module]
    preset: Mapping[str, Any]  # What makes the name; not the caller's to change.
    tiny: Mapping[str, Any]  # Options of the tiny variant.


_MODELS = {
    "custom_cnn": _Entry(CustomCNN, preset={}, tiny={}),
}


def names() -> tuple[str, ...]:
    """The names that `create` knows.

    Returns:
      The names, in the order of the documentation.

    Example:
      >>> "custom_cnn" in names()
      True
    """
    return tuple(_MODELS)


def create(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Makes a network by its name.

    Args:
      name: One of `names()`.
      num_classes: Number of logits.
      **options: The network's own arguments, as its docstring lists them. Common to
        all: `dtype` (of the computation) and `axis_name` (of the mapped axis over
        which batch statistics are averaged).

    Returns:
      A Linen module. `module.apply(variables, x, train=...)` returns float32 logits
      for images `x` of shape (batch, height, width, channels).

    Raises:
      ValueError: No network has that name; the message lists the names.
      TypeError: The network has no such option; the message lists its options.

    Example:
      >>> create("custom_cnn", num_classes=100, batch_norm=False).num_classes
      100
    """
    entry = _lookup(name)
    known = _options(entry)
    for option in options:
        if option not in known:
            raise TypeError(
                f"The network {name!r} has no option {option!r}"
                f"{_did_you_mean(option, known)} Its options are: {', '.join(known)}."
            )
    return entry.module(num_classes=num_classes, **{**entry.preset, **options})


def tiny(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Makes the tiny variant of a network, for tests: same layers, fewer and narrower.

    Args:
      name: One of `names()`.
      num_classes: Number of logits.
      **options: As for `create`; they take precedence over the variant's own.

    Returns:
      A Linen module, as from `create`.

    Raises:
      ValueError: No network has that name.
      TypeError: The network has no such option.

    Example:
      >>> tiny("custom_cnn").dropout
      0.2
    """
    return create(name, num_classes, **{**_lookup(name).tiny, **options})


def _lookup(name: str) -> _Entry:
    if name not in _MODELS:
        raise ValueError(
            f"Unknown network {name!r}{_did_you_mean(name, names())} "
            f"Known networks: {', '.join(names())}."
        )
    return _MODELS[name]


def _options(entry: _Entry) -> list[str]:
    """The fields of the module that a caller may set beside num_classes."""
    taken = {"parent", "name", "num_classes", *entry.preset}
    return [f for f in entry.module.__dataclass_fields__ if f not in taken]


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
