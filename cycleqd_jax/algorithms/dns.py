"""Dominated Novelty Search: one unstructured population, whose members compete with fitter neighbours only.

Bahlous-Boldi, Faldor, Grillotti, Janmohamed, Coiffard, Spector, Cully, *Dominated Novelty Search: Rethinking Local Competition
in Quality-Diversity*, GECCO 2025 (arXiv 2502.00593). QDax has it after release 0.5.0, the newest on PyPI. Until a release has
it, the formula of the paper is here, on a QDax repertoire.
"""

from __future__ import annotations

import functools
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from qdax.core.containers.ga_repertoire import GARepertoire

from cycleqd_jax.algorithms.common import breed_without_task, check_children, check_experts, check_key, mean_scores, one_genome
from cycleqd_jax.algorithms.leaders import leading_of
from cycleqd_jax.algorithms.selection import DistinctSelector, UniformSelector, extra_scores
from cycleqd_jax.types import (
    AnyArray,
    Array,
    ArrayLeaf,
    Float,
    Genome,
    GenomeSpace,
    InputError,
    Int,
    Lineage,
    PRNGKeyArray,
    Scores,
)

__all__ = ["DominatedNovelty", "DominatedNoveltyState", "dominated_novelty"]


def dominated_novelty(
    fitness: Float[Array, " batch"], descriptors: Float[Array, "batch axis"], neighbours: int
) -> Float[Array, " batch"]:
    """The mean distance of each individual to its nearest fitter individuals; infinite for the fittest.

    Of individuals of equal fitness, the earlier one counts as fitter: otherwise copies of the fittest would all be kept.

    Args:
        fitness: −inf for a place without an individual, whose result is −inf.
        descriptors: ``[batch, axis]``, finite.
        neighbours: how many fitter individuals are averaged; fewer where there are fewer.
    """
    order = jnp.arange(fitness.shape[0])
    greater = fitness[None, :] > fitness[:, None]
    fitter = greater | ((fitness[None, :] == fitness[:, None]) & (order[None, :] < order[:, None]))
    fitter &= (fitness > -jnp.inf)[None, :]
    distance = jnp.linalg.norm(descriptors[:, None] - descriptors[None, :], axis=-1)
    nearest = -jax.lax.top_k(-jnp.where(fitter, distance, jnp.inf), min(neighbours, fitness.shape[0]))[0]
    found = jnp.isfinite(nearest)
    count = jnp.sum(found, axis=1)
    mean = jnp.sum(jnp.where(found, nearest, 0.0), axis=1) / jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.where(fitness == -jnp.inf, -jnp.inf, jnp.where(count > 0, mean, jnp.inf))


class DominatedNoveltyState(flax.struct.PyTreeNode):
    """The whole state of a Dominated Novelty Search, as one pytree that can be checkpointed.

    Attributes:
        repertoire: the population, a QDax repertoire: ``fitnesses`` ``[member, 1]`` are averages over the tasks (−inf for a
            missing member), and ``extra_scores`` has ``scores``, ``id`` and ``descriptors``.
        generation: number of calls of ``tell``, int32.
        next_id: id of the next individual that ``tell`` gets, int32.
    """

    repertoire: GARepertoire
    generation: Int[ArrayLeaf, "*batch"]
    next_id: Int[ArrayLeaf, "*batch"]

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks: see :class:`~cycleqd_jax.types.SearchState`."""
        extra = extra_scores(self.repertoire)
        held = self.repertoire.fitnesses[:, 0] > -jnp.inf
        return leading_of(self.repertoire.genotypes, extra["scores"], extra["id"], held, count)


class DominatedNovelty(flax.struct.PyTreeNode):
    """Dominated Novelty Search, a :class:`~cycleqd_jax.types.Searcher`.

    Fitness is the average over the tasks. The descriptors are the scores of all problems, so that two individuals are far from
    each other if they solve different problems, or the K scores of the tasks. No grid has to be chosen for either. Children are
    made as by :class:`~cycleqd_jax.algorithms.PlainQD`, of parents that are drawn from the population.

    Attributes:
        space: the genome space, a pytree.
        population: number of members.
        descriptors: ``"items"`` (a task with more problems has more weight) or ``"scores"``. With ``"items"``, ``init`` and
            ``tell`` need the scores of the problems.
        neighbours: how many fitter neighbours the distance is averaged over (paper: 3).
        mu: mean μ of the raw crossover weights.
        sigma: standard deviation σ of the raw crossover weights.
        selector: selects the parents.
    """

    space: GenomeSpace
    population: int = flax.struct.field(pytree_node=False, default=32)
    descriptors: Literal["items", "scores"] = flax.struct.field(pytree_node=False, default="items")
    neighbours: int = flax.struct.field(pytree_node=False, default=3)
    mu: float = flax.struct.field(pytree_node=False, default=1.0)
    sigma: float = flax.struct.field(pytree_node=False, default=0.03)
    selector: DistinctSelector = flax.struct.field(pytree_node=False, default=UniformSelector())

    def init(self, genomes: Genome, scores: AnyArray, items: AnyArray | None = None) -> DominatedNoveltyState:
        """The experts are the first members.

        Args:
            genomes: the experts, leading axis ``batch``.
            scores: Float ``[batch, K]``.
            items: the score of every problem, Float ``[batch, item]``; unused where the descriptors are the scores.

        Raises:
            InputError: see :meth:`CycleQD.init`; also for a population that is smaller than the number of experts, or items
                that are missing or of another shape.
        """
        table = check_experts(genomes, scores, "DominatedNovelty")
        if self.population < len(table) or self.neighbours < 1:
            raise InputError(
                f"expected a population of at least {len(table)} and one or more neighbours, got {self.population} and "
                f"{self.neighbours} in DominatedNovelty; increase them"
            )
        found = self._descriptors(jnp.asarray(table), items, None, "init")
        one, size = one_genome(genomes), self.population
        repertoire = GARepertoire(
            genotypes=jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), one),
            fitnesses=jnp.full((size, 1), -jnp.inf, jnp.float32),
            extra_scores={
                "scores": jnp.zeros((size, table.shape[1]), jnp.float32),
                "id": jnp.full(size, -1, jnp.int32),
                "descriptors": jnp.zeros((size, found.shape[1]), jnp.float32),
            },
            keys_extra_scores=("scores", "id", "descriptors"),
        )
        state = DominatedNoveltyState(repertoire, jnp.int32(-1), jnp.int32(0))
        return _compete(state, genomes, jnp.asarray(table), found, self.neighbours)

    def _descriptors(
        self, scores: Float[Array, "batch task"], items: AnyArray | None, width: int | None, method: str
    ) -> Float[Array, "batch axis"]:
        """The descriptors of individuals; ``width`` is the number of problems where it is known."""
        if self.descriptors == "scores":
            return scores
        shape = None if items is None else tuple(items.shape)
        if items is None or len(items.shape) != 2 or len(items) != len(scores) or width not in (None, items.shape[1]):
            wanted = "items" if width is None else str(width)
            raise InputError(
                f"expected the scores of all problems, of shape ({len(scores)}, {wanted}), got {shape} in DominatedNovelty."
                f'{method}; pass items, or set descriptors="scores"'
            )
        return jnp.asarray(items, jnp.float32)

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: DominatedNoveltyState, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, DominatedNoveltyState]:
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
        check_key(key, "DominatedNovelty")
        genomes, lineage = breed_without_task(self.space, self.selector, state.repertoire, key, n, self.mu, self.sigma)
        return genomes, lineage, state

    def tell(
        self,
        state: DominatedNoveltyState,
        genomes: Genome,
        scores: AnyArray,
        lineage: Lineage,
        items: AnyArray | None = None,
    ) -> DominatedNoveltyState:
        """Keeps the members and children with the highest dominated novelty.

        Args:
            state: the state that ``ask`` returned.
            genomes: the children, leading axis ``batch``.
            scores: Float ``[batch, K]``; a row with NaN is a quarantined child, which gets an id but does not enter.
            lineage: unused.
            items: the score of every problem, Float ``[batch, item]``; unused where the descriptors are the scores.

        Raises:
            InputError: ``scores`` or ``items`` has another shape, or items are missing.
        """
        del lineage
        extra = extra_scores(state.repertoire)
        table = check_children(genomes, scores, extra["scores"].shape[1], "DominatedNovelty")
        found = self._descriptors(table, items, extra["descriptors"].shape[1], "tell")
        return _compete(state, genomes, table, found, self.neighbours)


@functools.partial(jax.jit, static_argnames="neighbours")
def _compete(
    state: DominatedNoveltyState,
    genomes: Genome,
    scores: Float[Array, "batch task"],
    descriptors: Float[Array, "batch axis"],
    neighbours: int,
) -> DominatedNoveltyState:
    old, size = state.repertoire, state.repertoire.fitnesses.shape[0]
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    fitness = mean_scores(scores)
    scores, descriptors = (jnp.where(jnp.isfinite(fitness)[:, None], table, 0.0) for table in (scores, descriptors))
    new = (genomes, fitness[:, None], {"scores": scores, "id": ids, "descriptors": descriptors})
    everyone = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), (old.genotypes, old.fitnesses, dict(extra_scores(old))), new)
    novelty = dominated_novelty(everyone[1][:, 0], everyone[2]["descriptors"], neighbours)
    # Sorting is stable: of equals, the earlier one is kept. Members keep their order, which decides between equals later.
    kept = jnp.sort(jnp.lexsort((-everyone[1][:, 0], -novelty))[:size])
    genotypes, fitnesses, extra = jax.tree.map(lambda x: x[kept], everyone)
    return DominatedNoveltyState(
        repertoire=old.replace(genotypes=genotypes, fitnesses=fitnesses, extra_scores=extra),
        generation=state.generation + 1,
        next_id=state.next_id + scores.shape[0],
    )
