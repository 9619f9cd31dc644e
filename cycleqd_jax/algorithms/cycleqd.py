"""CycleQD: MAP-Elites in which the tasks provide the quality in turn, one in each generation, with an ask/tell interface."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from cycleqd_jax.algorithms.archive import Archives
from cycleqd_jax.algorithms.cells import given_bounds
from cycleqd_jax.algorithms.common import breed, check_children, check_experts, check_key, one_genome
from cycleqd_jax.algorithms.selection import DistinctSelector, EliteSelector
from cycleqd_jax.types import (
    AnyArray,
    Array,
    ArrayLeaf,
    Bool,
    Float,
    Genome,
    GenomeSpace,
    Int,
    Lineage,
    PRNGKeyArray,
    Scores,
)

__all__ = ["CycleQD", "CycleQDState"]


_POINTS = 64
"""Individuals whose distances to the centroids are computed at the same time."""


class CycleQDState(flax.struct.PyTreeNode):
    """The whole state of a CycleQD search, as one pytree that can be checkpointed.

    Attributes:
        archives: the archives A_1 … A_K.
        generation: number t of calls of ``tell``, int32.
        next_id: id of the next individual that ``tell`` gets, int32. The initial individuals have the ids 0, 1, ….
    """

    archives: Archives
    generation: Int[ArrayLeaf, "*batch"]
    next_id: Int[ArrayLeaf, "*batch"]

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks: see :class:`~cycleqd_jax.types.SearchState`."""
        return self.archives.leading(count)

    def admits(self, scores: AnyArray) -> Bool[Array, " batch"]:
        """Whether individuals with these scores would enter some archive: see :class:`~cycleqd_jax.types.ArchiveState`."""
        return _admits(self.archives.replace(repertoires=self.archives.repertoires.replace(genotypes=None)), scores)


class CycleQD(flax.struct.PyTreeNode):
    """Algorithm 1 of the paper, a :class:`~cycleqd_jax.types.Searcher`.

    In generation t archive i = t mod K is active: parents are selected from A_i, and mutation uses the singular directions of
    expert i. Every child is offered to all archives. The defaults are the paper's. All ``n`` children of one ``ask`` have
    parents from the same A_i; ``tell`` inserts them in order.

    Attributes:
        space: the genome space, a pytree.
        bins: number of bins per archive axis (paper: 15).
        mu: mean μ of the raw crossover weights (paper: 1.0).
        sigma: standard deviation σ of the raw crossover weights (paper: 0.03).
        selector: selects the parents: ``EliteSelector()``, or ``UniformSelector()`` for the paper's ablation.
        bounds: lower and upper end of each task's archive axis, ``((low, high), …)``; None computes them from the scores of the
            experts, as in the paper.
        cells: number of cells of a CVT per archive, instead of a grid; None is the grid.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.algorithms import CycleQD
    >>> from cycleqd_jax.genome import ExpertSpace
    >>> space = ExpertSpace.from_experts({"w": jnp.eye(4)}, [{"w": 2 * jnp.eye(4)}, {"w": 4 * jnp.eye(4)}])
    >>> search = CycleQD(space)
    >>> state = search.init(jax.vmap(space.expert)(jnp.arange(2)), jnp.array([[0.8, 0.2], [0.1, 0.9]]))
    >>> children, lineage, state = search.ask(state, jax.random.key(0), 3)
    >>> state = search.tell(state, children, jnp.full((3, 2), 0.5), lineage)
    >>> int(state.generation), int(state.next_id)
    (1, 5)
    """

    space: GenomeSpace
    bins: int = flax.struct.field(pytree_node=False, default=15)
    mu: float = flax.struct.field(pytree_node=False, default=1.0)
    sigma: float = flax.struct.field(pytree_node=False, default=0.03)
    selector: DistinctSelector = flax.struct.field(pytree_node=False, default=EliteSelector())
    bounds: tuple[tuple[float, float], ...] | None = flax.struct.field(pytree_node=False, default=None)
    cells: int | None = flax.struct.field(pytree_node=False, default=None)

    def init(self, genomes: Genome, scores: AnyArray, items: AnyArray | None = None) -> CycleQDState:
        """Inserts the experts into every archive.

        Args:
            genomes: the experts, leading axis ``batch``; expert k is the one of task k, more may follow.
            scores: Float ``[batch, K]``.
            items: unused.

        Returns:
            The first state.

        Raises:
            InputError: there are fewer than two tasks, fewer experts than tasks, not one row of scores for each genome, scores
                that are not finite, or bounds for another number of tasks.
        """
        del items
        table = check_experts(genomes, scores, "CycleQD")
        bounds = given_bounds(self.bounds, table, "CycleQD")
        archives = Archives.create(one_genome(genomes), bounds, self.bins, self.cells)
        return _insert(CycleQDState(archives, jnp.int32(-1), jnp.int32(0)), genomes, jnp.asarray(table))

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: CycleQDState, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, CycleQDState]:
        """Makes ``n`` children with parents from the active archive.

        Child j depends on the state and on ``fold_in(key, j)`` only, not on ``n``.

        Args:
            state: the current state.
            key: a typed PRNG key; consumed.
            n: number of children.

        Returns:
            Genomes (leading axis ``n``), their lineage and the state, which is unchanged.

        Raises:
            InputError: ``key`` is not a typed key.
        """
        check_key(key, "CycleQD")
        active = state.generation % state.archives.num_tasks
        repertoires = state.archives.repertoires
        cells = jnp.arange(repertoires.fitnesses.shape[1])
        slim = repertoires.replace(genotypes=jnp.broadcast_to(cells, repertoires.fitnesses.shape[:2]))
        archive = jax.tree.map(lambda leaf: leaf[active], slim)

        def genome_of(cell: Array) -> Genome:
            return jax.tree.map(lambda leaf: leaf[active, cell], repertoires.genotypes)

        genomes, lineage = breed(
            self.space, self.selector, archive, genome_of, key, n, lambda child_key: active, self.mu, self.sigma
        )
        return genomes, lineage, state

    def tell(
        self, state: CycleQDState, genomes: Genome, scores: AnyArray, lineage: Lineage, items: AnyArray | None = None
    ) -> CycleQDState:
        """Offers the children to every archive and makes the next task's archive active.

        Args:
            state: the state that ``ask`` returned.
            genomes: the children, leading axis ``batch``.
            scores: Float ``[batch, K]``; a row with NaN is a quarantined child, which gets an id but enters no archive.
            lineage: the lineage that ``ask`` returned; CycleQD does not use it.
            items: unused.

        Returns:
            The new state.

        Raises:
            InputError: ``scores`` has another shape.
        """
        del lineage, items
        return _insert(state, genomes, check_children(genomes, scores, state.archives.num_tasks, "CycleQD"))


@jax.jit
def _insert(state: CycleQDState, genomes: Genome, scores: Float[Array, "batch task"]) -> CycleQDState:
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    return CycleQDState(
        archives=state.archives.add(genomes, scores, ids),
        generation=state.generation + 1,
        next_id=state.next_id + scores.shape[0],
    )


@jax.jit
def _admits(archives: Archives, scores: Scores) -> Bool[Array, " batch"]:
    if not archives.is_cvt:
        return archives.admits(scores)
    # The distances of all points to all centroids would not fit into memory.
    return jax.lax.map(lambda row: archives.admits(row[None])[0], scores, batch_size=_POINTS)
