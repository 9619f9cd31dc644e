"""CycleQD as ask/tell: MAP-Elites whose quality and behaviour characteristics swap roles every generation."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms.archive import Archives, expert_bounds
from cycleqd_jax.algorithms.selection import DistinctSelector, EliteSelector
from cycleqd_jax.operators.crossover import crossover_weights
from cycleqd_jax.types import Array, Float, Genome, GenomeSpace, InputError, Int, Lineage, PRNGKeyArray, Scores

__all__ = ["CycleQD", "CycleQDState"]


class CycleQDState(flax.struct.PyTreeNode):
    """All that a CycleQD run remembers; one pytree, to be checkpointed as it is.

    Attributes:
        archives: A_1 … A_K.
        generation: t, how often ``tell`` was called, int32.
        next_id: the id of the next individual told, int32. The initial individuals have 0, 1, ….
    """

    archives: Archives
    generation: Int[Array, ""]
    next_id: Int[Array, ""]


class CycleQD(flax.struct.PyTreeNode):
    """Algorithm 1 of the paper, a :class:`~cycleqd_jax.types.Searcher`.

    Generation t works on archive i = t mod K: parents come from A_i and mutation follows expert i. Every child is offered to
    all archives. The defaults are the paper's; the ``n`` children of one ``ask`` all come from the same A_i, and are inserted
    in order.

    Attributes:
        space: what genomes are; a pytree.
        bins: bins per archive axis (paper: 15).
        mu: mean μ of the crossover's raw weights (paper: 1.0).
        sigma: their standard deviation σ (paper: 0.03).
        selector: of parents: ``EliteSelector()``, or ``UniformSelector()`` for the paper's ablation.
        bounds: fixed ends of the archive axes, ``((low, high), …)`` for each task; None takes the paper's, from the scores of
            the experts.
    """

    space: GenomeSpace
    bins: int = flax.struct.field(pytree_node=False, default=15)
    mu: float = flax.struct.field(pytree_node=False, default=1.0)
    sigma: float = flax.struct.field(pytree_node=False, default=0.03)
    selector: DistinctSelector = flax.struct.field(pytree_node=False, default=EliteSelector())
    bounds: tuple[tuple[float, float], ...] | None = flax.struct.field(pytree_node=False, default=None)

    def init(self, genomes: Genome, scores: Scores) -> CycleQDState:
        """The state after the experts have been inserted into every archive.

        Args:
            genomes: of the experts, leading axis ``batch``; expert k is task k's.
            scores: ``[batch, K]``.

        Raises:
            InputError: with fewer than two tasks, fewer experts than tasks, another number of genomes than of scores, or an
                expert without finite scores.
        """
        table = np.asarray(scores, np.float32)
        if table.ndim != 2 or table.shape[1] < 2:
            raise InputError(f"CycleQD needs the scores of at least two tasks, got an array of shape {table.shape}.")
        if table.shape[0] < table.shape[1]:
            raise InputError(f"CycleQD needs an expert for each of its {table.shape[1]} tasks, got {table.shape[0]}.")
        count = jax.tree.leaves(genomes)[0].shape[0]
        if count != table.shape[0]:
            raise InputError(f"CycleQD needs one row of scores for each initial individual, got {table.shape[0]} for {count}.")
        if not np.isfinite(table).all():
            broken = np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist()
            raise InputError(f"the scores of every expert must be finite, but those of {broken} are not.")
        bounds = expert_bounds(table) if self.bounds is None else np.asarray(self.bounds, np.float32)
        if self.bounds is not None and not isinstance(self.bounds, tuple):
            raise InputError(f"bounds must be a tuple of (low, high) tuples, got {type(self.bounds).__name__}.")
        if len(bounds) != table.shape[1]:
            raise InputError(f"bounds must name a range for each of {table.shape[1]} tasks, got {len(bounds)}.")
        archives = Archives.create(jax.tree.map(lambda leaf: leaf[0], genomes), bounds, self.bins)
        return _insert(CycleQDState(archives, jnp.int32(-1), jnp.int32(0)), genomes, jnp.asarray(table))

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: CycleQDState, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, CycleQDState]:
        """``n`` children of the active archive.

        Child j depends on the state and on ``fold_in(key, j)`` alone, not on ``n``.

        Args:
            state: unchanged by asking, returned for the protocol's sake.
            key: consumed; a typed PRNG key.
            n: how many.

        Returns:
            Genomes (leading axis ``n``), their lineage, and the state.
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise InputError(f"ask needs a typed key, from jax.random.key, got an array of dtype {key.dtype}.")
        active = state.generation % state.archives.num_tasks
        repertoires = state.archives.repertoires
        cells = jnp.arange(repertoires.fitnesses.shape[1])
        # parents are selected as cell numbers, so that no archive of genomes is copied to take two of them
        slim = repertoires.replace(genotypes=jnp.broadcast_to(cells, repertoires.fitnesses.shape[:2]))
        archive = jax.tree.map(lambda leaf: leaf[active], slim)

        def child(j: Array) -> tuple[Genome, Lineage]:
            child_key = jax.random.fold_in(key, j)
            select_key, cross_key, mutate_key = jax.random.split(child_key, 3)
            parents: Any = self.selector.select(archive, select_key, 2)
            first = jax.tree.map(lambda leaf: leaf[active, parents.genotypes[0]], repertoires.genotypes)
            second = jax.tree.map(lambda leaf: leaf[active, parents.genotypes[1]], repertoires.genotypes)
            omega = crossover_weights(cross_key, self.mu, self.sigma)
            genome = self.space.mutate(mutate_key, self.space.crossover(first, second, omega), active)
            return genome, Lineage(parents.extra_scores["id"], active, jax.random.key_data(child_key), omega)

        # one child after another, not vmapped: the arithmetic of a child must not depend on how many there are
        genomes, lineage = jax.lax.map(child, jnp.arange(n))
        return genomes, lineage, state

    def tell(self, state: CycleQDState, genomes: Genome, scores: Scores, lineage: Lineage) -> CycleQDState:
        """Offers the children to every archive and moves on to the next task.

        Args:
            state: of the last ``ask``.
            genomes: the children, leading axis ``batch``.
            scores: ``[batch, K]``; a row with NaN is a quarantined child, which takes an id and enters nowhere.
            lineage: from ``ask``; CycleQD learns nothing from it.

        Raises:
            InputError: when there is not one row of scores for each child, or not one column for each task.
        """
        del lineage
        scores = jnp.asarray(scores, jnp.float32)
        expected = (jax.tree.leaves(genomes)[0].shape[0], state.archives.num_tasks)
        if scores.shape != expected:
            raise InputError(f"tell needs scores of shape {expected} (children, tasks), got {scores.shape}.")
        return _insert(state, genomes, scores)


@jax.jit
def _insert(state: CycleQDState, genomes: Genome, scores: Float[Array, "batch task"]) -> CycleQDState:
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    return CycleQDState(
        archives=state.archives.add(genomes, scores, ids),
        generation=state.generation + 1,
        next_id=state.next_id + scores.shape[0],
    )
