"""Arrays by name: one flat dict outside compiled functions, nested dicts in files and networks, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = tuple[str, ...]
Tree = dict[str, Any]
"""Nested dicts with strings as keys; the leaves are arrays."""


def leaves(tree: Mapping[Any, Any], prefix: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """The leaves of nested dicts by their keys, outermost first."""
    found: dict[tuple[Any, ...], Any] = {}
    for key, value in tree.items():
        path = (*prefix, key)
        found |= leaves(value, path) if isinstance(value, Mapping) else {path: value}
    return found


def nest(leaves: Mapping[Keys, Any]) -> Tree:
    """The inverse of `leaves`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's name: its keys with slashes between them."""
    return "/".join(map(str, path))


def flat(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested dicts as one: `{"blocks/0/norm1/scale": array}`. Whole numbers as keys, which NNX uses for the members of
    a list, become strings."""
    return {leaf_name(path): leaf for path, leaf in leaves(tree).items()}


def nested(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flat`, with strings as keys."""
    return nest({tuple(path.split("/")): leaf for path, leaf in flat.items()})


def nested_parts(weights: Mapping[str, Mapping[str, Any]]) -> Tree:
    """{"params", "frozen", "model_state"} as folders have them, each part nested."""
    return {part: nested(arrays) for part, arrays in weights.items()}


def flat_parts(tree: Mapping[str, Mapping[Any, Any]]) -> dict[str, dict[str, Any]]:
    """The inverse of `nested_parts`."""
    return {part: flat(arrays) for part, arrays in tree.items()}


def arrays(tree: Mapping[str, Any]) -> dict[Keys, NDArray[Any]]:
    """The leaves as files have them: sorted by their keys, little-endian and contiguous.

    Raises TypeError where a key is not a string or a leaf is not an array of numbers.
    """
    found: dict[Keys, NDArray[Any]] = {}
    for path, value in sorted(leaves(tree).items(), key=lambda item: [str(key) for key in item[0]]):
        if not all(isinstance(key, str) for key in path):
            raise TypeError(f"{leaf_name(path)}: the keys of a saved tree are strings")
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"{leaf_name(path)}: a saved tree holds NumPy arrays, not {type(value).__name__}")
        leaf = np.asarray(value, order="C")
        if leaf.dtype.hasobject or leaf.dtype.kind in "USmM":
            raise TypeError(f"{leaf_name(path)}: a saved tree holds numbers, not {leaf.dtype}")
        found[path] = leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)
    return found


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 over the bytes of a contiguous array."""
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def tree_digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 over name, dtype, shape and bytes of all leaves, in the order of their names; nested or flat is the
    same."""
    digest = hashlib.sha256()
    for path, leaf in arrays(nested(flat(tree))).items():
        digest.update(json.dumps([path, leaf.dtype.name, leaf.shape]).encode())
        digest.update(array_digest(leaf).encode())
    return digest.hexdigest()
