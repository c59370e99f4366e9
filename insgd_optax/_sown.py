"""Looking up what a layer sowed, from any tree a user may hand over."""

from collections.abc import Mapping, Sequence
from typing import Any

from insgd_optax._capture import COLLECTION, NAME
from insgd_optax._weights import Path, flatten, unboxed

# The input norms by layer: what each of its calls sowed, in order.
Sown = dict[Path, list[Any]]


def by_layer(input_norms: Any, name: str = NAME) -> Sown:
    """Sorts the values of one name of a tree by layer; ignores all others.

    `input_norms` is the "intermediates" collection, or all collections a model mutated.
    """
    if isinstance(input_norms, Mapping):
        input_norms = input_norms.get(COLLECTION, input_norms)
    # An NNX layer called twice sows one variable that holds two norms.
    flat = flatten(unboxed(input_norms))
    sown: Sown = {}
    for path, value in zip(flat.paths, flat.weights, strict=True):
        # `sow` appends to a tuple, whose index ends the path.
        for end in (len(path), len(path) - 1):
            if end > 0 and path[end - 1] == name:
                sown.setdefault(path[: end - 1], []).append(value)
                break
    return sown


def find(sown: Sown, weight: Path) -> list[Any] | None:
    """What the layer of a weight sowed, or None."""
    layer = weight[:-1]
    if layer in sown:
        return sown[layer]
    # Parameters are often kept as {"params": ...}, and several models in one tree as
    # {"gen": {"params": ...}}, beside {"gen": {"intermediates": ...}} or {"gen": ...}.
    bare = layer
    if "params" in layer:
        i = layer.index("params")
        bare = layer[:i] + layer[i + 1 :]
    if bare in sown:
        return sown[bare]
    for i in range(len(bare) + 1):
        if (*bare[:i], COLLECTION, *bare[i:]) in sown:
            return sown[*bare[:i], COLLECTION, *bare[i:]]
    return None


def kernel_shapes(paths: Sequence[Path], weights: Sequence[Any]) -> dict[Path, Any]:
    """The shape whose rank each layer's statistic has: its kernel's, or its scale's."""
    shapes: dict[Path, Any] = {}
    for name in ("scale", "kernel"):
        for path, weight in zip(paths, weights, strict=True):
            if path[-1:] == (name,) and hasattr(weight, "shape"):
                shapes[path[:-1]] = weight.shape
    return shapes
