"""CycleQD against Algorithm 1 in plain Python."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CycleQD, EliteSelector, PlainQD, UniformSelector
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.operators import crossover_weights, linear_crossover
from cycleqd_jax.types import InputError, Lineage

WIDTH = 3


class Points(flax.struct.PyTreeNode):
    """A space without models: genomes are points, and mutation adds noise around a number that identifies the active task."""

    experts: jax.Array

    @property
    def num_experts(self):
        return self.experts.shape[0]

    def expert(self, k):
        return self.experts[k]

    def crossover(self, parent1, parent2, omega):
        return linear_crossover(parent1, parent2, omega)

    def mutate(self, key, genome, active):
        return genome + 10.0 * jnp.asarray(active, jnp.float32) + jax.random.uniform(key, genome.shape)

    def express(self, genome):
        return genome


def searcher(tasks, **options):
    space = Points(jnp.asarray(np.random.default_rng(tasks).normal(size=(tasks, WIDTH)), jnp.float32))
    return CycleQD(space, **options)


def rows(tree, j):
    return jax.tree.map(lambda x: x[j], tree)


@pytest.mark.parametrize(
    ("tasks", "batch", "selector"),
    [
        pytest.param(2, 5, UniformSelector(), marks=pytest.mark.exhaustive),
        (3, 1, EliteSelector()),
        pytest.param(4, 3, EliteSelector(), marks=pytest.mark.exhaustive),
    ],
)
def test_a_search_equals_algorithm_1(plain, assert_identical, tasks, batch, selector):
    algorithm = searcher(tasks, bins=5, selector=selector)
    for seed in range(8):
        rng = np.random.default_rng([tasks, batch, seed])

        def score(shape, rng=rng):
            f = np.float32(rng.integers(0, 9, size=shape) / 8 if rng.uniform() < 0.5 else rng.uniform(size=shape))
            return f

        f = score((tasks, tasks))
        state = algorithm.init(algorithm.space.experts, f)
        exact = np.asarray(f, np.float64)
        bounds = [
            (0.85 * low, 1.15 * high) if high > 0 else (0, 1) for low, high in zip(exact.min(0), exact.max(0), strict=True)
        ]
        reference = plain.Archives(np.float32(bounds), 5)
        everyone = []

        def tell(genomes, scores, reference=reference, everyone=everyone):
            for genome, row in zip(np.asarray(genomes).tolist(), scores.tolist(), strict=True):
                everyone.append({"id": len(everyone), "genome": genome, "scores": row})
                reference.insert(everyone[-1])

        tell(algorithm.space.experts, f)
        for t in range(2 * tasks + 1):
            plain.compare(state.archives, reference)
            assert int(state.generation) == t
            assert int(state.next_id) == len(everyone)
            genomes, lineage, same = algorithm.ask(state, jax.random.key(100 * seed + t), batch)
            assert_identical(same, state)
            active = t % tasks
            assert lineage.active.tolist() == [active] * batch
            members = {individual["id"] for individual in reference.archives[active].values()}
            for j in range(batch):
                parents = lineage.parents[j].tolist()
                assert set(parents) <= members
                assert len(set(parents)) == min(2, len(members))
                # parents and key determine the child
                child_key = jax.random.wrap_key_data(lineage.key[j])
                assert_identical(lineage.key[j], jax.random.key_data(jax.random.fold_in(jax.random.key(100 * seed + t), j)))
                _, cross_key, mutate_key = jax.random.split(child_key, 3)
                np.testing.assert_allclose(lineage.omega[j], crossover_weights(cross_key), rtol=1e-6)
                first, second = (jnp.asarray(everyone[p]["genome"], jnp.float32) for p in parents)
                child = algorithm.space.mutate(mutate_key, algorithm.space.crossover(first, second, lineage.omega[j]), active)
                np.testing.assert_allclose(genomes[j], child, rtol=1e-6, atol=1e-6)
            scores = score((batch, tasks))
            if t == 1:
                scores[-1, 0] = np.nan  # a quarantined child gets an id but enters no archive
            tell(genomes, scores)
            state = algorithm.tell(state, genomes, scores, lineage)
        plain.compare(state.archives, reference)


def started(algorithm, seed=0):
    tasks = algorithm.space.num_experts
    f = np.random.default_rng(seed).uniform(0.2, 0.9, size=(tasks, tasks)).astype(np.float32)
    return algorithm.init(algorithm.space.experts, f)


@pytest.mark.exhaustive
def test_children_do_not_depend_on_their_number(assert_identical):
    rng = np.random.default_rng(0)
    models = [{"w": jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32)} for _ in range(4)]
    space = ExpertSpace.from_experts(models[0], models[1:])
    algorithm = CycleQD(space)
    experts = jax.tree.map(lambda *x: jnp.stack(x), *(space.expert(k) for k in range(3)))
    state = algorithm.init(experts, rng.uniform(0.1, 1, size=(3, 3)))
    genomes, lineage, _ = algorithm.ask(state, jax.random.key(1), 5)
    fewer, fewer_lineage, _ = algorithm.ask(state, jax.random.key(1), 2)
    assert_identical((fewer, fewer_lineage), rows((genomes, lineage), slice(0, 2)))
    assert isinstance(lineage, Lineage)
    assert lineage.key.dtype == jnp.uint32


@pytest.mark.exhaustive
def test_ask_is_reproducible_and_depends_on_the_key(assert_identical):
    algorithm = searcher(2)
    state = started(algorithm)
    one = algorithm.ask(state, jax.random.key(0), 3)
    assert_identical(algorithm.ask(state, jax.random.key(0), 3), one)
    other = algorithm.ask(state, jax.random.key(1), 3)
    assert not np.array_equal(one[0], other[0])
    assert len(np.unique(np.asarray(one[0])[:, 0])) == 3


def test_mu_and_sigma_set_the_crossover_weights():
    algorithm = searcher(2, mu=5.0, sigma=0.0)
    lineage = algorithm.ask(started(algorithm), jax.random.key(0), 2)[1]
    np.testing.assert_array_equal(lineage.omega, np.full((2, 2), 5.0))


def test_fixed_bounds_replace_those_of_the_experts():
    algorithm = searcher(2, bins=4, bounds=((0.0, 1.0), (0.0, 2.0)))
    np.testing.assert_allclose(started(algorithm).archives.edges, [np.linspace(0, 1, 5), np.linspace(0, 2, 5)])


@pytest.mark.exhaustive
def test_no_recompilation(compilations):
    algorithm = searcher(3)
    state, key = started(algorithm), jax.random.key(0)
    scores = jnp.full((2, 3), 0.5)
    for _ in range(2):  # the states that init and tell return are different kinds of arrays
        genomes, lineage, state = algorithm.ask(state, key, 2)
        state = algorithm.tell(state, genomes, scores, lineage)

    def generation():
        genomes, lineage, after = algorithm.ask(state, key, 2)
        return algorithm.tell(after, genomes, scores, lineage)

    assert compilations(generation) == 0
    other = started(searcher(3), seed=9)
    assert compilations(lambda: algorithm.ask(other, key, 2)) == 0


@pytest.mark.parametrize(
    ("count", "scores", "message"),
    [
        (2, np.zeros(2), "shape"),
        (2, np.zeros((2, 1)), "at least two tasks"),
        (2, np.zeros((2, 3)), "each of 3 tasks, got 2"),
        (3, np.asarray([[0.1, 0.2, 0.3], [0.1, np.nan, 0.3], [0.1, 0.2, np.inf]]), r"\[1, 2\]"),
        (2, np.zeros((3, 3)), "each of 2 genomes, got 3"),
    ],
)
def test_bad_initial_individuals(count, scores, message):
    algorithm = searcher(3)
    with pytest.raises(InputError, match=message):
        algorithm.init(algorithm.space.experts[:count], scores)


@pytest.mark.parametrize("method", [CycleQD, PlainQD])
@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (((0.0, 1.0), (0.0, 1.0)), "each of 3 tasks, got 2"),
        (((0.0, 1.0), (0.5, 0.5), (0.0, 1.0)), "finite lower bound below a finite upper bound"),
        (((0.0, 1.0), (0.0, np.inf), (0.0, 1.0)), "finite lower bound below a finite upper bound"),
    ],
)
def test_bad_bounds(method, bounds, message):
    algorithm = method(searcher(3).space, bounds=bounds)
    with pytest.raises(InputError, match=message):
        started(algorithm)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (3,), (3, 3, 1)])
def test_tell_refuses_scores_of_another_shape(shape):
    algorithm = searcher(3)
    state = started(algorithm)
    genomes, lineage, state = algorithm.ask(state, jax.random.key(0), 3)
    with pytest.raises(InputError, match=r"\(3, 3\)"):
        algorithm.tell(state, genomes, np.zeros(shape), lineage)


def test_there_may_be_more_experts_than_tasks():
    algorithm = searcher(3)
    extra = jnp.concatenate([algorithm.space.experts, algorithm.space.experts + 1])
    state = algorithm.init(extra, np.random.default_rng(0).uniform(size=(6, 3)))
    assert int(state.next_id) == 6
    assert int(state.generation) == 0
