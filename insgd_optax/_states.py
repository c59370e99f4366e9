"""Optimizer states, found wherever they are nested."""

from typing import Any, TypeVar

import jax

State = TypeVar("State")


def states_of(opt_state: Any, kind: type[State]) -> list[State]:
    """Every state of a kind in any nesting of chains, masks and wrappers."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
