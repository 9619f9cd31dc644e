"""Intervals hold what they promise, on data whose true mean is known."""

from __future__ import annotations

import numpy as np
import pytest

from cycleqd_jax.statistics import difference, mean_interval, over_seeds
from cycleqd_jax.types import InputError


@pytest.mark.parametrize("rates", [(0.5,), (0.2, 0.6, 0.9)])
def test_the_interval_contains_the_true_mean_as_often_as_it_says(rates):
    rng = np.random.default_rng(0)
    samples = [[rng.binomial(1, rate, 80).astype(float) for rate in rates] for _ in range(200)]
    found = [mean_interval(sample, resamples=500, seed=i) for i, sample in enumerate(samples)]
    share = np.mean([one.low <= np.mean(rates) <= one.high for one in found])
    assert 0.90 <= share <= 0.99


def test_the_standard_error_of_a_mean_of_means():
    rng = np.random.default_rng(1)
    tasks = [rng.random(200), rng.random(50)]
    found = mean_interval(tasks)
    error = np.sqrt(sum(task.var() / task.size for task in tasks)) / 2
    assert found.mean == pytest.approx(np.mean([task.mean() for task in tasks]))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert found.count == 250


def test_a_small_improvement_shows_in_pairs_only():
    rng = np.random.default_rng(2)
    theirs = rng.binomial(1, 0.5, 300).astype(float)
    ours = np.maximum(theirs, rng.binomial(1, 0.06, 300))
    paired = difference([ours], [theirs])
    assert paired.above_zero
    assert paired.mean == pytest.approx(ours.mean() - theirs.mean())
    assert mean_interval([ours]).low < theirs.mean()
    assert not difference([theirs], [theirs]).above_zero


def test_the_same_seed_gives_the_same_interval():
    scores = [np.random.default_rng(3).random(40)]
    assert mean_interval(scores, seed=5) == mean_interval(scores, seed=5)
    assert mean_interval(scores, seed=5) != mean_interval(scores, seed=6)


@pytest.mark.parametrize("tasks", [[np.zeros(9)], [np.ones(1)], [np.zeros(4), np.ones(7)]])
def test_equal_scores_have_an_interval_without_length(tasks):
    found = mean_interval(tasks)
    assert found.low == found.mean == found.high


def test_a_task_of_one_problem_beside_another():
    assert mean_interval([np.ones(1), np.array([0.0, 1.0] * 20)]).mean == 0.75


def test_seeds_against_a_table_of_student():
    found = over_seeds(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.high - found.mean == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    assert over_seeds(np.array([0.3])).high == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one problem for every task"),
        (lambda: mean_interval([np.zeros(3), np.zeros(0)]), r"got shapes \[\(3,\), \(0,\)\]"),
        (lambda: mean_interval([np.array([0.5, np.nan])]), "expected finite scores"),
        (lambda: mean_interval([np.zeros(3)], confidence=1.0), "confidence above 0 and below 1, got 1.0"),
        (lambda: mean_interval([np.arange(3.0)], resamples=0), "at least one bootstrap sample, got 0"),
        (lambda: difference([np.zeros(3)], [np.zeros(4)]), "scores of the same problems"),
        (lambda: over_seeds(np.zeros(0)), "one run or more"),
        (lambda: over_seeds(np.zeros(2), confidence=0.0), "confidence above 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
