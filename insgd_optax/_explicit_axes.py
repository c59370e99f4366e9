"""Computation on meshes with Explicit axes, where shardings are part of types."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _explicit_mesh(tree: Any) -> Mesh | AbstractMesh | None:
    """The mesh with Explicit axes that the arrays of a tree are on, if any."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            # The type of a concrete array has an abstract mesh, without devices.
            is_traced = isinstance(leaf, jax.core.Tracer)
            sharding = jax.typeof(leaf).sharding if is_traced else leaf.sharding
            if (
                isinstance(sharding, NamedSharding)
                and sharding.mesh.abstract_mesh.explicit_axes
            ):
                return sharding.mesh
    return None


def sharded_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Gives `x` the sharding of `like` if `like` is on a mesh with Explicit axes.

    Both have the same shape.
    """
    mesh = _explicit_mesh(like)
    if mesh is None:
        return x
    sharding = NamedSharding(mesh, jax.typeof(like).sharding.spec)
    result: jax.Array = jax.sharding.reshard(x, sharding)
    return result


def replicated_like(tree: _T, like: Any) -> _T:
    """A tree of arrays, replicated on the mesh of `like` if that has Explicit axes."""
    mesh = _explicit_mesh(like)
    if mesh is None:
        return tree
    result: _T = jax.sharding.reshard(tree, NamedSharding(mesh, PartitionSpec()))
    return result


def with_auto_axes(function: Callable[..., _T], *arrays: Any, like: Any = None) -> _T:
    """Calls a function; on a mesh with Explicit axes, as if these were Auto.

    With Explicit axes, JAX raises an error where an operation, such as a product that
    is summed over a sharded batch, leaves open how its result is sharded. With Auto
    axes, the compiler decides. Without Explicit axes, this is `function(*arrays)`.

    Args:
        function: a function that uses no arrays but its arguments.
        *arrays: its arguments, pytrees of arrays.
        like: a tree like the result, whose shardings the result is to have; None
            replicates the result.
    """
    mesh = _explicit_mesh(arrays)
    if mesh is None:
        return function(*arrays)
    replicated = NamedSharding(mesh, PartitionSpec())

    def on_mesh(x: Any) -> Any:
        return jax.sharding.reshard(x, replicated) if _explicit_mesh(x) is None else x

    def sharding(x: Any) -> NamedSharding:
        if _explicit_mesh(x) is None:
            return replicated
        return NamedSharding(mesh, jax.typeof(x).sharding.spec)

    auto = jax.sharding.auto_axes(
        function,
        axes=mesh.abstract_mesh.explicit_axes,
        out_sharding=replicated if like is None else jax.tree.map(sharding, like),
    )
    result: _T = auto(*jax.tree.map(on_mesh, arrays))
    return result


def on_auto_axes(
    function: Callable[Concatenate[jax.Array, _P], jax.Array],
) -> Callable[Concatenate[jax.Array, _P], jax.Array]:
    """Makes a function of an array and further settings run in `with_auto_axes`."""

    @functools.wraps(function)
    def wrapped(x: jax.Array, *args: _P.args, **kwargs: _P.kwargs) -> jax.Array:
        return with_auto_axes(lambda x: function(x, *args, **kwargs), x)

    return wrapped
