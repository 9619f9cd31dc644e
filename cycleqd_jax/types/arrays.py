"""Arrays, weights, genomes and scores. Shapes are written as in jaxtyping; see :mod:`cycleqd_jax.types`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

__all__ = [
    "MAX_CELLS",
    "MIN_CMAES_POPULATION",
    "Adapter",
    "AdapterRanks",
    "AnyArray",
    "ArrayLeaf",
    "Genome",
    "Items",
    "LowRank",
    "MixedMatrix",
    "Params",
    "Scores",
    "leaf_path",
    "stack_trees",
    "tree_paths",
]

AnyArray = jax.Array | np.ndarray
"""A JAX or a numpy array. Annotations read ``Float[AnyArray, "batch task"]``."""

ArrayLeaf = jax.Array
"""An array field of a pytree dataclass. JAX also builds such dataclasses with numpy arrays or shapes, and with leading batch
axes. Annotations read ``Float[ArrayLeaf, "*batch task edge"]``."""
if not TYPE_CHECKING:
    ArrayLeaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct

Params = PyTree[AnyArray]
"""The weights of one model: any pytree of arrays."""


class LowRank(NamedTuple):
    """A low-rank update ``a @ b`` of every matrix in a stack, as in LoRA.

    Attributes:
        a: ``[*stack, m, r]``; includes LoRA's scale.
        b: ``[*stack, r, n]``.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.types import LowRank
    >>> update = LowRank(a=jnp.array([[1.0], [2.0]]), b=jnp.array([[3.0, 4.0]]))
    >>> (update.a @ update.b).tolist()
    [[3.0, 4.0], [6.0, 8.0]]
    """

    a: Float[AnyArray, "*stack m r"]
    b: Float[AnyArray, "*stack r n"]


class MixedMatrix(NamedTuple):
    """Matrices of several individuals with a shared part; that of individual i is ``w + u @ diag(coefficients[i]) @ vt``.

    In the weights of a population it replaces the stacked matrix of one individual. An engine may keep ``w``, ``u`` and ``vt``
    transposed (:class:`cycleqd_jax.models.llama.TransposedMatrix`).

    Attributes:
        w: the shared part, ``[layer, in, out]``.
        u: ``[layer, in, r]``.
        vt: ``[layer, r, out]``.
        coefficients: ``[layer, individual, r]``.
    """

    w: Float[Array, "*layer in out"]
    u: Float[Array, "*layer in r"]
    vt: Float[Array, "*layer r out"]
    coefficients: Float[Array, "*layer individual r"]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An expert as updates of its base model: θ = θ_base + update for every leaf.

    Attributes:
        updates: the changed leaves. The key is the path of a leaf of the base (``"layers/attn/q"``); the value is a
            :class:`LowRank` or an array of the leaf's shape. Leaves without an entry are those of the base.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import apply_adapter
    >>> from cycleqd_jax.types import Adapter, LowRank
    >>> adapter = Adapter({"w": LowRank(jnp.ones((2, 1)), jnp.array([[1.0, 2.0]]))})
    >>> apply_adapter({"w": jnp.zeros((2, 2)), "norm": jnp.ones(2)}, adapter)["w"].tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """

    updates: Mapping[str, LowRank | AnyArray]


AdapterRanks = Mapping[str, int | None]
"""For the path of every leaf that a LoRA adapter changes: the rank of its update, or None where it brings the whole leaf."""

Genome = PyTree[AnyArray]
"""The genotype of an individual. Its :class:`GenomeSpace` defines the structure and the meaning of the leaves."""

Scores = Float[AnyArray, "batch task"]
"""``scores[b, k]`` is f_k of individual b, in [0, 1]. A row with NaN is a quarantined individual: it could not be evaluated."""

Items = Float[AnyArray, "batch item"]
"""``items[b, i]`` is the score of individual b on problem i, in [0, 1]: the problems of the first task, then those of the
second, and so on. A row of NaN is a quarantined individual."""

MAX_CELLS = 1_000_000
"""The most cells of an archive."""

MIN_CMAES_POPULATION = 4
"""The smallest population of CMA-ES: half of it are parents, and with fewer the weights of the others are not defined."""


def leaf_path(path: tuple[Any, ...]) -> str:
    """Formats a key path of ``jax.tree_util`` as ``"layers/attn/q"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def stack_trees(trees: Sequence[PyTree]) -> PyTree:
    """Trees of one structure as one tree, whose leaves have a new leading axis.

    Args:
        trees: one or more.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.types import stack_trees
    >>> stack_trees([{"a": jnp.zeros(2)}, {"a": jnp.ones(2)}])["a"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def tree_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Lists the leaves of a pytree with their paths.

    Args:
        tree: any pytree.

    Returns:
        ``(path, leaf)`` pairs in ``jax.tree`` order; paths read ``"layers/attn/q"``.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(leaf_path(path), leaf) for path, leaf in leaves]
