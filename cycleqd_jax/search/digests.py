"""Digests of genomes and states: equal for equal bits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.serialization
import jax
import numpy as np

__all__ = ["OLD_BASES", "leaves_of", "tree_digest", "tree_digests"]

OLD_BASES = "older versions also kept coefficients of matrices that no expert changes"
"""Why genomes and checkpoints of the same experts may differ between versions; part of error messages."""


def tree_digest(tree: Any, *, digits: int = 16) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of all arrays of a pytree, in hexadecimal.

    A tree and the state dict that checkpoints hold of it (``flax.serialization.to_state_dict``) have the same digest.

    Args:
        tree: arrays, in dataclasses, named tuples, mappings, tuples and lists.
        digits: number of digits to return, at most 64.

    >>> import numpy as np
    >>> from cycleqd_jax.search import tree_digest
    >>> tree_digest({"a": np.zeros(2)}) == tree_digest({"a": np.zeros(2)}) != tree_digest({"a": np.zeros(3)})
    True
    """
    total = hashlib.sha256()
    for path, leaf in sorted(leaves_of(flax.serialization.to_state_dict(tree)), key=lambda one: one[0]):
        array = np.asarray(jax.device_get(leaf))
        total.update(f"{path}\0{array.dtype}\0{array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # copies only what is not contiguous
    return total.hexdigest()[:digits]


def tree_digests(trees: Any) -> list[str]:
    """The digest of every tree of a batch.

    Args:
        trees: arrays with a leading axis.
    """
    host = jax.device_get(trees)
    count = jax.tree.leaves(host)[0].shape[0]
    return [tree_digest(jax.tree.map(lambda leaf, j=j: leaf[j], host)) for j in range(count)]


def leaves_of(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state dictionary with their paths, such as ``/archives/edges``.

    Args:
        node: the dictionary, or a leaf.
        path: the path of the node.
    """
    if isinstance(node, Mapping):
        for name, item in node.items():
            yield from leaves_of(flax.serialization.to_state_dict(item), f"{path}/{name}")
    elif node is not None:
        yield path, node
