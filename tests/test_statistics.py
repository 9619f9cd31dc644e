"""Intervals hold what they promise, on data whose true mean is known."""

from __future__ import annotations

import numpy as np
import pytest

from cycleqd_jax.statistics import difference, interval_over_runs, mean_interval, over_seeds, resampled_means
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


def by_hand(scores, crossed, resamples, seed):
    """The same bootstrap with loops, on draws of its own."""
    rng = np.random.default_rng(seed)
    runs = scores[0].shape[1]
    means = [task.mean(axis=2, keepdims=True) for task in scores]
    wider = np.sqrt(runs / (runs - 1)) - 1
    scores = [task + wider * (mean - mean.mean(axis=1, keepdims=True)) for task, mean in zip(scores, means, strict=True)]
    found = np.zeros((resamples, len(scores)))
    for b in range(resamples):
        drawn = rng.integers(runs, size=runs)
        for k, task in enumerate(scores):
            items = task.shape[2]
            once = rng.integers(items, size=items)
            draws = [once if crossed else rng.integers(items, size=items) for _ in drawn]
            found[b, k] = np.mean([task[0, run, which].mean() for run, which in zip(drawn, draws, strict=True)])
    return found


@pytest.mark.parametrize("crossed", [False, True])
def test_resampled_means_are_those_of_a_loop(crossed):
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 1, (1, 1, 30))  # problems that are hard in every run
    scores = [
        (hard + rng.normal(0, 0.5, (2, 4, 1)) + rng.normal(0, 0.3, (2, 4, 30)) > 0).astype(float),
        rng.random((2, 4, 12)),
    ]
    got = resampled_means(scores, crossed=crossed)[0]
    want = by_hand(scores, crossed, 2_000, seed=5)
    np.testing.assert_allclose(got.mean(0), want.mean(0), atol=0.01)
    np.testing.assert_allclose(got.std(0), want.std(0), rtol=0.08)


def test_problems_that_all_runs_share_do_not_average_out():
    problems = np.random.default_rng(6).binomial(1, 0.5, 50).astype(float)
    scores = [np.broadcast_to(problems, (1, 10, 50))]
    crossed, nested = (resampled_means(scores, crossed=one).std() for one in (True, False))
    assert crossed == pytest.approx(0.5 / np.sqrt(50), rel=0.05)
    assert nested < crossed / 2


def test_one_run_is_resampled_as_by_mean_interval():
    scores = [np.random.default_rng(7).random(40), np.random.default_rng(8).random(25)]
    expected = mean_interval(scores)
    for crossed in (False, True):
        found = resampled_means([task[None, None] for task in scores], crossed=crossed)[0].mean(-1)
        np.testing.assert_allclose(np.quantile(found, [0.025, 0.975]), [expected.low, expected.high], atol=0.004)


def test_rows_are_paired_by_run_and_problem():
    theirs = np.random.default_rng(9).random((3, 40))
    other = theirs.copy()
    other[1, 3] = np.nan
    means = resampled_means([np.stack([theirs, theirs, theirs + 0.25, other])], crossed=False, resamples=1_500)
    assert (means[0] == means[1]).all()
    np.testing.assert_allclose(means[2] - means[0], 0.25, atol=1e-9)
    assert np.isnan(means[3]).all()
    assert means.shape == (4, 1_500, 1)


@pytest.mark.parametrize("shapes", [[], [(2, 1, 0)], [(2, 1, 3), (2, 2, 3)]])
def test_scores_of_other_runs_are_not_resampled(shapes):
    with pytest.raises(InputError, match="expected at least one bootstrap sample, got 0"):
        resampled_means([np.ones((1, 1, 2))], crossed=True, resamples=0)
    with pytest.raises(InputError, match="expected scores of the same rows and runs"):
        resampled_means([np.zeros(shape) for shape in shapes], crossed=True)


def share_outside(runs, spread, trials, crossed=True):
    """How often the interval of the difference of two equally good methods leaves zero out; three tasks of 120 problems.

    Args:
        runs: number of seeds.
        spread: standard deviation of the effect of the seed on the score of every problem, of each method on its own.
        trials: number of simulated comparisons.
        crossed: whether all seeds have the same problems.
    """
    rng, outside = np.random.default_rng(runs), 0
    for trial in range(trials):
        effect = rng.normal(0, spread, size=(2, runs, 1))
        chances = [np.clip(rng.beta(0.6, 0.9, size=(1, 1 if crossed else runs, 120)) + effect, 0, 1) for _ in range(3)]
        scores = [(rng.random((2, runs, 120)) < chance).astype(float) for chance in chances]
        means = resampled_means(scores, crossed=crossed, resamples=400, seed=trial).mean(-1)
        of_runs = np.mean([task.mean(-1) for task in scores], axis=0)
        found = interval_over_runs(means[0] - means[1], of_runs[0] - of_runs[1], 360 * runs)
        outside += found.low > 0 or found.high < 0
    return outside / trials


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_few_seeds_do_not_make_a_difference_of_equals(runs):
    assert share_outside(runs, 0.04, 40) <= 0.125


@pytest.mark.exhaustive
@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("spread", [0.0, 0.04, 0.1])
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_zero_lies_outside_in_at_most_a_twentieth_of_the_intervals_of_equals(runs, spread, crossed):
    share = share_outside(runs, spread, 400, crossed)
    print(f"{runs} seeds, spread {spread}, crossed {crossed}: {100 * share:.1f} % outside")
    assert share <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 400)


def test_an_interval_over_runs_knows_what_the_problems_say():
    rng = np.random.default_rng(10)
    resampled = rng.normal(0.5, 0.1, 20_000)
    alone = interval_over_runs(resampled, np.array([0.5]), 9)
    assert (alone.low, alone.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]))
    equal = interval_over_runs(resampled, np.array([0.5, 0.5]), 9)  # all of the spread comes from problems
    assert (equal.high - equal.low) / 2 == pytest.approx(1.96 * 0.1, rel=0.03)
    runs = 0.5 + np.sqrt(2) * np.array([0.1, -0.1]) / np.sqrt(2)  # all of it comes from runs: t with one degree of freedom
    spread = interval_over_runs(resampled, runs, 9)
    assert (spread.high - spread.low) / 2 == pytest.approx(12.706 * 0.1, rel=0.06)
    assert interval_over_runs(np.full(9, 0.5), np.array([0.5, 0.5]), 9).low == 0.5
    with pytest.raises(InputError, match="expected finite values of one run or more"):
        interval_over_runs(resampled, np.array([np.nan]), 9)
    for values in (np.array([0.5]), runs):
        with pytest.raises(InputError, match="expected a confidence above 0 and below 1, got 95"):
            interval_over_runs(resampled, values, 9, confidence=95)
