"""NSGA-II: fronts and crowding against loops, and the hypervolume of published test problems."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import NSGA2
from cycleqd_jax.algorithms.nsga2 import binary_crossover, crowding_distances, front_ranks, polynomial_mutation
from cycleqd_jax.types import InputError


def ranks_by_loop(objectives):
    ranks, left, rank = np.full(len(objectives), len(objectives)), set(np.flatnonzero((objectives > -np.inf).all(1))), 0
    while left:
        front = {
            i
            for i in left
            if not any((objectives[j] >= objectives[i]).all() and (objectives[j] > objectives[i]).any() for j in left)
        }
        ranks[list(front)] = rank
        left, rank = left - front, rank + 1
    return ranks


def crowding_by_loop(objectives, ranks):
    distance = np.zeros(len(objectives))
    for rank in set(ranks.tolist()):
        members = np.flatnonzero(ranks == rank)
        for values in objectives[members].T:
            order = members[np.argsort(values, kind="stable")]
            found = np.sort(values)
            if found[0] == found[-1]:
                continue
            distance[order[[0, -1]]] = np.inf
            distance[order[1:-1]] += (found[2:] - found[:-2]) / (found[-1] - found[0])
    return distance


@pytest.mark.exhaustive
@pytest.mark.parametrize("tasks", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
def test_fronts_and_crowding(tasks):
    rng = np.random.default_rng(0)
    for _ in range(5):
        objectives = (rng.integers(0, 8, size=(30, tasks)) / 8).astype(np.float32)  # with ties
        objectives[rng.integers(0, 30, size=3)] = -np.inf
        ranks = np.asarray(front_ranks(jnp.asarray(objectives)))
        np.testing.assert_array_equal(ranks, ranks_by_loop(objectives))
        finite = np.where(np.isfinite(objectives), objectives, 0)
        np.testing.assert_allclose(
            crowding_distances(jnp.asarray(finite), jnp.asarray(ranks)), crowding_by_loop(finite, ranks), rtol=1e-5
        )


def zdt(problem, x):
    """ZDT1 and ZDT2, minimised, x in [0, 1]."""
    g = 1 + 9 * x[:, 1:].mean(axis=1)
    ratio = x[:, 0] / g
    return jnp.stack([x[:, 0], g * (1 - (jnp.sqrt(ratio) if problem == 1 else ratio**2))], axis=1)


def hypervolume(points, reference=(1.1, 1.1)):
    points = points[(points < reference).all(axis=1)]
    total, height = 0.0, reference[1]
    for first, second in points[np.argsort(points[:, 0])]:
        if second < height:
            total += (reference[0] - first) * (height - second)
            height = second
    return total


@pytest.mark.exhaustive
@pytest.mark.parametrize("problem", [1, 2])
def test_known_fronts(problem):
    """The published setting: 30 variables, 100 members, 250 generations. The whole front has the hypervolume ``best``."""
    members, best = 100, 1.21 - problem / 3
    search = NSGA2(population=members)
    experts = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 1, 30)), jnp.float32)
    state = search.init(experts, -zdt(problem, experts[:, 0]))

    def step(state, t):
        children, lineage, state = search.ask(state, jax.random.key(t), members)
        return search.tell(state, children, -zdt(problem, children[:, 0]), lineage), None

    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(250))[0])(state)
    found = hypervolume(-np.asarray(state.repertoire.fitnesses, np.float64))
    print(f"ZDT{problem}: hypervolume {found:.4f} of {best:.4f}")
    assert 0.98 * best <= found <= best + 1e-4


@pytest.mark.exhaustive
def test_mutation_is_as_published_and_leaves_bounds():
    """Against Deb's formula in float64, at u = 0.1 … 0.9 and with every coefficient chosen."""
    key, eta, low, high = jax.random.key(0), 20.0, -1.0, 2.0
    x = jnp.asarray(np.linspace(-1, 2, 2000)[:, None], jnp.float32)
    moved = jax.vmap(lambda one, k: polynomial_mutation(k, one[None], eta, low, high))(x, jax.random.split(key, 2000))[:, 0]
    u = np.asarray(
        jax.vmap(lambda k: jax.random.uniform(jax.random.split(k)[1], (1, 1)))(jax.random.split(key, 2000)), np.float64
    )[:, 0]
    theirs = np.asarray(x, np.float64)
    below, above = (theirs - low) / (high - low), (high - theirs) / (high - low)
    down = (2 * u + (1 - 2 * u) * (1 - below) ** (eta + 1)) ** (1 / (eta + 1)) - 1
    up = 1 - (2 * (1 - u) + 2 * (u - 0.5) * (1 - above) ** (eta + 1)) ** (1 / (eta + 1))
    np.testing.assert_allclose(moved, theirs + np.where(u <= 0.5, down, up) * (high - low), atol=2e-6)
    assert ((np.asarray(moved) >= low) & (np.asarray(moved) <= high)).all()
    at_bound = jax.vmap(lambda k: polynomial_mutation(k, jnp.full((1, 1), low), eta, low, high))(jax.random.split(key, 100))
    assert (np.asarray(at_bound) > low + 1e-3).mean() > 0.3


@pytest.mark.exhaustive
def test_crossover_keeps_the_mean_and_the_published_spread():
    first, second, eta = jnp.zeros((1, 1)), jnp.ones((1, 1)), 15.0
    keys = jax.random.split(jax.random.key(1), 40_000)
    children = np.asarray(jax.vmap(lambda k: binary_crossover(k, first, second, eta))(keys), np.float64).ravel()
    crossed = children[children != 0]
    assert len(crossed) / len(children) == pytest.approx(0.45, abs=0.01)
    assert crossed.mean() == pytest.approx(0.5, abs=0.01)
    spread = np.abs(2 * crossed - 1)  # |c − midpoint| / half the distance of the parents
    assert np.median(spread) == pytest.approx(1.0, abs=0.005)
    quartile = (2 * 0.25) ** (1 / (eta + 1))
    assert np.quantile(spread, 0.25) == pytest.approx(quartile, abs=0.005)


@pytest.mark.exhaustive
def test_the_population_is_filled_before_parents_are_selected():
    search = NSGA2(population=8, low=-1.0, high=2.0)
    state = search.init(jnp.zeros((2, 1, 2)), np.full((2, 2), 0.5))
    children, lineage, state = search.ask(state, jax.random.key(0), 8)
    np.testing.assert_array_equal(np.asarray(lineage.parents)[:6], -1)
    assert (np.asarray(lineage.parents)[6:] >= 0).all()
    state = search.tell(state, children, np.random.default_rng(0).uniform(size=(8, 2)), lineage)
    for seed in range(1, 26):
        children, lineage, _ = search.ask(state, jax.random.key(seed), 8)
        held = set(np.asarray(state.repertoire.extra_scores["id"]).tolist())
        assert set(np.asarray(lineage.parents).ravel().tolist()) <= held
        assert float(children.min()) >= -1
        assert float(children.max()) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "expected a population of at least 2 and distribution indices of zero or more"),
        ({"eta_mutation": -1.0}, "expected a population of at least 2 and distribution indices of zero or more"),
        ({"low": 1.0}, "expected finite coefficients low < high, got 1.0 and 1.0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=f"{message}.* in NSGA2; correct them"):
        NSGA2(**options).init(jnp.zeros((2, 1, 2)), np.zeros((2, 2)))
