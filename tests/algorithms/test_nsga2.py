"""NSGA-II: fronts and crowding against loops, and the hypervolume of published test problems."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import NSGA2
from cycleqd_jax.algorithms.nsga2 import crowding_distances, front_ranks
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


@pytest.mark.parametrize("tasks", [2, 3])
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
    return np.stack([x[:, 0], g * (1 - (np.sqrt(ratio) if problem == 1 else ratio**2))], axis=1)


def hypervolume(points, reference=(1.1, 1.1)):
    points = points[(points < reference).all(axis=1)]
    total, height = 0.0, reference[1]
    for first, second in points[np.argsort(points[:, 0])]:
        if second < height:
            total += (reference[0] - first) * (height - second)
            height = second
    return total


@pytest.mark.parametrize(("problem", "best"), [(1, 0.8761), (2, 0.5428)])
def test_known_fronts(problem, best):
    """The hypervolume of the whole front to (1.1, 1.1) is 1.21 − 1/3 and 1.21 − 2/3; 40 points of it have 1 to 2 % less."""
    size, members = 10, 40
    search = NSGA2(population=members, iso_sigma=0.01)
    experts = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 1, size)), jnp.float32)
    state = search.init(experts, -zdt(problem, np.asarray(experts[:, 0])))
    for t in range(200):
        children, lineage, state = search.ask(state, jax.random.key(t), members)
        state = search.tell(state, children, -zdt(problem, np.asarray(children[:, 0], np.float64)), lineage)
    found = hypervolume(-np.asarray(state.repertoire.fitnesses, np.float64))
    print(f"ZDT{problem}: hypervolume {found:.4f} of {best}")
    assert 0.97 * best <= found <= best + 1e-3


def test_the_population_is_filled_before_parents_are_selected():
    search = NSGA2(population=8, low=-1.0, high=2.0)
    state = search.init(jnp.zeros((2, 1, 2)), np.full((2, 2), 0.5))
    children, lineage, state = search.ask(state, jax.random.key(0), 8)
    np.testing.assert_array_equal(np.asarray(lineage.parents)[:6], -1)
    assert (np.asarray(lineage.parents)[6:] >= 0).all()
    state = search.tell(state, children, np.random.default_rng(0).uniform(size=(8, 2)), lineage)
    children, lineage, _ = search.ask(state, jax.random.key(1), 200)
    assert set(np.asarray(lineage.parents).ravel().tolist()) <= set(np.asarray(state.repertoire.extra_scores["id"]).tolist())
    assert float(children.min()) >= -1
    assert float(children.max()) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "expected a population of at least 2 and deviations of zero or more"),
        ({"iso_sigma": -1.0}, "expected a population of at least 2 and deviations of zero or more"),
        ({"low": 1.0}, "expected finite coefficients low < high, got 1.0 and 1.0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=f"{message}.* in NSGA2; correct them"):
        NSGA2(**options).init(jnp.zeros((2, 1, 2)), np.zeros((2, 2)))
