"""Checksums of a training state and its metadata."""

import hashlib
import json
from typing import Any

import jax
import numpy as np


def of_structure(tree: Any) -> str:
    """Returns the SHA-256 of the paths, shapes and dtypes of a tree's arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        digest.update(_header(path, leaf))
    return digest.hexdigest()


def of_contents(tree: Any, beside: Any) -> str:
    """Returns the SHA-256 of the contents of a tree's arrays and of a JSON value.

    Args:
        tree: arrays on one device or replicated.
        beside: anything JSON can hold.

    Returns:
        The digest, in hexadecimal.
    """
    digest = hashlib.sha256(json.dumps(beside, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(tree):
        digest.update(_header(path, leaf))
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _header(path: Any, leaf: Any) -> bytes:
    # As in Orbax, the name does not depend on the type of the container.
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return repr((name, leaf.shape, str(leaf.dtype))).encode()
