"""CMA-ES over merging coefficients, with evosax."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import CMA_ES

from cycleqd_jax.algorithms.common import (
    check_children,
    check_experts,
    check_key,
    coefficient_lineage,
    coefficients_of,
    default_promotion,
    mean_scores,
    one_genome,
    with_coefficients,
)
from cycleqd_jax.algorithms.leaders import Leaders
from cycleqd_jax.types import (
    MIN_CMAES_POPULATION,
    AnyArray,
    Array,
    ArrayLeaf,
    Float,
    Genome,
    InputError,
    Int,
    Lineage,
    PRNGKeyArray,
    Scores,
)

__all__ = ["CMAES", "CMAESState"]


class CMAESState(flax.struct.PyTreeNode):
    """The whole state of a CMA-ES, as one pytree that can be checkpointed.

    Attributes:
        distribution: evosax' state: mean, step size, covariance and evolution paths of the coefficients.
        leaders: the individuals with the highest averages so far.
        generation: number of calls of ``tell``, int32.
        next_id: id of the next individual that ``tell`` gets, int32.
    """

    distribution: Any
    leaders: Leaders
    generation: Int[ArrayLeaf, "*batch"]
    next_id: Int[ArrayLeaf, "*batch"]

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks: see :class:`~cycleqd_jax.types.SearchState`."""
        return self.leaders.leading(count)


class CMAES(flax.struct.PyTreeNode):
    """CMA-ES over merging coefficients, a :class:`~cycleqd_jax.types.Searcher` over a ``CoefficientSpace``.

    It maximises the average over the tasks, from the uniform merge (every coefficient 1 / K). A quarantined child has the worst
    rank; of equal children, the earlier one has the better rank. A generation without any score changes nothing but its number.

    Attributes:
        population: children per generation λ, at least 4; 4 + 3 ln(G K) is the usual number.
        sigma: first step size σ of the coefficients.
        leaders: how many individuals with the highest averages the state keeps.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.algorithms import CMAES
    >>> from cycleqd_jax.genome import CoefficientSpace
    >>> space = CoefficientSpace.from_experts({"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}, {"w": 3 * jnp.ones(2)}])
    >>> search = CMAES(population=4)
    >>> state = search.init(jax.vmap(space.expert)(jnp.arange(2)), jnp.array([[0.8, 0.2], [0.1, 0.9]]))
    >>> children, lineage, state = search.ask(state, jax.random.key(0), 4)
    >>> children.coefficients.shape, lineage.parents.tolist()[0]  # then search.tell(state, children, scores, lineage)
    ((4, 1, 2), [-1, -1])
    """

    population: int = flax.struct.field(pytree_node=False, default=8)
    sigma: float = flax.struct.field(pytree_node=False, default=0.2)
    leaders: int = flax.struct.field(pytree_node=False, default=16)

    def init(self, genomes: Genome, scores: AnyArray, items: AnyArray | None = None) -> CMAESState:
        """The distribution around the uniform merge; the experts are the leading individuals so far.

        Args:
            genomes: the experts, leading axis ``batch``.
            scores: Float ``[batch, K]``.
            items: unused.

        Raises:
            InputError: see :meth:`CycleQD.init`; also for other genomes than coefficients, a population below 4, or a step size
                that is not positive.
        """
        del items
        if self.population < MIN_CMAES_POPULATION or not 0 < self.sigma < np.inf:
            raise InputError(
                f"expected a population of at least {MIN_CMAES_POPULATION} and a positive sigma, got {self.population} and "
                f"{self.sigma} in CMAES; correct them"
            )
        shape = coefficients_of(genomes, "CMAES").shape[1:]
        table = check_experts(genomes, scores, "CMAES")
        leaders = Leaders.empty(one_genome(genomes), table.shape[1], self.leaders)
        start = jnp.full(shape[0] * shape[1], 1 / shape[1], jnp.float32)
        with default_promotion():
            algorithm, options = _algorithm(self.population, start.size), _options(self.population, start.size, self.sigma)
            distribution = algorithm.init(jax.random.key(0), start, options)
        distribution = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), distribution)
        state = CMAESState(distribution, leaders, jnp.int32(-1), jnp.int32(0))
        return _next_state(state, genomes, jnp.asarray(table), distribution)

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: CMAESState, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, CMAESState]:
        """Draws ``n`` children; child j does not depend on ``n``.

        Args:
            state: the current state.
            key: a typed PRNG key; consumed.
            n: number of children, at most the population. Fewer, as at the end of a budget, count as the others having the
                worst ranks.

        Returns:
            Genomes (leading axis ``n``), their lineage, which has no parents, and the new state.

        Raises:
            InputError: ``key`` is not a typed key, or ``n`` exceeds the population.
        """
        check_key(key, "CMAES")
        if n > self.population:
            raise InputError(
                f"expected at most {self.population} children, the population, got {n} in CMAES.ask; ask for fewer"
            )
        size = state.distribution.mean.size
        with default_promotion():
            sampled, distribution = _algorithm(self.population, size).ask(
                key, state.distribution, _options(self.population, size, self.sigma)
            )
        coefficients = sampled[:n].reshape(n, *jax.tree.leaves(state.leaders.genomes)[0].shape[1:])
        lineage = coefficient_lineage(key, coefficients)
        return with_coefficients(state.leaders.genomes, coefficients), lineage, state.replace(distribution=distribution)

    def tell(
        self, state: CMAESState, genomes: Genome, scores: AnyArray, lineage: Lineage, items: AnyArray | None = None
    ) -> CMAESState:
        """Moves the distribution towards the better children.

        Args:
            state: the state that ``ask`` returned.
            genomes: the children, leading axis ``batch``.
            scores: Float ``[batch, K]``; a row with NaN is a quarantined child, which has the worst rank and
                counts as if it lay at the mean.
            lineage: unused.
            items: unused.

        Raises:
            InputError: ``scores`` has another shape.
        """
        del lineage, items
        table = check_children(genomes, scores, state.leaders.scores.shape[1], "CMAES")
        return self._tell(state, genomes, table)

    @jax.jit
    def _tell(self, state: CMAESState, genomes: Genome, scores: Float[Array, "batch task"]) -> CMAESState:
        size, means = state.distribution.mean.size, mean_scores(scores)
        missing = self.population - means.shape[0]
        children = coefficients_of(genomes, "CMAES").reshape(-1, size)
        # Quarantined and missing children lie at the mean, where their weights have no effect.
        children = jnp.where(means[:, None] > -jnp.inf, children, state.distribution.mean)
        children = jnp.concatenate([children, jnp.broadcast_to(state.distribution.mean[None], (missing, size))])
        # evosax minimises. Distinct ranks instead of averages make ties depend on the order of the children only.
        losses = jnp.concatenate([-means, jnp.full(missing, jnp.inf)])
        ranks = jnp.argsort(jnp.argsort(losses)).astype(jnp.float32)
        with default_promotion():
            options = _options(self.population, size, self.sigma)
            updated, _ = _algorithm(self.population, size).tell(jax.random.key(0), children, ranks, state.distribution, options)
        usable = jnp.any(means > -jnp.inf)
        distribution = jax.tree.map(lambda new, old: jnp.where(usable, new, old), updated, state.distribution)
        return _next_state(state, genomes, scores, distribution)


@functools.cache
def _algorithm(population: int, size: int) -> CMA_ES:
    """Evosax' algorithm, which is a static argument of its jitted functions."""
    return CMA_ES(population, jnp.zeros(size, jnp.float32))


def _options(population: int, size: int, sigma: float) -> Any:
    return _algorithm(population, size).default_params.replace(std_init=jnp.float32(sigma))


def _next_state(state: CMAESState, genomes: Genome, scores: Float[Array, "batch task"], distribution: Any) -> CMAESState:
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    leaders = state.leaders.update(genomes, scores, ids)
    return CMAESState(distribution, leaders, state.generation + 1, state.next_id + scores.shape[0])
