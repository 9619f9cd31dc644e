"""One MAP-Elites archive per task, each a QDax repertoire, filled together.

In archive k the quality (QDax: fitness) is the score f_k, and the behaviour characteristics (QDax: descriptor) are the other
scores f_{j≠k}, in task order.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire, compute_euclidean_centroids

from cycleqd_jax.types import Array, Bool, Float, Genome, InputError, Int, Scores

__all__ = ["Archives", "expert_bounds"]

MAX_CELLS = 1_000_000


def expert_bounds(scores: Scores, low: float = 0.85, high: float = 1.15) -> np.ndarray:
    """The paper's grid: each axis spans 0.85 × the weakest expert's score to 1.15 × the strongest's on that task.

    Args:
        scores: of the experts, ``[K, task]``; rows with NaN are left out.
        low: factor on the weakest score.
        high: factor on the strongest score.

    Returns:
        ``[task, 2]`` float32. A task on which every expert scores zero would have an axis of no length: it gets [0, 1].
    """
    table = np.asarray(scores, np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    bounds = np.stack([low * table.min(0), high * table.max(0)], axis=1)
    bounds[bounds[:, 1] <= bounds[:, 0]] = (0.0, 1.0)
    return bounds.astype(np.float32)


def cell_winners(cells: Int[Array, " batch"], fitness: Float[Array, " batch"]) -> Bool[Array, " batch"]:
    """Who of a batch may enter its cell: the fittest, the earliest of equals.

    ``MapElitesRepertoire.add`` keeps every tied individual of a cell and scatters them onto the same index, in undefined order
    and leaf by leaf, so that an elite's genotype could come from one individual and its descriptor from another. With one
    candidate per cell the batch is inserted as if one by one, in order.

    Args:
        cells: cell of each individual.
        fitness: quality of each individual.
    """
    order = jnp.arange(cells.shape[0])
    same_cell = cells[:, None] == cells[None, :]
    better = fitness[None, :] > fitness[:, None]
    earlier_equal = (fitness[None, :] == fitness[:, None]) & (order[None, :] < order[:, None])
    return ~jnp.any(same_cell & (better | earlier_equal), axis=1)


class Archives(flax.struct.PyTreeNode):
    """The archives A_1 … A_K of a run; a pytree.

    Attributes:
        repertoires: QDax repertoires stacked on a leading task axis: ``genotypes`` ``[K, cell, …]``, ``fitnesses``
            ``[K, cell, 1]`` (−inf: empty), ``descriptors`` ``[K, cell, K-1]``, ``extra_scores`` with ``scores``
            ``[K, cell, K]`` and ``id`` ``[K, cell]``.
        edges: edges of the bins of each task's axis, ``[K, bins + 1]``.
    """

    repertoires: MapElitesRepertoire
    edges: Float[Array, "task edge"]

    @classmethod
    def create(cls, genome: Genome, bounds: Float[Array | np.ndarray, "task 2"], bins: int = 15) -> Archives:
        """Empty archives.

        Args:
            genome: an example, for shapes and dtypes.
            bounds: lower and upper end of each task's axis, ``[K, 2]``.
            bins: equal bins per axis.

        Raises:
            InputError: with fewer than two tasks, no bins, an empty axis, or more than a million cells per archive.
        """
        ends = np.asarray(bounds, np.float64)
        tasks = len(ends)
        if ends.ndim != 2 or ends.shape[1] != 2 or tasks < 2:
            raise InputError(
                f"archives need a lower and an upper bound for each of at least two tasks, got shape {ends.shape}."
            )
        if not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
            raise InputError(f"every archive axis needs a finite lower bound below its upper bound, got {ends.tolist()}.")
        if bins < 1 or bins ** (tasks - 1) > MAX_CELLS:
            raise InputError(
                f"{bins} bins on {tasks - 1} axes make {bins ** (tasks - 1)} cells per archive: choose bins so that there are "
                f"between 1 and {MAX_CELLS}."
            )
        edges = jnp.asarray(np.linspace(ends[:, 0], ends[:, 1], bins + 1, axis=1), jnp.float32)

        def empty(k: int) -> MapElitesRepertoire:
            axes = np.delete(ends, k, axis=0)
            centroids = compute_euclidean_centroids((bins,) * (tasks - 1), axes[:, 0].tolist(), axes[:, 1].tolist())
            extra = {"scores": jnp.zeros(tasks, jnp.float32), "id": jnp.int32(0)}
            return MapElitesRepertoire.init_default(genome, centroids, extra, tuple(extra))

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(empty(k) for k in range(tasks)))
        return cls(repertoires=stacked, edges=edges)

    @property
    def num_tasks(self) -> int:
        """Number K of tasks, and of archives."""
        return self.edges.shape[0]

    @property
    def bins(self) -> int:
        """Bins per axis."""
        return self.edges.shape[1] - 1

    def __getitem__(self, k: int | Int[Array, ""]) -> MapElitesRepertoire:
        """Archive A_k."""
        return jax.tree.map(lambda leaf: leaf[k], self.repertoires)

    def bin_indices(self, scores: Scores) -> Int[Array, "batch task"]:
        """The bin of each score on its task's axis, 0 to bins − 1; scores outside go to the end bins.

        A score on an edge belongs to the bin above it. (The reference code clips every axis with the size of the first.)

        Args:
            scores: ``[batch, K]``.
        """
        above = jnp.sum(scores[:, :, None] >= self.edges[None, :, :], axis=-1)
        return jnp.clip(above - 1, 0, self.bins - 1)

    def add(self, genomes: Genome, scores: Scores, ids: Int[Array, " batch"]) -> Archives:
        """Inserts every individual into every archive, where its cell is empty or held by a worse one (Algorithm 1).

        The result is that of inserting one after another in batch order; an equal does not replace an incumbent.

        Args:
            genomes: leading axis ``batch``.
            scores: ``[batch, K]``; individuals with a NaN or infinite score enter nowhere.
            ids: a number for each individual, kept with it.
        """
        scores = jnp.asarray(scores, jnp.float32)
        valid = jnp.all(jnp.isfinite(scores), axis=1)
        scores = jnp.where(valid[:, None], scores, 0.0)
        bins = self.bin_indices(scores)
        low, high = self.edges[:, 0], self.edges[:, -1]
        centres = low + (bins + 0.5) / self.bins * (high - low)
        extra: Any = {"scores": scores, "id": jnp.asarray(ids, jnp.int32)}

        def insert(repertoire: MapElitesRepertoire, k: Array) -> MapElitesRepertoire:
            others = jnp.arange(self.num_tasks - 1)
            others += others >= k
            cells = jnp.sum(bins[:, others] * self.bins ** jnp.arange(self.num_tasks - 1), axis=1)
            fitness = jnp.where(valid, scores[:, k], -jnp.inf)
            fitness = jnp.where(cell_winners(cells, fitness), fitness, -jnp.inf)
            # Binned by its own edges an individual goes to QDax at the centre of its cell: nearest-centroid search then has
            # no ties to break at bin edges. The true descriptors are put back afterwards.
            added = repertoire.add(genomes, centres[:, others], fitness, extra)
            kept: Any = added.extra_scores
            return added.replace(descriptors=kept["scores"][:, others])

        return self.replace(repertoires=jax.vmap(insert)(self.repertoires, jnp.arange(self.num_tasks)))

    @property
    def scores(self) -> Float[Array, "task cell task"]:
        """All K scores of the elite in each cell; zeros where it is empty."""
        kept: Any = self.repertoires.extra_scores
        return kept["scores"]

    @property
    def ids(self) -> Int[Array, "task cell"]:
        """Id of the elite in each cell; zero where it is empty."""
        kept: Any = self.repertoires.extra_scores
        return kept["id"]

    def occupied(self) -> Bool[Array, "task cell"]:
        """Which cells hold an elite."""
        return self.repertoires.fitnesses[..., 0] > -jnp.inf

    def best(self) -> tuple[Genome, Scores, Int[Array, " task"]]:
        """The elite of each archive: best quality, and of equals in quality the best on average over all tasks.

        Scores are counts of solved problems, so ties are common; a specialist that ties with an all-rounder must not stand
        for the archive.

        Returns:
            Genomes (leading axis K), scores ``[K, K]`` and ids ``[K]``.
        """
        fitness = self.repertoires.fitnesses[..., 0]
        leading = fitness == jnp.max(fitness, axis=1, keepdims=True)
        cells = jnp.argmax(jnp.where(leading, jnp.mean(self.scores, axis=-1), -jnp.inf), axis=1)
        rows = jnp.arange(self.num_tasks)
        return jax.tree.map(lambda x: x[rows, cells], (self.repertoires.genotypes, self.scores, self.ids))

    def best_on_average(self) -> tuple[Genome, Float[Array, " task"], Int[Array, ""]]:
        """The elite of best average over all tasks, whichever archive it is in: its genome, scores and id."""
        means = jnp.where(self.occupied(), jnp.mean(self.scores, axis=-1), -jnp.inf)
        place = jnp.unravel_index(jnp.argmax(means), means.shape)
        return jax.tree.map(lambda x: x[place], (self.repertoires.genotypes, self.scores, self.ids))
