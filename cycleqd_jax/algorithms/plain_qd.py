"""Plain quality-diversity search: one MAP-Elites archive for all tasks."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire, compute_euclidean_centroids

from cycleqd_jax.algorithms.cells import add_to_cells, bin_centres, bin_edges, bin_indices, given_bounds, grid_cells
from cycleqd_jax.algorithms.common import (
    breed_without_task,
    check_children,
    check_experts,
    check_key,
    default_promotion,
    mean_scores,
    one_genome,
)
from cycleqd_jax.algorithms.leaders import leading_of
from cycleqd_jax.algorithms.selection import DistinctSelector, EliteSelector, extra_scores
from cycleqd_jax.types import (
    MAX_CELLS,
    AnyArray,
    Array,
    ArrayLeaf,
    Bool,
    Float,
    Genome,
    GenomeSpace,
    InputError,
    Int,
    Lineage,
    PRNGKeyArray,
    Scores,
)

__all__ = ["PlainQD", "PlainQDState"]


class PlainQDState(flax.struct.PyTreeNode):
    """The whole state of a plain QD search, as one pytree that can be checkpointed.

    Attributes:
        repertoire: the archive, a QDax repertoire: ``fitnesses`` ``[cell, 1]`` are averages over the tasks (−inf in empty
            cells), ``descriptors`` ``[cell, K]`` are the scores, and ``extra_scores`` has ``scores`` and ``id``.
        edges: bin edges of each task's axis, ``[K, bins + 1]``.
        generation: number of calls of ``tell``, int32.
        next_id: id of the next individual that ``tell`` gets, int32.
    """

    repertoire: MapElitesRepertoire
    edges: Float[ArrayLeaf, "*batch task edge"]
    generation: Int[ArrayLeaf, "*batch"]
    next_id: Int[ArrayLeaf, "*batch"]

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks: see :class:`~cycleqd_jax.types.SearchState`."""
        extra = extra_scores(self.repertoire)
        held = self.repertoire.fitnesses[:, 0] > -jnp.inf
        return leading_of(self.repertoire.genotypes, extra["scores"], extra["id"], held, count)

    def admits(self, scores: AnyArray) -> Bool[Array, " batch"]:
        """Whether individuals with these scores would enter the archive: see :class:`~cycleqd_jax.types.ArchiveState`."""
        return _admits(self.edges, self.repertoire.fitnesses, jnp.asarray(scores, jnp.float32))


class PlainQD(flax.struct.PyTreeNode):
    """MAP-Elites with one archive, a :class:`~cycleqd_jax.types.Searcher`: CycleQD without its cycle.

    The paper's first ablation is "QD", beside "CycleQD". What we have of the paper does not define its quality and behaviour
    characteristics. Here quality is the average of all scores, the behaviour characteristics are all K scores, and everything
    else is as in CycleQD. SVD mutation needs an expert, and no task is active, so the expert is drawn uniformly for each child.
    The lineage names that expert as the active task.

    An archive has ``bins``^K cells, each with room for a genome: for K tasks that is ``bins`` / K times the memory of CycleQD's
    archives.

    Attributes:
        space: the genome space, a pytree.
        bins: number of bins per archive axis.
        mu: mean μ of the raw crossover weights.
        sigma: standard deviation σ of the raw crossover weights.
        selector: selects the parents.
        bounds: lower and upper end of each task's axis, ``((low, high), …)``; None computes them from the scores of the
            experts.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.algorithms import PlainQD
    >>> from cycleqd_jax.genome import ExpertSpace
    >>> space = ExpertSpace.from_experts({"w": jnp.eye(4)}, [{"w": 2 * jnp.eye(4)}, {"w": 4 * jnp.eye(4)}])
    >>> search = PlainQD(space, bins=5)
    >>> state = search.init(jax.vmap(space.expert)(jnp.arange(2)), jnp.array([[0.8, 0.2], [0.1, 0.9]]))
    >>> children, lineage, state = search.ask(state, jax.random.key(0), 3)
    >>> state = search.tell(state, children, jnp.full((3, 2), 0.6), lineage)
    >>> int(state.generation), int(state.next_id)
    (1, 5)
    """

    space: GenomeSpace
    bins: int = flax.struct.field(pytree_node=False, default=15)
    mu: float = flax.struct.field(pytree_node=False, default=1.0)
    sigma: float = flax.struct.field(pytree_node=False, default=0.03)
    selector: DistinctSelector = flax.struct.field(pytree_node=False, default=EliteSelector())
    bounds: tuple[tuple[float, float], ...] | None = flax.struct.field(pytree_node=False, default=None)

    def init(self, genomes: Genome, scores: AnyArray, items: AnyArray | None = None) -> PlainQDState:
        """Inserts the experts into the archive.

        Args:
            genomes: the experts, leading axis ``batch``.
            scores: Float ``[batch, K]``.
            items: unused.

        Raises:
            InputError: see :meth:`CycleQD.init`; also for an archive of more than ``MAX_CELLS`` cells.
        """
        del items
        table = check_experts(genomes, scores, "PlainQD")
        tasks = table.shape[1]
        bounds = given_bounds(self.bounds, table, "PlainQD")
        if self.bins < 1 or self.bins**tasks > MAX_CELLS:
            raise InputError(
                f"expected 1 to {MAX_CELLS} cells in the archive, got {self.bins**tasks} of {self.bins} bins on {tasks} axes "
                "in PlainQD; choose another number of bins"
            )
        extra = {"scores": jnp.zeros(tasks, jnp.float32), "id": jnp.int32(0)}
        with default_promotion():
            ends = np.asarray(bounds, np.float64)
            centroids = compute_euclidean_centroids((self.bins,) * tasks, ends[:, 0].tolist(), ends[:, 1].tolist())
            repertoire = MapElitesRepertoire.init_default(one_genome(genomes), centroids, extra, tuple(extra))
        state = PlainQDState(repertoire, jnp.asarray(bin_edges(bounds, self.bins)), jnp.int32(-1), jnp.int32(0))
        return _insert(state, genomes, jnp.asarray(table))

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: PlainQDState, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, PlainQDState]:
        """Makes ``n`` children; child j depends on the state and on ``fold_in(key, j)`` only, not on ``n``.

        Args:
            state: the current state.
            key: a typed PRNG key; consumed.
            n: number of children.

        Returns:
            Genomes (leading axis ``n``), their lineage and the state, which is unchanged.

        Raises:
            InputError: ``key`` is not a typed key.
        """
        check_key(key, "PlainQD")
        genomes, lineage = breed_without_task(self.space, self.selector, state.repertoire, key, n, self.mu, self.sigma)
        return genomes, lineage, state

    def tell(
        self, state: PlainQDState, genomes: Genome, scores: AnyArray, lineage: Lineage, items: AnyArray | None = None
    ) -> PlainQDState:
        """Offers the children to the archive.

        Args:
            state: the state that ``ask`` returned.
            genomes: the children, leading axis ``batch``.
            scores: Float ``[batch, K]``; a row with NaN is a quarantined child, which gets an id but does not enter.
            lineage: unused.
            items: unused.

        Raises:
            InputError: ``scores`` has another shape.
        """
        del lineage, items
        return _insert(state, genomes, check_children(genomes, scores, state.edges.shape[0], "PlainQD"))


@jax.jit
def _insert(state: PlainQDState, genomes: Genome, scores: Float[Array, "batch task"]) -> PlainQDState:
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    quality = mean_scores(scores)
    scores = jnp.where(jnp.isfinite(quality)[:, None], scores, 0.0)
    place = bin_indices(state.edges, scores)
    cells, centres = grid_cells(place, state.edges.shape[1] - 1), bin_centres(state.edges, place)
    added = add_to_cells(state.repertoire, genomes, cells, centres, quality, {"scores": scores, "id": ids})
    return PlainQDState(
        repertoire=added.replace(descriptors=extra_scores(added)["scores"]),
        edges=state.edges,
        generation=state.generation + 1,
        next_id=state.next_id + scores.shape[0],
    )


@jax.jit
def _admits(
    edges: Float[Array, "task edge"], fitnesses: Float[Array, "cell 1"], scores: Float[Array, "batch task"]
) -> Bool[Array, " batch"]:
    cells = grid_cells(bin_indices(edges, scores), edges.shape[1] - 1)
    return mean_scores(scores) > fitnesses[cells, 0]
