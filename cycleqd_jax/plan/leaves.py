"""The weights of a workload, leaf by leaf: shapes, the part on one device, and what an expert space holds of each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from cycleqd_jax.genome.basis import default_factor_dtype, kept_rank
from cycleqd_jax.models import llama, sam
from cycleqd_jax.operators import is_matrix
from cycleqd_jax.plan.workload import GenomeWorkload, Mesh
from cycleqd_jax.sharding import MESH_AXES, shardings
from cycleqd_jax.types import PyTree, tree_paths

__all__ = ["Changes", "Leaf", "changes", "declared", "leaves_of", "matrix_shapes"]


class Changes(NamedTuple):
    """What an expert space holds of a leaf, in addition to the base.

    Attributes:
        experts: the number of experts whose weights it holds, in the base's dtype.
        updates: for each expert whether its τ is held, in float32; empty where no τ is held.
        rank: the largest rank of the updates, where adapters are the only changes; otherwise 0.
    """

    experts: int
    updates: tuple[bool, ...]
    rank: int

    @property
    def dense(self) -> bool:
        """Whether its matrices are decomposed."""
        return self.experts > 0 or any(self.updates)

    def directions(self, shape: Sequence[int], rank: int | None) -> tuple[int, int]:
        """The directions per expert that mutation changes, and all directions that are known.

        Args:
            shape: the shape of the leaf, ``[*stack, m, n]``.
            rank: the maximum number of directions; None takes all.
        """
        known = kept_rank(shape, None if self.dense else self.rank)
        return known if rank is None else min(rank, known), known


def changes(work: GenomeWorkload, path: str) -> Changes:
    """What is held of the leaf at a path; the rules are those of :meth:`~cycleqd_jax.genome.ExpertSpace.from_experts`."""
    if path.startswith(work.frozen):
        return Changes(0, (), 0)
    if work.full == work.experts:
        return Changes(work.experts, (), 0)
    given = [adapter is None or path in adapter for adapter in work.adapters]
    ranks = [adapter[path] for adapter in work.adapters if adapter is not None and path in adapter]
    if work.full or None in ranks:
        return Changes(0, tuple(given), 0)
    return Changes(0, (), max((rank for rank in ranks if rank is not None), default=0))


class Leaf(NamedTuple):
    """One leaf of the weights, and the part of it on one device.

    Attributes:
        path: such as ``"layers/attn/q"``.
        stack: matrices in the leaf.
        m: rows of a whole matrix; 1 for a vector.
        n: columns of a whole matrix.
        rows: rows of a device's part.
        columns: columns of a device's part.
        width: K r, the directions that mutation acts on; 0 where there is no basis.
        split: devices over which the rows are split, the axis that products sum over.
        matrix: whether it is a matrix.
        directions: K r, including directions that mutation does not change.
        factor: bytes of each number of u and vt.
        changes: what an expert space holds of it.
    """

    path: str
    stack: int
    m: int
    n: int
    rows: int
    columns: int
    width: int
    split: int
    matrix: bool
    directions: int
    factor: int
    changes: Changes

    @property
    def size(self) -> int:
        """Numbers of the whole leaf."""
        return self.stack * self.m * self.n

    @property
    def local(self) -> int:
        """Numbers of a device's part."""
        return self.stack * self.rows * self.columns

    @property
    def decomposed(self) -> bool:
        """Whether the basis stage decomposes it."""
        return self.matrix and self.changes.dense


def declared(model: llama.LlamaConfig | sam.SamConfig) -> tuple[PyTree[jax.ShapeDtypeStruct], PyTree[Any]]:
    """The shapes and the logical axes of all weights of a model."""
    if isinstance(model, sam.SamConfig):
        return sam.abstract_params(model), sam.logical_axes(model)
    return llama.abstract_params(model), llama.logical_axes(model)


@functools.lru_cache(maxsize=256)  # of small tuples; the search for a mesh asks for few of them many times
def _places(model: llama.LlamaConfig | sam.SamConfig, mesh: Mesh) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
    """Path, shape, and shape of a device's part of every leaf."""
    shapes, axes = declared(model)
    places = shardings(AbstractMesh(mesh, MESH_AXES), shapes, axes)
    pairs = zip(tree_paths(shapes), jax.tree.leaves(places), strict=True)
    return tuple((path, leaf.shape, place.shard_shape(leaf.shape)) for (path, leaf), place in pairs)


def leaves_of(work: GenomeWorkload, mesh: Mesh) -> list[Leaf]:
    """The leaves of a workload's model on a mesh.

    Raises:
        InputError: the mesh does not divide a leaf.
    """
    found = []
    for path, shape, local in _places(work.model, mesh):
        matrix = is_matrix(path, jax.ShapeDtypeStruct(shape, jnp.float32))
        *stack, m, n = shape if matrix else (*shape[:-1], 1, shape[-1])
        rows, columns = (local[-2], local[-1]) if matrix else (1, local[-1])
        change = changes(work, path)
        kept, known = change.directions((m, n), work.rank)
        whole = kept if change.dense else known
        width, directions = (work.experts * kept, work.experts * whole) if matrix else (0, 0)
        factor = jnp.dtype(work.factor_dtype or default_factor_dtype(work.model.dtype)).itemsize if change.dense else 4
        found.append(Leaf(path, math.prod(stack), m, n, rows, columns, width, m // rows, matrix, directions, factor, change))
    return found


def matrix_shapes(work: GenomeWorkload) -> list[tuple[int, int]]:
    """The different shapes of the matrices that are decomposed."""
    return list(dict.fromkeys((leaf.m, leaf.n) for leaf in leaves_of(work, (1, 1, 1)) if leaf.decomposed))
