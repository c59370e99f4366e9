"""Looking up what a layer sowed, from any tree a user may hand over."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from insgd_optax._weights import Path, flatten, path_list, unboxed

COLLECTION = "intermediates"
NAME = "input_norm"
COVARIANCE_NAME = "input_covariance"

# A statistic by layer, or by layer and ".weight" where it names its weight: what each
# call sowed, in order.
Sown = dict[Path, list[Any]]


def entry_name(name: str, weight: str | None) -> str:
    """The name to sow a statistic under: "input_norm", or "input_norm.w1" of a weight.

    The dot keeps it apart from every parameter, which Python names.
    """
    return name if weight is None else f"{name}.{weight}"


def is_entry(key: Any, name: str) -> bool:
    """Whether a key of a sown tree is that of a statistic, of a named weight or not."""
    return isinstance(key, str) and (key == name or key.startswith(f"{name}."))


def source(path: Path, name: str) -> Path | None:
    """Where in `Sown` a value at this path belongs, if it is of this statistic."""
    # `sow` appends to a tuple, whose index ends the path; an NNX variable may add the
    # name of what it holds.
    for end in range(len(path), max(len(path) - 3, 0), -1):
        if is_entry(path[end - 1], name):
            weight = path[end - 1][len(name) :]
            return path[: end - 1] + ((weight,) if weight else ())
    return None


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
        key = source(path, name)
        if key is not None:
            sown.setdefault(key, []).append(value)
    return sown


def find(sown: Sown, weight: Path) -> list[Any] | None:
    """What the layer of a weight sowed, for this weight or for all, or None."""
    key = _key(sown, weight)
    return None if key is None else sown[key]


def is_named(sown: Sown, weight: Path) -> bool:
    """Whether what was sown names this weight."""
    key = _key(sown, weight)
    return key is not None and key[-1:] == (f".{weight[-1]}",)


def _key(sown: Sown, weight: Path) -> Path | None:
    layer = weight[:-1]
    # Parameters are often kept as {"params": ...}, and several models in one tree as
    # {"gen": {"params": ...}}, beside {"gen": {"intermediates": ...}} or {"gen": ...}.
    bare = layer
    if "params" in layer:
        i = layer.index("params")
        bare = layer[:i] + layer[i + 1 :]
    places = [layer, bare]
    places += [(*bare[:i], COLLECTION, *bare[i:]) for i in range(len(bare) + 1)]
    for place in places:
        for key in ((*place, f".{weight[-1]}"), place):
            if key in sown:
                return key
    return None


def check_not_shared(sown: Sown, weights: Iterable[Path], name: str = NAME) -> None:
    """Raises if several scaled weights of one module share an unnamed statistic.

    A kernel's bias and scale meet the kernel's input; of two other weights, one would
    be scaled by the other's input.
    """
    sharing: dict[Path, list[Path]] = {}
    for path in weights:
        key = _key(sown, path)
        own = path[-1] in ("bias", "scale") or is_named(sown, path)
        if key is not None and not own:
            sharing.setdefault(key, []).append(path)
    shared = [path for paths in sharing.values() if len(paths) > 1 for path in paths]
    if shared:
        what = name.replace("_", " ")
        raise ValueError(
            f"these scaled weights of one module share one {what}, which does not say"
            f" whose input it is of:\n{path_list(shared)}\n"
            f"Sow one for each weight in the module's call,"
            f" insgd_optax.sow_{name}(self, x, weight={shared[0][-1]!r}) (in NNX"
            f" self.sow(nnx.Intermediate, {entry_name(name, shared[0][-1])!r}, ...)),"
            " in the place of layers=; or leave all but one out by scope, a function"
            " from a parameter's path to True or False"
        )


def kernel_shapes(paths: Sequence[Path], weights: Sequence[Any]) -> dict[Path, Any]:
    """The shape whose rank each layer's statistic has: its kernel's, or its scale's."""
    shapes: dict[Path, Any] = {}
    for name in ("scale", "kernel"):
        for path, weight in zip(paths, weights, strict=True):
            if path[-1:] == (name,) and hasattr(weight, "shape"):
                shapes[path[:-1]] = weight.shape
    return shapes
