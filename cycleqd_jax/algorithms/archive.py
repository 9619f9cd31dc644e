"""One MAP-Elites archive per task, each a QDax repertoire; every individual is offered to all of them.

In archive k the score f_k is the quality (QDax: fitness), and the other scores f_{j≠k}, in task order, are the behaviour
characteristics (QDax: descriptor).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire, compute_euclidean_centroids

from cycleqd_jax.algorithms.cells import (
    add_to_cells,
    bin_centres,
    bin_edges,
    bin_indices,
    check_bounds,
    cvt_centroids,
    grid_cells,
    nearest_cells,
)
from cycleqd_jax.algorithms.common import default_promotion
from cycleqd_jax.algorithms.leaders import leading_of
from cycleqd_jax.algorithms.selection import extra_scores
from cycleqd_jax.types import MAX_CELLS, AnyArray, Array, ArrayLeaf, Bool, Float, Genome, InputError, Int, Scores, stack_trees

__all__ = ["Archives"]


@jax.jit
def _empty(genome: Genome, centroids: Sequence[Float[Array, "cell axis"]]) -> MapElitesRepertoire:
    """An empty repertoire for each task, stacked."""
    extra = {"scores": jnp.zeros(len(centroids), jnp.float32), "id": jnp.int32(0)}
    with default_promotion():
        repertoires = [MapElitesRepertoire.init_default(genome, each, extra, tuple(extra)) for each in centroids]
    return stack_trees(repertoires)


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
        centres = bin_centres(self.edges, bins)
        extra = {"scores": scores, "id": jnp.asarray(ids, jnp.int32)}

        def insert(repertoire: MapElitesRepertoire, k: Array) -> MapElitesRepertoire:
            others = self._axes(k)
            cells = self._cells(repertoire, others, scores, bins)
            middles = repertoire.centroids[cells] if self.is_cvt else centres[:, others]
            fitness = jnp.where(valid, scores[:, k], -jnp.inf)
            added = add_to_cells(repertoire, genomes, cells, middles, fitness, extra)
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
            return nearest_cells(scores[:, axes], repertoire.centroids, self.edges[axes, 0], self.edges[axes, -1])
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
