"""NSGA-II (Deb et al., 2002) over merging coefficients, with the repertoire and the Pareto fronts of QDax.

Survival and variation differ from those of QDax 0.5.0, for these reasons:

- ``NSGA2Repertoire.add`` starts to fill the last front with the individual of the *smallest* crowding distance, which may be
  dominated. Objectives without spread give NaN distances. ``extra_scores`` are those of the batch instead of the survivors'.
- ``polynomial_mutation`` exchanges the distances to both bounds, so that a coefficient at a bound never leaves it. The experts
  are at the bounds. There is no simulated binary crossover.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from qdax.core.containers.nsga2_repertoire import NSGA2Repertoire
from qdax.utils.pareto_front import compute_masked_pareto_front

from cycleqd_jax.algorithms.common import (
    check_box,
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
from cycleqd_jax.algorithms.selection import extra_scores
from cycleqd_jax.types import AnyArray, Array, ArrayLeaf, Float, Genome, InputError, Int, Lineage, PRNGKeyArray, Scores

__all__ = ["NSGA2", "NSGA2State", "crowding_distances", "front_ranks"]


def front_ranks(objectives: Float[Array, "batch task"]) -> Int[Array, " batch"]:
    """The Pareto front of every individual, 0 for the first; larger is better in every objective.

    Args:
        objectives: rows of −inf are places without an individual; they get the rank ``batch``.
    """
    missing = jnp.any(objectives == -jnp.inf, axis=1)
    values = jnp.where(missing[:, None], 0.0, objectives)
    count = missing.shape[0]

    def peel(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ranks, done, rank = carry
        with default_promotion():
            front = compute_masked_pareto_front(values, done) & ~done
        return jnp.where(front, rank, ranks), done | front, rank + 1

    start = (jnp.full(count, count, jnp.int32), missing, jnp.int32(0))
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[1]), peel, start)[0]


def crowding_distances(objectives: Float[Array, "batch task"], ranks: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """The crowding distance of every individual within its front: the sum of the gaps between its neighbours.

    Each objective is divided by its range in the front. The first and the last of a front have an infinite distance. An
    objective without a range adds nothing.

    Args:
        objectives: finite.
        ranks: the front of every individual, 0 to ``batch``.
    """
    count = ranks.shape[0]

    def along(values: Float[Array, " batch"]) -> Float[Array, " batch"]:
        order = jnp.lexsort((values, ranks))
        v, r = values[order], ranks[order]
        low, high = (f(values, ranks, num_segments=count + 1)[r] for f in (jax.ops.segment_min, jax.ops.segment_max))
        width = high - low
        same = r[1:] == r[:-1]
        ends = jnp.concatenate([jnp.ones(1, bool), ~same]) | jnp.concatenate([~same, jnp.ones(1, bool)])
        gap = (jnp.roll(v, -1) - jnp.roll(v, 1)) / jnp.where(width > 0, width, 1.0)
        distance = jnp.where(width > 0, jnp.where(ends, jnp.inf, gap), 0.0)
        return jnp.zeros(count, jnp.float32).at[order].set(distance)

    return jnp.sum(jax.vmap(along, in_axes=1, out_axes=1)(objectives), axis=1)


def binary_crossover(
    key: PRNGKeyArray, parent1: Float[Array, "g k"], parent2: Float[Array, "g k"], eta: float, probability: float = 0.9
) -> Float[Array, "g k"]:
    """One child of simulated binary crossover (Deb and Agrawal, 1995), in which a coefficient is crossed with probability 1/2.

    Args:
        key: consumed.
        parent1: one parent.
        parent2: the other parent.
        eta: distribution index.
        probability: the probability of crossover; otherwise the child is ``parent1``.
    """
    cross_key, each_key, spread_key, side_key = jax.random.split(key, 4)
    u = jax.random.uniform(spread_key, parent1.shape)
    spread = jnp.where(u < 0.5, 2 * u, 0.5 / (1 - u)) ** (1 / (eta + 1))
    side = jnp.where(jax.random.bernoulli(side_key), 1.0, -1.0)
    crossed = 0.5 * (parent1 + parent2 + side * spread * (parent1 - parent2))
    chosen = jax.random.bernoulli(each_key, shape=parent1.shape) & jax.random.bernoulli(cross_key, probability)
    return jnp.where(chosen, crossed, parent1)


def polynomial_mutation(
    key: PRNGKeyArray, genome: Float[Array, "g k"], eta: float, low: float, high: float
) -> Float[Array, "g k"]:
    """Polynomial mutation within bounds (Deb, 2001); each of n coefficients changes with probability 1/n.

    Args:
        key: consumed.
        genome: coefficients; clipped to the bounds first.
        eta: distribution index.
        low: lower bound.
        high: upper bound.
    """
    each_key, size_key = jax.random.split(key)
    x = jnp.clip(genome, low, high)
    u = jax.random.uniform(size_key, x.shape)
    below, above = (1 - (x - low) / (high - low)) ** (eta + 1), (1 - (high - x) / (high - low)) ** (eta + 1)
    down = (2 * u + (1 - 2 * u) * below) ** (1 / (eta + 1)) - 1
    up = 1 - (2 * (1 - u) + (2 * u - 1) * above) ** (1 / (eta + 1))
    moved = x + jnp.where(u < 0.5, down, up) * (high - low)
    chosen = jax.random.bernoulli(each_key, 1 / x.size, x.shape)
    return jnp.clip(jnp.where(chosen, moved, x), low, high)


class NSGA2State(flax.struct.PyTreeNode):
    """The whole state of an NSGA-II, as one pytree that can be checkpointed.

    Attributes:
        repertoire: the population, a QDax repertoire: ``fitnesses`` ``[member, K]`` are the scores (−inf for a missing member),
            ``extra_scores`` has ``id``.
        leaders: the individuals with the highest averages so far; a member of a front may not be among them.
        generation: number of calls of ``tell``, int32.
        next_id: id of the next individual that ``tell`` gets, int32.
    """

    repertoire: NSGA2Repertoire
    leaders: Leaders
    generation: Int[ArrayLeaf, "*batch"]
    next_id: Int[ArrayLeaf, "*batch"]

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals with the highest averages over all tasks: see :class:`~cycleqd_jax.types.SearchState`."""
        return self.leaders.leading(count)


class NSGA2(flax.struct.PyTreeNode):
    """NSGA-II over merging coefficients, a :class:`~cycleqd_jax.types.Searcher` over a ``CoefficientSpace``.

    Every score is an objective. The initial population has ``population`` individuals: the experts, and children whose
    coefficients are drawn uniformly. Quarantined individuals count towards it. After that, parents win binary tournaments by
    front and crowding distance. A child is made by simulated binary crossover with probability 0.9, and by polynomial mutation,
    which changes one coefficient on average.

    Attributes:
        population: number of members.
        low: smallest coefficient.
        high: largest coefficient.
        eta_crossover: distribution index of the crossover; a larger one keeps children closer to their parents.
        eta_mutation: distribution index of the mutation; a larger one makes smaller changes.
        leaders: how many individuals with the highest averages the state keeps.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.algorithms import NSGA2
    >>> from cycleqd_jax.genome import CoefficientSpace
    >>> space = CoefficientSpace.from_experts({"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}, {"w": 3 * jnp.ones(2)}])
    >>> search = NSGA2(population=4)
    >>> state = search.init(jax.vmap(space.expert)(jnp.arange(2)), jnp.array([[0.8, 0.2], [0.1, 0.9]]))
    >>> children, lineage, state = search.ask(state, jax.random.key(0), 3)
    >>> children.coefficients.shape, lineage.parents.tolist()[0]  # then search.tell(state, children, scores, lineage)
    ((3, 1, 2), [-1, -1])
    """

    population: int = flax.struct.field(pytree_node=False, default=32)
    low: float = flax.struct.field(pytree_node=False, default=0.0)
    high: float = flax.struct.field(pytree_node=False, default=1.0)
    eta_crossover: float = flax.struct.field(pytree_node=False, default=15.0)
    eta_mutation: float = flax.struct.field(pytree_node=False, default=20.0)
    leaders: int = flax.struct.field(pytree_node=False, default=16)

    def init(self, genomes: Genome, scores: AnyArray, items: AnyArray | None = None) -> NSGA2State:
        """The experts are the first members.

        Args:
            genomes: the experts, leading axis ``batch``.
            scores: Float ``[batch, K]``.
            items: unused.

        Raises:
            InputError: see :meth:`CycleQD.init`; also for other genomes than coefficients, an empty range, negative indices,
                or a population that is smaller than the number of experts.
        """
        del items
        check_box(self.low, self.high, "NSGA2")
        coefficients_of(genomes, "NSGA2")
        table = check_experts(genomes, scores, "NSGA2")
        if self.population < len(table) or min(self.eta_crossover, self.eta_mutation) < 0:
            raise InputError(
                f"expected a population of at least {len(table)} and distribution indices of zero or more, got "
                f"{self.population}, {self.eta_crossover} and {self.eta_mutation} in NSGA2; correct them"
            )
        one, size = one_genome(genomes), self.population
        repertoire = NSGA2Repertoire(
            genotypes=jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), one),
            fitnesses=jnp.full((size, table.shape[1]), -jnp.inf, jnp.float32),
            extra_scores={"id": jnp.full(size, -1, jnp.int32)},
            keys_extra_scores=("id",),
        )
        state = NSGA2State(repertoire, Leaders.empty(one, table.shape[1], self.leaders), jnp.int32(-1), jnp.int32(0))
        return _survive(state, genomes, jnp.asarray(table))

    @functools.partial(jax.jit, static_argnames="n")
    def ask(self, state: NSGA2State, key: PRNGKeyArray, n: int = 1) -> tuple[Genome, Lineage, NSGA2State]:
        """Makes ``n`` children; child j depends on the state and on ``fold_in(key, j)`` only, not on ``n``.

        Args:
            state: the current state.
            key: a typed PRNG key; consumed.
            n: number of children.

        Returns:
            Genomes (leading axis ``n``), their lineage and the state, which is unchanged. A child that was drawn uniformly has
            no parents.

        Raises:
            InputError: ``key`` is not a typed key.
        """
        check_key(key, "NSGA2")
        members = coefficients_of(state.repertoire.genotypes, "NSGA2")
        ids = extra_scores(state.repertoire)["id"]
        order = _order(state.repertoire.fitnesses)
        alive = jnp.sum(jnp.all(state.repertoire.fitnesses > -jnp.inf, axis=1))

        def child(j: Array) -> tuple[Array, Array]:
            draw_key, first_key, second_key, cross_key, mutate_key = jax.random.split(jax.random.fold_in(key, j), 5)
            drawn = jax.random.uniform(draw_key, members.shape[1:], jnp.float32, self.low, self.high)
            # The winner of a tournament is the one that comes first in the order.
            first, second = (order[jnp.min(jax.random.randint(k, (2,), 0, alive))] for k in (first_key, second_key))
            crossed = binary_crossover(cross_key, members[first], members[second], self.eta_crossover)
            varied = polynomial_mutation(mutate_key, crossed, self.eta_mutation, self.low, self.high)
            fills = state.next_id + j < self.population
            parents = jnp.where(fills, -1, jnp.stack([ids[first], ids[second]]))
            return jnp.where(fills, drawn, varied), parents

        coefficients, parents = jax.lax.map(child, jnp.arange(n))
        lineage = coefficient_lineage(key, coefficients)._replace(parents=parents)
        return with_coefficients(state.leaders.genomes, coefficients), lineage, state

    def tell(
        self, state: NSGA2State, genomes: Genome, scores: AnyArray, lineage: Lineage, items: AnyArray | None = None
    ) -> NSGA2State:
        """Keeps the best fronts of members and children, and of the last of them the least crowded.

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
        return _survive(state, genomes, check_children(genomes, scores, state.leaders.scores.shape[1], "NSGA2"))


def _order(objectives: Float[Array, "batch task"]) -> Int[Array, " batch"]:
    """Individuals by front, then by crowding distance, then by age; missing ones last."""
    ranks = front_ranks(objectives)
    crowding = crowding_distances(jnp.where(jnp.isfinite(objectives), objectives, 0.0), ranks)
    return jnp.lexsort((-crowding, ranks))


@jax.jit
def _survive(state: NSGA2State, genomes: Genome, scores: Float[Array, "batch task"]) -> NSGA2State:
    old, size = state.repertoire, state.repertoire.fitnesses.shape[0]
    ids = state.next_id + jnp.arange(scores.shape[0], dtype=jnp.int32)
    fitness = jnp.where(jnp.isfinite(mean_scores(scores))[:, None], scores, -jnp.inf)
    everyone = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]),
        (old.genotypes, old.fitnesses, extra_scores(old)["id"]),
        (genomes, fitness, ids),
    )
    kept = jnp.sort(_order(everyone[1])[:size])  # members keep their order, which decides between equals
    genotypes, fitnesses, kept_ids = jax.tree.map(lambda x: x[kept], everyone)
    return NSGA2State(
        repertoire=old.replace(genotypes=genotypes, fitnesses=fitnesses, extra_scores={"id": kept_ids}),
        leaders=state.leaders.update(genomes, scores, ids),
        generation=state.generation + 1,
        next_id=state.next_id + scores.shape[0],
    )
