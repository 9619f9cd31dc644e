"""Random search over merging coefficients."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from cycleqd_jax.algorithms.common import (
    check_box,
    check_children,
    check_experts,
    check_key,
    coefficient_lineage,
    coefficients_of,
    one_genome,
    with_coefficients,
)
from cycleqd_jax.algorithms.leaders import Leaders
from cycleqd_jax.types import AnyArray, Array, ArrayLeaf, Float, Genome, Int, Lineage, PRNGKeyArray, Scores

__all__ = ["RandomSearch", "RandomSearchState"]


class RandomSearchState(flax.struct.PyTreeNode):
    """The whole state of a random search, as one pytree that can be checkpointed.

    Attributes:
        leaders: the individuals with the highest averages so far.
        generation: number of calls of ``tell``, int32.
        next_id: id of the next individual that ``tell`` gets, int32.
    """

    leaders: Leaders
    generation: Int[ArrayLeaf, "*batch"]
    next_id: Int[ArrayLeaf, "*batch"]

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks: see :class:`~cycleqd_jax.types.SearchState`."""
        return self.leaders.leading(count)


class RandomSearch(flax.struct.PyTreeNode):
    """Merging coefficients drawn uniformly, a :class:`~cycleqd_jax.types.Searcher` over a ``CoefficientSpace``.

    Attributes:
        low: smallest coefficient.
        high: largest coefficient.
        leaders: how many individuals with the highest averages the state keeps.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.algorithms import RandomSearch
    >>> from cycleqd_jax.genome import CoefficientSpace
    >>> space = CoefficientSpace.from_experts({"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}, {"w": 3 * jnp.ones(2)}])
    >>> search = RandomSearch(high=0.8)
    >>> state = search.init(jax.vmap(space.expert)(jnp.arange(2)), jnp.array([[0.8, 0.2], [0.1, 0.9]]))
    >>> children, lineage, state = search.ask(state, jax.random.key(0), 3)
    >>> state = search.tell(state, children, jnp.full((3, 2), 0.6), lineage)
    >>> int(state.generation), state.leading(1)[2].tolist()
    (1, [2])
    """

    low: float = flax.struct.field(pytree_node=False, default=0.0)
    high: float = flax.struct.field(pytree_node=False, default=1.0)
    leaders: int = flax.struct.field(pytree_node=False, default=16)

    def init(self, genomes: Genome, scores: AnyArray, items: AnyArray | None = None) -> RandomSearchState:
        """The experts are the leading individuals so far.

        Args:
            genomes: the experts, leading axis ``batch``.
            scores: Float ``[batch, K]``.
            items: unused.

        Raises:
            InputError: see :meth:`CycleQD.init`; also for other genomes than coefficients, or an empty range.
        """
        del items
        check_box(self.low, self.high, "RandomSearch")
        coefficients_of(genomes, "RandomSearch")
        table = check_experts(genomes, scores, "RandomSearch")
        leaders = Leaders.empty(one_genome(genomes), table.shape[1], self.leaders)
        return _update(RandomSearchState(leaders, jnp.int32(-1), jnp.int32(0)), genomes, jnp.asarray(table))

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: RandomSearchState, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, RandomSearchState]:
        """Draws ``n`` children; child j depends on ``fold_in(key, j)`` only.

        Args:
            state: the current state.
            key: a typed PRNG key; consumed.
            n: number of children.

        Returns:
            Genomes (leading axis ``n``), their lineage, which has no parents, and the state, which is unchanged.

        Raises:
            InputError: ``key`` is not a typed key.
        """
        check_key(key, "RandomSearch")
        shape = jax.tree.leaves(state.leaders.genomes)[0].shape[1:]

        def child(j: Array) -> Array:
            return jax.random.uniform(jax.random.fold_in(key, j), shape, jnp.float32, self.low, self.high)

        coefficients = jax.vmap(child)(jnp.arange(n))
        return with_coefficients(state.leaders.genomes, coefficients), coefficient_lineage(key, coefficients), state

    def tell(
        self, state: RandomSearchState, genomes: Genome, scores: AnyArray, lineage: Lineage, items: AnyArray | None = None
    ) -> RandomSearchState:
        """Keeps the leading individuals.

        Args:
            state: the state that ``ask`` returned.
            genomes: the children, leading axis ``batch``.
            scores: Float ``[batch, K]``; a row with NaN is a quarantined child, which gets an id and nothing else.
            lineage: unused.
            items: unused.

        Raises:
            InputError: ``scores`` has another shape.
        """
        del lineage, items
        return _update(state, genomes, check_children(genomes, scores, state.leaders.scores.shape[1], "RandomSearch"))


@jax.jit
def _update(state: RandomSearchState, genomes: Genome, scores: Float[Array, "batch task"]) -> RandomSearchState:
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    leaders = state.leaders.update(genomes, scores, ids)
    return RandomSearchState(leaders, state.generation + 1, state.next_id + scores.shape[0])
