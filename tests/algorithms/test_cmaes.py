"""CMA-ES against pycma: evaluations to a target on published functions, from the same start with the same population."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CMAES
from cycleqd_jax.types import InputError

SIZE, POPULATION, TARGET = 6, 9, 1e-6
SHIFT = np.linspace(0.4, 1.2, SIZE)
EXPERTS = jnp.zeros((2, 1, SIZE))


def sphere(x):
    return np.sum((x - SHIFT) ** 2, axis=-1)


def ellipsoid(x):
    return np.sum(10 ** (4 * np.arange(SIZE) / (SIZE - 1)) * (x - SHIFT) ** 2, axis=-1)


def rosenbrock(x):
    return np.sum(100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2, axis=-1)


def evaluations(function, seed, most=8000):
    """How many children of CMAES are evaluated before one reaches the target."""
    search = CMAES(population=POPULATION, sigma=0.3)
    state = search.init(EXPERTS, np.zeros((2, 2)))
    for t in range(most // POPULATION):
        children, lineage, state = search.ask(state, jax.random.fold_in(jax.random.key(seed), t), POPULATION)
        values = function(np.asarray(children, np.float64).reshape(POPULATION, SIZE))
        if (values < TARGET).any():
            return (t + 1) * POPULATION
        state = search.tell(state, children, np.repeat(-values[:, None], 2, axis=1), lineage)
    return most


def evaluations_of_pycma(function, seed, most=8000):
    cma = pytest.importorskip("cma")
    options = {"popsize": POPULATION, "seed": seed + 1, "verbose": -9, "CMA_diagonal": 0}
    search = cma.CMAEvolutionStrategy(np.full(SIZE, 1 / SIZE), 0.3, options)
    for t in range(most // POPULATION):
        children = np.asarray(search.ask())
        values = function(children)
        if (values < TARGET).any():
            return (t + 1) * POPULATION
        search.tell(list(children), values.tolist())
    return most


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("function", "seeds"),
    [
        *(pytest.param(f, 7, id=f.__name__) for f in (sphere, rosenbrock, ellipsoid)),
        pytest.param(ellipsoid, 3, id="ellipsoid, 3 seeds"),
    ],
)
def test_as_many_evaluations_as_pycma(function, seeds):
    counts = (evaluations, evaluations_of_pycma)
    ours, theirs = (np.median([count(function, seed) for seed in range(seeds)]) for count in counts)
    print(f"{function.__name__}: {ours:.0f} evaluations, pycma {theirs:.0f}")
    assert ours < 8000
    assert ours <= 1.3 * theirs


@pytest.mark.exhaustive
def test_it_starts_at_the_uniform_merge():
    search = CMAES(population=64, sigma=0.1)
    genomes = jnp.stack([jnp.eye(3)[k][None].repeat(2, 0) for k in range(3)])
    state = search.init(genomes, np.full((3, 3), 0.5))
    np.testing.assert_allclose(state.distribution.mean, np.full(6, 1 / 3), rtol=1e-6)
    children = jnp.concatenate([search.ask(state, jax.random.key(seed), 64)[0] for seed in range(20)])
    np.testing.assert_allclose(np.mean(children, axis=0), np.full((2, 3), 1 / 3), atol=0.01)
    np.testing.assert_allclose(np.std(children, axis=0), np.full((2, 3), 0.1), rtol=0.1)


@pytest.mark.exhaustive
def test_a_quarantined_child_has_the_worst_rank_at_the_mean():
    search = CMAES(population=6)
    state = search.init(EXPERTS, np.zeros((2, 2)))
    children, lineage, asked = search.ask(state, jax.random.key(0), 6)
    values = np.arange(6, dtype=np.float32)
    values[3] = -100
    scores = np.repeat(values[:, None], 2, axis=1)
    at_mean = children.at[3].set(asked.distribution.mean.reshape(children.shape[1:]))
    low = search.tell(asked, at_mean, scores, lineage).distribution
    scores[3] = np.nan
    missing = search.tell(asked, children, scores, lineage).distribution
    np.testing.assert_array_equal(low.mean, missing.mean)
    np.testing.assert_array_equal(low.C, missing.C)
    scores[3, 0] = 5  # one NaN suffices
    np.testing.assert_array_equal(search.tell(asked, children, scores, lineage).distribution.C, missing.C)


def test_quarantined_children_are_no_parents():
    """With one finite child the mean moves on the line to it, whichever places the others have."""
    search = CMAES(population=6)
    state = search.init(EXPERTS, np.zeros((2, 2)))
    children, lineage, asked = search.ask(state, jax.random.key(1), 6)
    scores = np.full((6, 2), np.nan)
    scores[5] = 0.5
    mean = search.tell(asked, children, scores, lineage).distribution.mean
    step, towards = mean - asked.distribution.mean, children[5].reshape(-1) - asked.distribution.mean
    cosine = jnp.dot(step, towards) / jnp.linalg.norm(step) / jnp.linalg.norm(towards)
    assert cosine == pytest.approx(1, abs=1e-4)


def test_ties_depend_on_the_order_alone():
    search = CMAES(population=6)
    state = search.init(EXPERTS, np.zeros((2, 2)))
    children, lineage, asked = search.ask(state, jax.random.key(0), 6)
    equal = search.tell(asked, children, np.full((6, 2), 0.5), lineage).distribution
    falling = search.tell(asked, children, np.repeat(np.linspace(1, 0, 6)[:, None], 2, axis=1), lineage).distribution
    np.testing.assert_array_equal(equal.mean, falling.mean)


@pytest.mark.parametrize("options", [{"population": 3}, {"sigma": 0.0}, {"sigma": float("nan")}])
def test_options_that_make_no_sense(options):
    with pytest.raises(InputError, match="expected a population of at least 4 and a positive sigma, got"):
        CMAES(**options).init(EXPERTS, np.zeros((2, 2)))


def test_more_children_than_the_population():
    search = CMAES(population=5)
    state = search.init(EXPERTS, np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"expected at most 5 children, the population, got 6 in CMAES\.ask; ask for fewer"):
        search.ask(state, jax.random.key(0), 6)


def test_other_genomes_than_coefficients():
    with pytest.raises(InputError, match=r"expected genomes of one array .*, got 2 of shapes .* in CMAES; use a Coeff"):
        CMAES().init({"a": jnp.zeros((2, 1, 2)), "b": jnp.zeros((2, 3))}, np.zeros((2, 2)))
