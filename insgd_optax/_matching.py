"""Matches sown statistics to the weights they scale.

A layer sows a statistic of its kernel's rank. `nn.scan`, `nn.vmap` and `nn.RNN` add
leading axes to it. Along an axis of stacked layers, which the kernel has too, each
layer can keep its own power. Along an axis of calls of a shared kernel, which the
kernel does not have, the statistic is averaged.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from insgd_optax._paths import (
    Path,
    Shape,
    flatten,
    path_list,
    path_string,
    tuple_path,
    unboxed,
)

COLLECTION = "intermediates"
NAME = "input_norm"
COVARIANCE_NAME = "input_covariance"
# A separate name, so that neither optimizer picks up the other's statistic.
RELEASED_NAME = "released_input_norm"

# A statistic by layer, or by layer and ".weight" where it names its weight: what each
# call sowed, in order.
Sown = dict[Path, list[Any]]


def entry_name(name: str, weight: str | None) -> str:
    """The name to sow a statistic under: "input_norm", or "input_norm.w1" for w1.

    Parameter names are usually Python identifiers, so a name with a dot does not
    collide with one.
    """
    return name if weight is None else f"{name}.{weight}"


def is_entry(key: Any, name: str) -> bool:
    """Whether a key of a sown tree belongs to a statistic, with or without a weight."""
    return isinstance(key, str) and (key == name or key.startswith(f"{name}."))


def has_entry(tree: Any, name: str) -> bool:
    """Whether a sown tree holds a value of a statistic."""
    paths = (tuple_path(keys) for keys, _ in jax.tree.leaves_with_path(tree))
    return any(is_entry(key, name) for path in paths for key in path)


def sown_key(path: Path, name: str) -> Path | None:
    """The key in `Sown` of a value at this path; None for other values."""
    # Below an entry are the indices of the tuple that `sow` appends to and, in NNX, the
    # variable's "value". If another name follows, the value was sown by a module that
    # is itself named `name`.
    end = len(path)
    while end and (path[end - 1].isdigit() or path[end - 1] == "value"):
        end -= 1
    if not end or not is_entry(path[end - 1], name):
        return None
    weight = path[end - 1][len(name) :]
    return path[: end - 1] + ((weight,) if weight else ())


def by_layer(input_norms: Any, name: str = NAME) -> Sown:
    """Collects a tree's values of one name by layer; ignores all others.

    `input_norms` is the "intermediates" collection, or all collections a model mutated.
    """
    if isinstance(input_norms, Mapping):
        input_norms = input_norms.get(COLLECTION, input_norms)
    # An NNX layer called twice sows one variable that holds two norms.
    flat = flatten(unboxed(input_norms))
    sown: Sown = {}
    for path, value in zip(flat.paths, flat.weights, strict=True):
        key = sown_key(path, name)
        if key is not None:
            sown.setdefault(key, []).append(value)
    return sown


def find(sown: Sown, weight: Path) -> list[Any] | None:
    """The values that a weight's layer sowed for it or for all its weights, or None."""
    key = _key(sown, weight)
    return None if key is None else sown[key]


def _key(sown: Sown, weight: Path) -> Path | None:
    if not weight:
        return None  # One array alone, without a name.
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


def _names_weight(key: Path, weight: Path) -> bool:
    """Whether the statistic of a key names this weight."""
    return key[-1:] == (f".{weight[-1]}",)


def check_not_shared(sown: Sown, weights: Iterable[Path], name: str = NAME) -> None:
    """Raises if several scaled weights of one module share an unnamed statistic.

    A bias or scale shares its kernel's input. Of two other weights, one would be scaled
    by the other's input.
    """
    sharing: dict[Path, list[Path]] = {}
    for path in weights:
        key = _key(sown, path)
        # A key that names its weight is that weight's alone.
        if key is not None and path[-1] not in ("bias", "scale"):
            sharing.setdefault(key, []).append(path)
    shared = [path for paths in sharing.values() if len(paths) > 1 for path in paths]
    if shared:
        what = name.replace("_", " ")
        raise ValueError(
            f"these scaled weights of one module share one {what} without a weight's"
            " name, so it is ambiguous whose input it describes:\n"
            f"{path_list(shared)}\n"
            f"Sow one for each weight in the module's call,"
            f" insgd_optax.sow_{name}(self, x, weight={shared[0][-1]!r}) (in NNX"
            f" self.sow(nnx.Intermediate, {entry_name(name, shared[0][-1])!r}, ...)),"
            " instead of using layers=; or exclude all but one with scope=, a function"
            " from a parameter's path to True or False"
        )


class Match(NamedTuple):
    """The statistics that scale one weight."""

    path: Path
    calls: list[Any]  # what each call of the layer sowed
    weight: Shape
    kernel: Shape  # whose rank they have; the weight's own if the layer has no kernel

    def power_shape(self) -> Shape:
        """The shape of the weight's P; raises a `ValueError` if they do not fit."""
        with naming(self.path, NAME, _NORM_HINT):
            return power_shape(self.calls, self.weight, self.kernel)

    def mean(self, shape: Shape) -> jax.Array:
        """Their mean, as one value of P's shape; raises if they do not fit."""
        with naming(self.path, NAME, _NORM_HINT):
            return mean_over_calls(self.calls, self.weight, self.kernel, shape)


_NORM_HINT = (
    "A statistic has the rank of its kernel, with stacked axes where the parameters"
    " have theirs; init and update must be those of optimizers with the same"
    " input_norms_like"
)


@contextlib.contextmanager
def naming(path: Path, name: str, hint: str) -> Iterator[None]:
    """Adds the weight, the statistic and a hint to the message of a mismatch."""
    try:
        yield
    except ShapeMismatchError as error:
        raise ValueError(
            f"the {name.replace('_', ' ')} of {path_string(path)} does not fit: {error}"
            f". {hint}"
        ) from error


def matches(sown: Sown, weights: Mapping[Path, Any]) -> dict[Path, Match]:
    """The statistics of every weight that has some."""
    shapes = {path: weight.shape for path, weight in weights.items()}
    found = {}
    for path, shape in shapes.items():
        key = _key(sown, path)
        if key is None:
            continue
        kernel = shape
        if not _names_weight(key, path):
            for name in ("scale", "kernel"):
                kernel = shapes.get((*path[:-1], name), kernel)
        found[path] = Match(path, sown[key], shape, kernel)
    return found


class ShapeMismatchError(ValueError):
    """A statistic that cannot belong to its weight; the message says why."""


def _fits(shape: Shape, weight: Shape) -> bool:
    """Whether a statistic of this shape broadcasts against the weight."""
    return len(shape) == len(weight) and all(
        n in (1, m) for n, m in zip(shape, weight, strict=True)
    )


def excess_axes(
    statistic: Shape, weight: Shape, left: Shape | None = None
) -> tuple[int, ...]:
    """The axes of a statistic that its weight does not have, to average or sum over.

    As many axes as the statistic has in excess are chosen, such that the rest
    broadcasts against the weight. If several choices fit, a choice that leaves the
    shape `left` wins, if that is known. Otherwise, the choice that has the most
    axes longer than 1 wins, because a layer's own statistic has trailing singleton
    axes. For a single call of stacked layers, such as (1, 3, 1, 1) for a weight
    (3, 4, 5), only `left` tells that the axis of length 3 must stay.

    Raises:
        ShapeMismatchError: if no choice fits, or if several do and none of them wins.
    """
    excess = len(statistic) - len(weight)
    if excess < 0:
        raise ShapeMismatchError(f"{statistic} has fewer axes than the weight {weight}")
    choices: dict[tuple[int, ...], tuple[int, ...]] = {}
    exact: dict[tuple[int, ...], tuple[int, ...]] = {}
    for axes in itertools.combinations(range(len(statistic)), excess):
        rest = tuple(n for a, n in enumerate(statistic) if a not in axes)
        if _fits(rest, weight):
            long = tuple(a for a in axes if statistic[a] > 1)
            choices[long] = axes
            if rest == left:
                exact[long] = axes
    choices = exact or choices
    if not choices:
        raise ShapeMismatchError(
            f"{statistic} does not broadcast against the weight {weight}"
        )
    most = max(map(len, choices))
    best = [axes for long, axes in choices.items() if len(long) == most]
    if len(best) > 1:
        raise ShapeMismatchError(
            f"{statistic} fits the weight {weight} in more than one way: stacked axes"
            " and repeated calls have the same length"
        )
    return best[0]


def _padded(statistic: Shape, rank: int) -> Shape:
    """A hand-sown scalar, stacked or not, in the rank of its weight."""
    return statistic + (1,) * (rank - len(statistic))


def _cut(statistic: Shape, weight: Shape) -> Shape:
    """A kernel's statistic in the rank of a bias: without trailing singletons."""
    cut = statistic[: len(weight)]
    if any(n != 1 for n in statistic[len(weight) :]) or not _fits(cut, weight):
        raise ShapeMismatchError(
            f"{statistic} cannot be cut to fit the weight {weight}"
        )
    return cut


def align(
    call: jax.Array | jax.ShapeDtypeStruct,
    weight: Shape,
    kernel: Shape,
    power: Shape | None = None,
) -> tuple[tuple[int, ...], Shape, Shape]:
    """Computes how one sown statistic becomes the power of one weight.

    Args:
        call: what one call of the layer sowed.
        weight: the shape of the weight it scales.
        kernel: the shape of the layer's kernel; the weight's own if it has none.
        power: the shape of the weight's P, if it is known.

    Returns:
        The axes to average, the shape to which the statistic is reshaped beforehand,
        and the shape of the result, which broadcasts against the weight.
    """
    shape = _padded(call.shape, len(kernel))
    left = None if power is None else _padded(power, len(kernel))
    axes = excess_axes(shape, kernel, left)
    rest = tuple(n for a, n in enumerate(shape) if a not in axes)
    return axes, shape, _cut(rest, weight)


def power_shape(
    calls: Sequence[jax.ShapeDtypeStruct], weight: Shape, kernel: Shape
) -> Shape:
    """The shape of a weight's P: () if nothing varies, else of the weight's rank."""
    shapes = [align(call, weight, kernel)[2] for call in calls]
    shape = tuple(map(max, zip(*shapes, strict=True)))
    return shape if any(n > 1 for n in shape) else ()


def mean_over_calls(
    calls: Sequence[jax.Array], weight: Shape, kernel: Shape, shape: Shape
) -> jax.Array:
    """The statistics a layer sowed in one pass, as one value of shape `shape`."""
    values = []
    for call in calls:
        if shape == ():
            values.append(jnp.mean(call))
            continue
        axes, padded, cut = align(call, weight, kernel, shape)
        if tuple(map(max, zip(cut, shape, strict=True))) != shape:
            raise ShapeMismatchError(
                f"{call.shape} gives {cut}, but P has the shape {shape}"
            )
        value = jnp.mean(jnp.reshape(call, padded), axis=axes).reshape(cut)
        values.append(jnp.broadcast_to(value, shape))
    return functools.reduce(jnp.add, values) / len(values)
