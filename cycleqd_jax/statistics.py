"""Confidence intervals of scores by the bootstrap over problems.

A method has a score for each problem of each task. Its average is the mean over tasks of the mean over problems. So problems
are resampled within their task (stratified bootstrap). Two methods that were scored on the same problems are compared problem
by problem: the interval of the mean difference is much narrower than the two intervals are.

Methods that were run with several seeds have a score for each seed and problem. Then both are resampled
(:func:`resampled_means`), and the interval allows for the number of seeds (:func:`interval_over_runs`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cycleqd_jax.types import AnyArray, Float, InputError, Int

__all__ = ["Interval", "difference", "interval_over_runs", "mean_interval", "over_seeds", "resampled_means"]

RESAMPLES = 10_000

CHUNK = 1_000
"""Bootstrap samples that are drawn at once."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        mean: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of values that the estimate is made of.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


def mean_interval(
    scores: Sequence[Float[AnyArray, " _"]], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over tasks of the mean score over problems, with its bootstrap percentile interval.

    Scores that are all equal have an interval of length zero: the bootstrap has no other scores than the given ones.

    Args:
        scores: for every task the score of each problem, Float ``[item]``.
        confidence: share of the intervals that contain the true mean, above 0 and below 1.
        resamples: number of bootstrap samples.
        seed: the seed of the random samples; the same seed and scores give the same interval.

    Raises:
        InputError: there is no task, a task has no problem, a score is not finite, or ``confidence`` or ``resamples`` is out
            of its range.

    >>> import numpy as np
    >>> from cycleqd_jax.statistics import mean_interval
    >>> found = mean_interval([np.repeat([0.0, 1.0], 50)])
    >>> found.mean, found.low < 0.45 < 0.55 < found.high
    (0.5, True)
    """
    tasks = [np.asarray(task, np.float64) for task in scores]
    if not tasks or not all(task.ndim == 1 and task.size for task in tasks):
        shapes = [task.shape for task in tasks]
        raise InputError(f"expected scores of at least one problem for every task, got shapes {shapes}; evaluate the tasks")
    if not all(np.isfinite(task).all() for task in tasks):
        raise InputError("expected finite scores, got NaN or infinity; leave methods out that could not be evaluated")
    _check_confidence(confidence)
    _check_resamples(resamples)
    mean = float(np.mean([task.mean() for task in tasks]))
    count = sum(task.size for task in tasks)
    if all(task.min() == task.max() for task in tasks):
        return Interval(mean, mean, mean, count)
    from scipy import stats  # takes most of a second, which readers of run folders need not wait for

    # scipy refuses samples of one value. Such a task has the same mean in every resample, whatever the number of its problems.
    tasks = [np.repeat(task, 2) if task.size == 1 else task for task in tasks]
    found = stats.bootstrap(
        tasks,
        _mean_of_means,
        vectorized=True,
        n_resamples=resamples,
        batch=1_000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), count)


def difference(
    scores: Sequence[Float[AnyArray, " _"]],
    others: Sequence[Float[AnyArray, " _"]],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much better a method is than another on the same problems, with the interval of the paired difference.

    Args:
        scores: for every task the score of each problem, Float ``[item]``.
        others: the other method's, on the same problems in the same order.
        confidence: see :func:`mean_interval`.
        resamples: number of bootstrap samples.
        seed: the seed of the random samples.

    Raises:
        InputError: the methods do not have a score for each of the same problems; or as :func:`mean_interval`.

    >>> import numpy as np
    >>> from cycleqd_jax.statistics import difference
    >>> ours, theirs = np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0])
    >>> difference([ours], [theirs]).mean
    0.5
    """
    shapes, other_shapes = [[np.shape(task) for task in table] for table in (scores, others)]
    if shapes != other_shapes:
        raise InputError(f"expected scores of the same problems, got shapes {shapes} and {other_shapes}; compare equal splits")
    pairs = zip(scores, others, strict=True)
    differences = [np.asarray(ours, np.float64) - np.asarray(theirs, np.float64) for ours, theirs in pairs]
    return mean_interval(differences, confidence=confidence, resamples=resamples, seed=seed)


def over_seeds(values: Float[AnyArray, " run"], *, confidence: float = 0.95) -> Interval:
    """The mean over runs with different seeds, with its interval by Student's t distribution.

    Args:
        values: one value for each run.
        confidence: share of the intervals that contain the true mean, above 0 and below 1.

    Returns:
        The interval; with one run its ends are minus and plus infinity, because one run says nothing about the spread.

    Raises:
        InputError: there is no run, a value is not finite, or ``confidence`` is out of its range.

    >>> import numpy as np
    >>> from cycleqd_jax.statistics import over_seeds
    >>> found = over_seeds(np.array([0.5, 0.6, 0.7]))
    >>> round(found.mean, 2), round(found.low, 2), round(found.high, 2)
    (0.6, 0.35, 0.85)
    """
    runs = np.asarray(values, np.float64)
    if runs.ndim != 1 or not runs.size or not np.isfinite(runs).all():
        raise InputError(f"expected a finite value for each of one run or more, got {runs.tolist()}; leave failed runs out")
    _check_confidence(confidence)
    mean = float(runs.mean())
    if runs.size == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    from scipy import stats

    half = float(stats.t.ppf((1 + confidence) / 2, runs.size - 1) * stats.sem(runs))
    return Interval(mean, mean - half, mean + half, int(runs.size))


def interval_over_runs(
    resampled: Float[AnyArray, " resample"], runs: Float[AnyArray, " run"], count: int, *, confidence: float = 0.95
) -> Interval:
    """The interval of a mean, or of a difference of means, from the bootstrap samples of :func:`resampled_means`.

    With one run it is the percentile interval. With R runs it is the mean ± √(t² s_runs² + z² (s² − s_runs²)). Here s² is the
    variance of the bootstrap samples, and s_runs² that of the mean as the spread of the runs shows it. Few runs say little
    about their spread, so t is the quantile of Student's distribution with R − 1 degrees of freedom. The rest of s² comes from
    many problems, and z is the quantile of the normal distribution (Howe 1974, "Approximate Confidence Limits on the Mean of
    X + Y Where X and Y Are Two Tabled Independent Random Variables").

    Args:
        resampled: the value in every bootstrap sample.
        runs: the value of every run.
        count: number of scores that the value is made of.
        confidence: share of the intervals that contain the true value, above 0 and below 1.

    Raises:
        InputError: a value is not finite, or ``confidence`` is out of its range.

    >>> import numpy as np
    >>> from cycleqd_jax.statistics import interval_over_runs
    >>> found = interval_over_runs(np.array([0.3, 0.5, 0.5, 0.7]), np.array([0.4, 0.6]), 4)
    >>> found.mean, round(found.low, 1), round(found.high, 1)  # the spread of two runs alone says very little
    (0.5, -0.8, 1.8)
    """
    runs = np.asarray(runs, np.float64)
    if not runs.size or not np.isfinite(runs).all() or not np.isfinite(resampled).all():
        raise InputError(f"expected finite values of one run or more, got {runs.tolist()}; leave failed runs out")
    _check_confidence(confidence)
    mean = float(runs.mean())
    if runs.size == 1:
        low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(mean, float(low), float(high), count)
    from scipy import stats

    total, between = float(np.var(resampled)), float(runs.var(ddof=1)) / runs.size
    if total == 0:
        return Interval(mean, mean, mean, count)
    t, z = stats.t.ppf((1 + confidence) / 2, runs.size - 1), stats.norm.ppf((1 + confidence) / 2)
    half = float(np.sqrt(t**2 * between + z**2 * max(total - between, 0)))
    return Interval(mean, mean - half, mean + half, count)


def intervals_by_task(
    resampled: Float[AnyArray, "resample task"], runs: Float[AnyArray, "run task"], counts: Sequence[int]
) -> tuple[Interval, ...]:
    """The interval of every task, and that of the mean over tasks; see :func:`interval_over_runs`.

    Args:
        resampled: the values in every bootstrap sample.
        runs: the values of every run.
        counts: number of scores of every task.

    Raises:
        InputError: a value is not finite.
    """
    each = [interval_over_runs(resampled[:, k], runs[:, k], count) for k, count in enumerate(counts)]
    return (*each, interval_over_runs(resampled.mean(-1), runs.mean(-1), sum(counts)))


def resampled_means(
    scores: Sequence[Float[AnyArray, "_row _run _item"]], *, crossed: bool, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "row resample task"]:
    """Means of scores in bootstrap samples of runs and problems.

    Each bootstrap sample draws as many runs as there are, and as many problems of each task as there are. All rows are averaged
    over the same draws, so the differences of two rows are paired by run and problem.

    * ``crossed``: every run has the same problems. The problems are drawn once for all runs of a bootstrap sample (Owen 2007,
      "The pigeonhole bootstrap").
    * Otherwise every run has problems of its own, which are drawn anew for each drawn run (two-level bootstrap).

    With one run both are the bootstrap of :func:`mean_interval`. With R runs a bootstrap underestimates the variance between
    runs by the factor (R − 1) / R (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", "narrowness bias"). So the
    deviations of the runs' means are widened by √(R / (R − 1)) before. Where the problems are not crossed, the bootstrap counts
    a part of their variance twice, which makes the intervals wider.

    Args:
        scores: for every task the score of each problem, Float ``[row, run, item]``. NaN makes all means of its row NaN.
        crossed: whether the problems of all runs are the same.
        resamples: number of bootstrap samples.
        seed: the seed of the random samples.

    Returns:
        The mean score of every task, Float ``[row, resample, task]``, rounded to 12 digits, so that equal rows have equal
        means.

    Raises:
        InputError: there is no task, run or problem, the tasks do not have the same rows and runs, or ``resamples`` is below 1.

    >>> import numpy as np
    >>> from cycleqd_jax.statistics import resampled_means
    >>> found = resampled_means([np.ones((2, 3, 8))], crossed=True, resamples=5)
    >>> found.shape, found.min(), found.max()
    ((2, 5, 1), np.float64(1.0), np.float64(1.0))
    """
    shapes = [np.shape(task) for task in scores]
    if len({shape[:2] for shape in shapes}) != 1 or any(0 in shape for shape in shapes):
        raise InputError(f"expected scores of the same rows and runs for every task, got shapes {shapes}; evaluate the tasks")
    _check_resamples(resamples)
    rng = np.random.default_rng(seed)
    runs, chunks = shapes[0][1], []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        drawn = rng.integers(runs, size=(size, runs))
        chunks.append(np.stack([_resampled(task, drawn, crossed, rng) for task in scores], axis=-1))
    return np.concatenate(chunks, axis=1).round(12)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"expected a confidence above 0 and below 1, got {confidence}; correct it")


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise InputError(f"expected at least one bootstrap sample, got {resamples}; correct resamples")


def _resampled(
    scores: Float[AnyArray, "row run item"], drawn: Int[np.ndarray, "resample run"], crossed: bool, rng: np.random.Generator
) -> Float[np.ndarray, "row resample"]:
    """The mean score of one task in every bootstrap sample, for the runs that were drawn."""
    rows, runs, items = scores.shape
    if runs > 1:
        means = np.mean(scores, axis=2, keepdims=True)
        scores = scores + (np.sqrt(runs / (runs - 1)) - 1) * (means - means.mean(axis=1, keepdims=True))
    size = len(drawn)
    which = rng.integers(items, size=(size, 1 if crossed else runs, items))
    cells = (np.arange(size)[:, None, None] * runs + drawn[:, :, None]) * items + which  # [resample, run, item]
    weights = np.bincount(cells.ravel(), minlength=size * runs * items).reshape(size, runs * items)
    return np.asarray(scores, np.float64).reshape(rows, -1) @ weights.T / (runs * items)


def _mean_of_means(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([task.mean(axis=axis) for task in tasks], axis=0)
