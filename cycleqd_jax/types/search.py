"""Contracts of genome spaces and searchers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from cycleqd_jax.types.arrays import AnyArray, Genome, Items, Params, Scores

__all__ = ["ArchiveState", "GenomeSpace", "Lineage", "SearchState", "Searcher"]


class Lineage(NamedTuple):
    """The origin of the children of one ``ask``, a pytree.

    The parents, the active task and the key determine a child. A child without parents is determined by its coefficients.

    Attributes:
        parents: ids of the two parents, Int ``[batch, 2]``; -1 for no parent.
        active: index of the expert whose directions the mutation follows, Int ``[batch]``; -1 for none. In CycleQD it
            is that of the active task.
        key: raw data of each child's PRNG key, UInt32 ``[batch, 2]``.
        omega: raw crossover weights ω1, ω2, Float ``[batch, 2]``; zero for a child without parents.
        coefficients: the genomes of children without parents, merging coefficients of G groups of layers and K experts, Float
            ``[batch, G, K]``; None for children that have parents.
    """

    parents: Int[Array, "batch 2"]
    active: Int[Array, " batch"]
    key: UInt32[Array, "batch 2"]
    omega: Float[Array, "batch 2"]
    coefficients: Float[Array, "batch g k"] | None = None


@runtime_checkable
class GenomeSpace(Protocol):
    """The genomes that a search can reach, and the operators on them.

    Implementations are pytrees. All methods must be pure and work under ``jax.jit``, and under ``jax.vmap`` over keys and
    genomes.
    """

    @property
    def num_experts(self) -> int:
        """The number K of experts: those of the tasks, in their order, then others."""
        ...

    def expert(self, k: int) -> Genome:
        """The genome whose weights are those of expert k."""
        ...

    def crossover(self, parent1: Genome, parent2: Genome, omega: Float[Array, 2]) -> Genome:
        """The linear crossover of two genomes with the raw weights ω1, ω2 (see ``operators.crossover_weights``)."""
        ...

    def mutate(self, key: PRNGKeyArray, genome: Genome, active: Int[Array, ""]) -> Genome:
        """The mutation of a child along the directions of expert ``active``; the key is consumed."""
        ...

    def express(self, genome: Genome) -> Params:
        """The weights of the model of ``genome``."""
        ...


@runtime_checkable
class Searcher(Protocol):
    """A black-box optimiser with an ask/tell interface.

    Implementations must be pure: all that changes is in the state, one pytree, and the same arguments give the same results. A
    search that is resumed from a checkpoint relies on it. The search calls ``init`` once, then ``ask`` and ``tell`` in turn.
    """

    def init(self, genomes: Genome, scores: Scores, items: Items | None = None) -> Any:
        """The first state, from the genomes (leading axis ``batch``), scores and items of the initial individuals."""
        ...

    def ask(self, state: Any, key: PRNGKeyArray, n: int) -> tuple[Genome, Lineage, Any]:
        """Makes ``n`` children: their genomes (leading axis ``n``), their lineage and the new state; the key is consumed."""
        ...

    def tell(self, state: Any, genomes: Genome, scores: Scores, lineage: Lineage, items: Items | None = None) -> Any:
        """The new state, from the scores of all children of the last ``ask``; rows with NaN must not count as scores.

        The search loop always passes ``items``. Callers without scores of single problems leave it out.
        """
        ...


@runtime_checkable
class SearchState(Protocol):
    """What the states of all searchers of this package offer to a run, beside being pytrees."""

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks that the search holds, the experts included.

        The final model is chosen among them. Each is there once; ties are broken by the smallest id. An individual with a
        score of NaN is never there. The method does not work under ``jax.jit``.

        Args:
            count: the most individuals; fewer are returned where the search holds fewer.

        Returns:
            Genomes (leading axis ``individual``), scores ``[individual, K]`` and ids, from the highest average.

        Raises:
            InputError: ``count`` is below 1.
        """
        ...


@runtime_checkable
class ArchiveState(SearchState, Protocol):
    """The state of a searcher with archives of cells."""

    def admits(self, scores: Scores) -> Bool[Array, " batch"]:
        """Whether an individual with these scores would enter some archive, if it were inserted alone.

        Args:
            scores: finite, ``[batch, K]``.
        """
        ...
