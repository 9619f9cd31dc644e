"""One MAP-Elites archive per task, each a QDax repertoire; every individual is offered to all of them.

In archive k the score f_k is the quality (QDax: fitness), and the other scores f_{j≠k}, in task order, are the behaviour
characteristics (QDax: descriptor).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from qdax.core.containers.mapelites_repertoire import (
    MapElitesRepertoire,
    compute_cvt_centroids,
    compute_euclidean_centroids,
)
from threadpoolctl import threadpool_limits

from cycleqd_jax.algorithms.common import default_promotion
from cycleqd_jax.algorithms.leaders import leading_of
from cycleqd_jax.algorithms.selection import extra_scores
from cycleqd_jax.types import MAX_CELLS, AnyArray, Array, ArrayLeaf, Bool, Float, Genome, InputError, Int, Scores, stack_trees

__all__ = [
    "Archives",
    "bin_edges",
    "bin_indices",
    "cell_winners",
    "cvt_centroids",
    "expert_bounds",
    "given_bounds",
    "grid_cells",
]

_SAMPLES = 25
"""Random points for each cell of a CVT, at least 25,000 in all."""


def expert_bounds(scores: Scores, low: float = 0.85, high: float = 1.15) -> np.ndarray:
    """The paper's grid: each axis spans 0.85 × the weakest expert's score to 1.15 × the strongest's on that task.

    Args:
        scores: scores of the experts, ``[K, task]``; rows with NaN are ignored.
        low: factor on the lowest score of a task.
        high: factor on the highest score of a task.

    Returns:
        Lower and upper end of each task's axis, float32 ``[task, 2]``; [0, 1] for a task on which every expert scores zero,
        because its axis would have no length.
    """
    table = np.asarray(scores, np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    bounds = np.stack([low * table.min(0), high * table.max(0)], axis=1)
    bounds[bounds[:, 1] <= bounds[:, 0]] = (0.0, 1.0)
    return bounds.astype(np.float32)


def given_bounds(bounds: tuple[tuple[float, float], ...] | None, scores: Scores, name: str) -> np.ndarray:
    """The bounds that a searcher was given, float32 ``[task, 2]``; without them :func:`expert_bounds`.

    Args:
        bounds: a ``(low, high)`` pair for each task, or None.
        scores: scores of the experts, ``[K, task]``.
        name: the class of the searcher, for messages.

    Raises:
        InputError: they are not a tuple, there are not as many as tasks, or an axis is empty.
    """
    if bounds is None:
        return expert_bounds(scores)
    if not isinstance(bounds, tuple):
        raise InputError(
            f"expected a tuple of (low, high) tuples, got a {type(bounds).__name__} in {name}.bounds; pass a tuple, which is "
            "hashable"
        )
    tasks = scores.shape[1]
    if len(bounds) != tasks:
        raise InputError(
            f"expected a (low, high) pair for each of {tasks} tasks, got {len(bounds)} in {name}.bounds; pass as many, or None"
        )
    return check_bounds(bounds).astype(np.float32)


def check_bounds(bounds: Any) -> np.ndarray:
    """Checks the bounds of the axes of archives, and returns them as float64 ``[K, 2]``.

    Raises:
        InputError: there are fewer than two axes, or one is empty.
    """
    ends = np.asarray(bounds, np.float64)
    if ends.ndim != 2 or ends.shape[1] != 2 or len(ends) < 2:
        raise InputError(
            f"expected a lower and an upper bound for each of at least two tasks, got shape {ends.shape} in the bounds of "
            "the archives; pass an array of shape [tasks, 2]"
        )
    if not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
        raise InputError(
            f"expected a finite lower bound below a finite upper bound for every task, got {ends.tolist()} in the bounds "
            "of the archives; correct them"
        )
    return ends


def cell_winners(cells: Int[Array, " batch"], fitness: Float[Array, " batch"]) -> Bool[Array, " batch"]:
    """Which individuals of a batch are the fittest of their cell; of equals, the first.

    ``MapElitesRepertoire.add`` keeps all individuals that tie in a cell and scatters them to one index, in undefined order for
    each leaf: an elite could get the genotype of one individual and the descriptor of another. With one candidate per cell, the
    result is that of inserting the batch one by one, in order.

    Args:
        cells: cell of each individual.
        fitness: quality of each individual.

    Returns:
        A mask over the batch.
    """
    order = jnp.arange(cells.shape[0])
    same_cell = cells[:, None] == cells[None, :]
    better = fitness[None, :] > fitness[:, None]
    earlier_equal = (fitness[None, :] == fitness[:, None]) & (order[None, :] < order[:, None])
    return ~jnp.any(same_cell & (better | earlier_equal), axis=1)


@functools.cache
def cvt_centroids(cells: int, axes: int) -> np.ndarray:
    """The centroids of a centroidal Voronoi tessellation of the unit cube, float32 ``[cell, axis]``, read-only.

    They are the same in every run. They are computed in one thread and rounded to six digits, so that they do not depend on the
    number of cores.

    Args:
        cells: number of cells.
        axes: number of dimensions.
    """
    samples = max(25_000, _SAMPLES * cells)
    with threadpool_limits(1), default_promotion():
        found = compute_cvt_centroids(axes, samples, cells, 0.0, 1.0, jax.random.key(0))
    rounded = np.asarray(found, np.float64).round(6).astype(np.float32)
    rounded.setflags(write=False)
    return rounded


@jax.jit
def _empty(genome: Genome, centroids: Sequence[Float[Array, "cell axis"]]) -> MapElitesRepertoire:
    """An empty repertoire for each task, stacked."""
    extra = {"scores": jnp.zeros(len(centroids), jnp.float32), "id": jnp.int32(0)}
    with default_promotion():
        repertoires = [MapElitesRepertoire.init_default(genome, each, extra, tuple(extra)) for each in centroids]
    return stack_trees(repertoires)


def bin_edges(bounds: np.ndarray, bins: int) -> np.ndarray:
    """The edges of ``bins`` equal bins on each task's axis, float32 ``[K, bins + 1]``.

    Args:
        bounds: lower and upper end of each axis, ``[K, 2]``.
        bins: number of bins.
    """
    ends = np.asarray(bounds, np.float64)
    return np.linspace(ends[:, 0], ends[:, 1], bins + 1, axis=1).astype(np.float32)


def bin_indices(edges: AnyArray, scores: Scores) -> Int[Array, "batch task"]:
    """The bin of each score on its task's axis, 0 to bins − 1; see :meth:`Archives.bin_indices`.

    Args:
        edges: ``[K, bins + 1]``.
        scores: ``[batch, K]``.
    """
    above = jnp.sum(scores[:, :, None] >= edges[None, :, :], axis=-1)
    return jnp.clip(above - 1, 0, edges.shape[1] - 2)


def grid_cells(place: Int[Array, "batch axis"], bins: int) -> Int[Array, " batch"]:
    """The position in a QDax repertoire of the cells of a grid.

    ``compute_euclidean_centroids`` orders the cells by ``jnp.meshgrid``, which swaps the first two axes.

    Args:
        place: the bin on each axis.
        bins: number of bins of every axis.
    """
    axes = [1, 0, *range(2, place.shape[1])] if place.shape[1] > 1 else [0]
    strides = bins ** jnp.arange(len(axes) - 1, -1, -1)
    return jnp.sum(place[:, jnp.asarray(axes)] * strides[None], axis=1)


class Archives(flax.struct.PyTreeNode):
    """The archives A_1 … A_K of a search, as one pytree.

    Attributes:
        repertoires: the QDax repertoires, stacked on a leading task axis: ``genotypes`` ``[K, cell, …]``, ``fitnesses``
            ``[K, cell, 1]`` (−inf in empty cells), ``descriptors`` ``[K, cell, K − 1]``, and ``extra_scores`` with ``scores``
            ``[K, cell, K]`` and ``id`` ``[K, cell]``.
        edges: bin edges of each task's axis, ``[K, bins + 1]``; its two ends alone where the cells are those of a CVT.
    """

    repertoires: MapElitesRepertoire
    edges: Float[ArrayLeaf, "*batch task edge"]

    @classmethod
    def create(cls, genome: Genome, bounds: AnyArray, bins: int = 15, cells: int | None = None) -> Archives:
        """Makes empty archives.

        Args:
            genome: one genome, for shapes and dtypes.
            bounds: lower and upper end of each task's axis, ``[K, 2]``.
            bins: number of bins per axis, of equal width.
            cells: number of cells of a centroidal Voronoi tessellation (CVT), which has any number of axes; None is the grid.

        Raises:
            InputError: there are fewer than two tasks, an axis is empty, or an archive has no cells or more than ``MAX_CELLS``.
        """
        ends = check_bounds(bounds)
        tasks = len(ends)
        if cells is not None and not 2 <= cells <= MAX_CELLS:
            raise InputError(f"expected 2 to {MAX_CELLS} cells per archive, got {cells}; choose another number of cells")
        if cells is None and (bins < 1 or bins ** (tasks - 1) > MAX_CELLS):
            raise InputError(
                f"expected 1 to {MAX_CELLS} cells per archive, got {bins ** (tasks - 1)} cells in an archive of {bins} bins on "
                f"{tasks - 1} axes; choose another number of bins"
            )
        edges = jnp.asarray(bin_edges(ends, bins if cells is None else 1))

        def centroids(k: int) -> Float[Array, "cell axis"]:
            axes = np.delete(ends, k, axis=0)
            if cells is not None:
                found = axes[:, 0] + cvt_centroids(cells, tasks - 1) * (axes[:, 1] - axes[:, 0])
                return jnp.asarray(found, jnp.float32)
            with default_promotion():
                return compute_euclidean_centroids((bins,) * (tasks - 1), axes[:, 0].tolist(), axes[:, 1].tolist())

        return cls(repertoires=_empty(genome, [centroids(k) for k in range(tasks)]), edges=edges)

    @property
    def num_tasks(self) -> int:
        """The number K of tasks and archives."""
        return self.edges.shape[0]

    @property
    def bins(self) -> int:
        """The number of bins per axis; 1 where the cells are those of a CVT."""
        return self.edges.shape[1] - 1

    @property
    def is_cvt(self) -> bool:
        """Whether the cells are those of a CVT."""
        return self.bins ** (self.num_tasks - 1) != self.repertoires.fitnesses.shape[1]

    def __getitem__(self, k: int | Int[Array, ""]) -> MapElitesRepertoire:
        """Archive A_k."""
        return jax.tree.map(lambda leaf: leaf[k], self.repertoires)

    def bin_indices(self, scores: Scores) -> Int[Array, "batch task"]:
        """The bin of each score on its task's axis, 0 to bins − 1.

        A score on an edge belongs to the bin above it, a score outside the axis to the first or last bin. (The reference code
        clips every axis with the number of bins of the first.)

        Args:
            scores: ``[batch, K]``.
        """
        return bin_indices(self.edges, scores)

    def add(self, genomes: Genome, scores: Scores, ids: Int[AnyArray, " batch"]) -> Archives:
        """Inserts every individual into every archive in which its cell is empty or its elite has lower quality (Algorithm 1).

        The result is that of inserting one by one in batch order. An individual of equal quality does not replace the elite.

        Args:
            genomes: leading axis ``batch``.
            scores: ``[batch, K]``; individuals with a NaN or infinite score enter no archive.
            ids: id of each individual, stored with it.
        """
        scores = jnp.asarray(scores, jnp.float32)
        valid = jnp.all(jnp.isfinite(scores), axis=1)
        scores = jnp.where(valid[:, None], scores, 0.0)
        bins = self.bin_indices(scores)
        low, high = self.edges[None, :, 0], self.edges[None, :, -1]
        centres = low + (bins.astype(jnp.float32) + 0.5) / self.bins * (high - low)
        extra = {"scores": scores, "id": jnp.asarray(ids, jnp.int32)}

        def insert(repertoire: MapElitesRepertoire, k: Array) -> MapElitesRepertoire:
            others = self._axes(k)
            cells = self._cells(repertoire, others, scores, bins)
            middles = repertoire.centroids[cells] if self.is_cvt else centres[:, others]
            fitness = jnp.where(valid, scores[:, k], -jnp.inf)
            fitness = jnp.where(cell_winners(cells, fitness), fitness, -jnp.inf)
            # QDax gets the centre of the cell as the descriptor: the cell is decided above, and a search for the nearest
            # centroid would have ties at the edges of a grid. The true descriptors are restored below.
            with default_promotion():
                added = repertoire.add(genomes, middles, fitness, cast(Any, extra))
            return added.replace(descriptors=extra_scores(added)["scores"][:, others])

        return self.replace(repertoires=jax.vmap(insert)(self.repertoires, jnp.arange(self.num_tasks)))

    def admits(self, scores: Scores) -> Bool[Array, " batch"]:
        """Whether single individuals with these finite scores would enter some archive.

        Args:
            scores: ``[batch, K]``.
        """
        scores = jnp.asarray(scores, jnp.float32)
        bins = self.bin_indices(scores)

        def enters(repertoire: MapElitesRepertoire, k: Array) -> Bool[Array, " batch"]:
            return scores[:, k] > repertoire.fitnesses[self._cells(repertoire, self._axes(k), scores, bins), 0]

        return jnp.any(jax.vmap(enters)(self.repertoires, jnp.arange(self.num_tasks)), axis=0)

    def _axes(self, k: Array) -> Int[Array, " axis"]:
        """The tasks of the axes of archive k."""
        others = jnp.arange(self.num_tasks - 1)
        return others + (others >= k).astype(others.dtype)

    def _cells(
        self,
        repertoire: MapElitesRepertoire,
        axes: Int[Array, " axis"],
        scores: Float[Array, "batch task"],
        bins: Int[Array, "batch task"],
    ) -> Int[Array, " batch"]:
        """The cell of each individual in an archive of these axes."""
        if self.is_cvt:
            return _nearest(scores[:, axes], repertoire.centroids, self.edges[axes, 0], self.edges[axes, -1])
        return grid_cells(bins[:, axes], self.bins)

    @property
    def scores(self) -> Float[Array, "task cell task"]:
        """All K scores of the elite in each cell; zeros in empty cells."""
        return extra_scores(self.repertoires)["scores"]

    @property
    def ids(self) -> Int[Array, "task cell"]:
        """Id of the elite in each cell; zero in empty cells."""
        return extra_scores(self.repertoires)["id"]

    def occupied(self) -> Bool[Array, "task cell"]:
        """Which cells have an elite."""
        return self.repertoires.fitnesses[..., 0] > -jnp.inf

    def best(self) -> tuple[Genome, Scores, Int[Array, " task"]]:
        """The best elite of each archive: the highest quality, and among equals the highest average over all tasks.

        Scores are fractions of solved problems, so ties are common, and a specialist should not be chosen over an all-rounder
        of equal quality.

        Returns:
            Genomes (leading axis K), scores ``[K, K]`` and ids ``[K]``.
        """
        fitness = self.repertoires.fitnesses[..., 0]
        leading = fitness == jnp.max(fitness, axis=1, keepdims=True)
        cells = jnp.argmax(jnp.where(leading, jnp.mean(self.scores, axis=-1), -jnp.inf), axis=1)
        rows = jnp.arange(self.num_tasks)
        return jax.tree.map(lambda x: x[rows, cells], (self.repertoires.genotypes, self.scores, self.ids))

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The elites with the highest averages over all tasks, from all archives, each individual once.

        See :func:`~cycleqd_jax.algorithms.leaders.leading_of`.

        Args:
            count: the most elites; fewer are returned where the archives hold fewer.
        """
        return leading_of(self.repertoires.genotypes, self.scores, self.ids, self.occupied(), count)


def _nearest(
    points: Float[Array, "batch axis"],
    centroids: Float[Array, "cell axis"],
    low: Float[Array, " axis"],
    high: Float[Array, " axis"],
) -> Int[Array, " batch"]:
    """The cell whose centroid is nearest to each point, on axes of which each has length 1; points outside are clipped."""
    low, width = low[None], (high - low)[None]
    unit = jnp.clip((points - low) / width, 0.0, 1.0)
    return jnp.argmin(jnp.sum(jnp.square(unit[:, None] - ((centroids - low) / width)[None]), axis=-1), axis=1)
