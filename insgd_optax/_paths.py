"""Weights by their path in a tree, and the states within an optimizer's state."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from flax import traverse_util
from flax.core import meta

Path = tuple[str, ...]
Shape = tuple[int, ...]


def is_box(node: Any) -> bool:
    """Whether `node` wraps one weight in metadata (a Linen box, an NNX variable)."""
    # A tree with NNX variables implies that NNX is imported; importing it is slow.
    nnx = sys.modules.get("flax.nnx")
    boxes: tuple[type, ...] = (meta.AxisMetadata,)
    if nnx is not None:
        boxes += (nnx.Variable,)
    return isinstance(node, boxes)


class FlatWeights(NamedTuple):
    """A tree of weights taken apart; masked entries are `optax.MaskedNode()`."""

    paths: list[Path]
    weights: list[Any]
    treedef: Any  # in which a box, and a masked entry, is one leaf

    @property
    def present(self) -> dict[Path, Any]:
        """The weights that are not masked, in the order of the tree."""
        pairs = zip(self.paths, self.weights, strict=True)
        return {path: weight for path, weight in pairs if not is_masked(weight)}


def tuple_path(keys: Sequence[Any]) -> Path:
    """The path of plain names that `jax.tree_util` keys stand for."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def flatten(tree: Any) -> FlatWeights:
    """Lists the weights of a tree with their paths, looking through boxes."""
    nodes, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: is_box(node) or is_masked(node)
    )
    paths = [tuple_path(keys) for keys, _ in nodes]
    weights = []
    for path, (_, node) in zip(paths, nodes, strict=True):
        contents = jax.tree.leaves(node)
        if len(contents) > 1:
            raise ValueError(
                f"the metadata box at {path_string(path)} holds {len(contents)} arrays;"
                " a box is expected to hold one weight"
            )
        weights.append(contents[0] if contents else optax.MaskedNode())
    return FlatWeights(paths, weights, treedef)


def unboxed(tree: Any) -> Any:
    """`tree` with a list of its arrays in the place of each box."""
    return jax.tree.map(
        lambda node: jax.tree.leaves(node) if is_box(node) else node,
        tree,
        is_leaf=is_box,
    )


def replace(tree: Any, present: Iterable[Any]) -> Any:
    """`tree` with its unmasked weights replaced, in order; its boxes are kept."""
    return jax.tree.unflatten(jax.tree.structure(tree), present)


def only(tree: Mapping[str, Any], is_wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """Filters a nested dict by the names of its values; drops empty branches."""
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict(
        {path: value for path, value in flat.items() if is_wanted(path[-1])}
    )


def is_masked(node: Any) -> bool:
    """Whether `node` is optax's placeholder for a masked weight."""
    return isinstance(node, optax.MaskedNode)


def path_string(path: Path) -> str:
    """`("Conv_0", "kernel")` as people write it: "Conv_0/kernel"."""
    return "/".join(path)


def path_list(paths: Sequence[Path], most: int = 20) -> str:
    """An indented list of paths for an error message."""
    lines = [f"  {path_string(path)}" for path in paths[:most]]
    if len(paths) > most:
        lines.append(f"  ... and {len(paths) - most} more")
    return "\n".join(lines)


Scope = str | Callable[[Path], bool]
_SCOPES: dict[str, frozenset[str]] = {
    "kernel": frozenset({"kernel"}),
    "layer": frozenset({"kernel", "bias", "scale"}),
}


def scope_predicate(scope: Scope) -> Callable[[Path], bool]:
    """Turns a scope's name, or a user's predicate, into a predicate on paths."""
    if callable(scope):
        return scope
    if not isinstance(scope, str):
        raise TypeError(
            f"scope is a {type(scope).__name__}: give a name or a function from a path;"
            " optax.inject_hyperparams treats callables as schedules: pass it"
            ' static_args=("scope",)'
        )
    if scope not in _SCOPES:
        raise ValueError(
            f"scope={scope!r} is not known: give one of {sorted(_SCOPES)}, or a"
            " function from a parameter's path, such as ('Dense_0', 'kernel'), to"
            " True or False"
        )
    names = _SCOPES[scope]
    return lambda path: bool(path) and path[-1] in names


State = TypeVar("State")


def states_of(opt_state: Any, kind: type[State]) -> list[State]:
    """Every state of a kind in any nesting of chains, masks and wrappers."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
