"""Elite and uniform selection: exact probabilities and sampled frequencies."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import Archives, EliteSelector, UniformSelector
from cycleqd_jax.algorithms.selection import elite_weights

CELLS = 60  # all batches are padded to this size, so that functions compile once
add = jax.jit(Archives.add)
weigh = jax.jit(elite_weights, static_argnames=("alpha_low", "alpha_high", "span"))


def archive_of(scores, bins=15):
    """An archive of task 0 whose members have these scores."""
    scores = np.asarray(scores, np.float32)
    padded = np.full((CELLS, scores.shape[1]), np.nan, np.float32)
    padded[: len(scores)] = scores
    archives = Archives.create(jnp.zeros(1), np.asarray([(0, 1)] * scores.shape[1]), bins)
    return add(archives, jnp.zeros((CELLS, 1)), padded, np.arange(CELLS))[0]


def members_of(repertoire):
    cells = np.flatnonzero(np.asarray(repertoire.fitnesses)[:, 0] > -np.inf)
    return cells, [{"scores": np.asarray(repertoire.extra_scores["scores"])[c].astype(float).tolist()} for c in cells]


@pytest.mark.exhaustive
@pytest.mark.parametrize("span", ["paper", "reference"])
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.8), (0.1, 1.0)])
def test_probabilities_equal_the_papers(plain, span, low, high):
    rng = np.random.default_rng(0)
    for case in range(100):
        tasks = 2 + case % 3
        scores = rng.choice([rng.integers(0, 4, (CELLS, tasks)) / 3, rng.uniform(size=(CELLS, tasks))])
        occupied = rng.uniform(size=CELLS) < rng.choice([0.02, 0.1, 0.5])
        occupied[rng.integers(CELLS)] = True
        weights = weigh(jnp.asarray(scores, jnp.float32), jnp.asarray(occupied), low, high, span=span)
        weights = np.asarray(weights, np.float64)
        members = [{"scores": row.tolist()} for row in np.float32(scores)[occupied].astype(float)]
        gammas = np.asarray(plain.gammas(members, low, high, span))
        assert np.all(weights[~occupied] == 0)
        np.testing.assert_allclose(weights[occupied] / weights.sum(), gammas / gammas.sum(), rtol=2e-6)


def pairs_drawn(selector, repertoire, draws, seed=0):
    def draw(key):
        return selector.select(repertoire, key, 2).extra_scores["id"]

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), draws)))


SCORES = [[0.9, 0.1, 0.2], [0.2, 0.7, 0.1], [0.5, 0.45, 0.8], [0.1, 0.2, 0.5], [0.8, 0.95, 0.95]]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("selector", "options"),
    [
        (EliteSelector(), (0.5, 0.8, "paper")),
        (EliteSelector(span="reference"), (0.5, 0.8, "reference")),
        pytest.param(EliteSelector(alpha_low=0.1, alpha_high=1.0), (0.1, 1.0, "paper"), marks=pytest.mark.exhaustive),
        (UniformSelector(), None),
    ],
)
def test_empirical_frequencies(plain, selector, options):
    """First parents have probability P_j, second parents P_j among the others: a χ² test over all ordered pairs."""
    draws = 20_000
    repertoire = archive_of(SCORES)
    gammas = [1.0] * len(SCORES) if options is None else plain.gammas([{"scores": s} for s in SCORES], *options)
    p = np.asarray(gammas) / sum(gammas)
    pairs = pairs_drawn(selector, repertoire, draws)
    assert np.all(pairs[:, 0] != pairs[:, 1])
    statistic = 0.0
    for i, j in itertools.permutations(range(len(SCORES)), 2):
        expected = draws * p[i] * p[j] / (1 - p[i])
        observed = np.sum((pairs[:, 0] == i) & (pairs[:, 1] == j))
        statistic += (observed - expected) ** 2 / expected
    assert statistic < 43.8  # 19 degrees of freedom, p = 0.001


@pytest.mark.exhaustive
def test_better_elites_are_selected_more_often():
    pairs = pairs_drawn(EliteSelector(alpha_low=0.01, alpha_high=1.0), archive_of(SCORES), 2000)
    counts = np.bincount(pairs.ravel(), minlength=5)
    assert counts[4] == counts.max()


@pytest.mark.exhaustive
@pytest.mark.parametrize("selector", [EliteSelector(), UniformSelector()])
def test_all_elites_and_no_empty_cells_are_drawn(selector):
    rng = np.random.default_rng(1)
    scores = rng.uniform(size=(60, 2))
    repertoire = archive_of(scores)
    cells, _ = members_of(repertoire)
    ids = set(np.asarray(repertoire.extra_scores["id"])[cells].tolist())
    assert len(ids) > 5
    assert set(pairs_drawn(selector, repertoire, 3000).ravel().tolist()) == ids


@pytest.mark.parametrize("selector", [EliteSelector(), UniformSelector()])
def test_a_single_elite_is_both_parents(selector):
    repertoire = archive_of([[0.3, 0.7]])
    chosen = jax.jit(lambda key: selector.select(repertoire, key, 2))(jax.random.key(0))
    assert chosen.extra_scores["id"].tolist() == [0, 0]
    np.testing.assert_array_equal(chosen.extra_scores["scores"], np.float32([[0.3, 0.7]] * 2))
    np.testing.assert_array_equal(chosen.fitnesses, np.float32([[0.3]] * 2))


@pytest.mark.exhaustive
@pytest.mark.parametrize("scores", [[[0.3, 0.7]], [[0.3, 0.1], [0.3, 0.9]], [[0.0, 0.0], [0.0, 0.5], [1.0, 0.99]]])
def test_alpha_low_of_zero_draws_distinct_elites(scores):
    """γ is zero for an elite with the lowest score of any task: it is drawn last, but before empty cells and repetitions."""
    pairs = pairs_drawn(EliteSelector(alpha_low=0.0), archive_of(scores), 200)
    assert set(pairs.ravel().tolist()) <= set(range(len(scores)))
    chosen = EliteSelector(alpha_low=0.0).select(archive_of(scores), jax.random.key(0), 2)
    assert np.all(np.isfinite(chosen.fitnesses))
    if len(scores) > 1:
        assert np.all(pairs[:, 0] != pairs[:, 1])


@pytest.mark.exhaustive
def test_more_samples_than_elites_repeat_in_order():
    chosen = EliteSelector().select(archive_of(SCORES[:3]), jax.random.key(0), 7).extra_scores["id"].tolist()
    assert sorted(chosen[:3]) == [0, 1, 2]
    assert chosen[3:6] == chosen[:3]
