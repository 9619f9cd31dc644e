"""Racing: a child is evaluated in stages, and stops where it is unlikely to enter an archive.

The paper evaluates every child on all train problems of every task. Most of that work is spent on children that enter no
archive. With ``search.racing`` a child starts on a part of the problems. After each stage the search asks: with which
probability will the child enter some archive, once it is evaluated on all problems? A child whose probability is below
1 − ``confidence`` stops. Without ``search.racing`` nothing of this module is used.

**Stages.** The first stage has the share ``first`` of the problems of each task, at least ``least``. Every further stage
doubles the number. The last one has all (:func:`stage_sizes`).

**Order.** At least half of each stage are problems on which the experts disagree, as long as there are some: they distinguish
models. The others follow in random order. The order rotates from generation to generation: the first stages of successive
generations have successive parts of one permutation, and a new permutation begins when all problems were used. All children
of a generation have the same order (:func:`item_order`).

**Prediction.** The train half is finite, so what is unknown of a child is a number: how many of the remaining problems it
solves. Problems are divided into strata: whether the experts disagree, and whether all, some or none of the parents solve the
problem. A child mostly repeats the replies of its parents, so the strata are nearly uniform. Within a stratum the evaluated
problems are a random sample without replacement. With a beta prior on the rate of a stratum, the number of solved problems
among the remaining ones has a beta-binomial distribution; it is exact for a finite population. The prior counts as one
problem; its mean is 1/6 where no parent solves the problems of the stratum, ½ where some do, and 5/6 where all do. The sum
over strata is a convolution (:func:`mean_distribution`). A score between 0 and 1 counts as that part of a solved problem, which
overstates the variance.

**Decision.** The tasks are independent given the child. The probability of entry is an average over points of a lattice in the
joint distribution of the scores (:func:`entry_probability`). The archives themselves say for each point whether an individual
with these scores would enter (``ArchiveState.admits``): its cell is empty in some archive, or holds a worse elite. The archives
are those before the generation, so the decision depends neither on the order of evaluation nor on the number of workers.

**Trust.** Archives hold only individuals that were evaluated on all train problems: an elite's scores are exact means, each
over all train problems of its task. A child that stopped has no scores for the searcher, and enters no archive. The journal has
the scores of its problems, and which problems they are of (``evaluated``). So no estimate is ever compared with a mean, and a
lucky subset can't make an elite. Racing errs on one side only: a child that would have entered may stop.

**What the confidence means.** A child stops where the model gives it a probability of entry below 1 − confidence. The
probability of a stage is not corrected for the number of stages. The tests simulate populations whose rates the prior does not
know, and check that 95 % intervals of the score cover at least 95 % of the means on average, and 93 % at every rate.

**Resuming.** The orders and decisions are functions of the run's key, the generation, the journal and the state. A child that
is not in the journal is evaluated again from its first stage, with the same result.

**Why no confidence bound on its own.** A bound that holds for every population (Hoeffding, or Clopper–Pearson for the
hypergeometric distribution) says which scores a child could have. In a sparse archive some of these scores belong to an empty
cell most of the time, so hardly a child would stop early. The probability of entry weighs them.

This module is pure: NumPy arrays in, NumPy arrays out.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaln, gammaln

from cycleqd_jax.types import Bool, Float, InputError, Int

__all__ = ["Distribution", "entry_probability", "item_order", "mean_distribution", "stage_sizes", "strata_of"]

POINTS = 2048
"""Points at which the joint distribution of the scores is evaluated."""

_PRIOR = 1.0
"""How many problems the prior of a stratum counts as."""


class Distribution(NamedTuple):
    """A distribution of a task's score.

    Attributes:
        values: the scores, ascending, float64 ``[value]``.
        probabilities: the probabilities of the scores, float64 ``[value]``.
    """

    values: Float[np.ndarray, " value"]
    probabilities: Float[np.ndarray, " value"]


def stage_sizes(total: int, first: float, least: int = 1) -> tuple[int, ...]:
    """The number of problems that are evaluated after each stage.

    Args:
        total: number of problems of the task.
        first: share of the problems in the first stage, in (0, 1].
        least: the fewest problems of the first stage.

    Returns:
        Ascending; the last is ``total``.

    Raises:
        InputError: ``first`` is out of range, or the first stage needs more problems than there are.

    >>> from cycleqd_jax.search.racing import stage_sizes
    >>> stage_sizes(32, 0.25), stage_sizes(10, 0.1, least=4), stage_sizes(5, 1.0)
    ((8, 16, 32), (4, 8, 10), (5,))
    """
    if not 0 < first <= 1:
        raise InputError(f"expected the first share of problems to be above 0 and at most 1, got {first}; correct it")
    if not 1 <= least <= total:
        raise InputError(f"expected a first subset of 1 to {total} problems, got {least}; decrease it, or give more problems")
    sizes = [max(math.ceil(first * total - 1e-9), least)]
    while sizes[-1] < total:
        sizes.append(min(2 * sizes[-1], total))
    return tuple(sizes)


def item_order(disputed: Bool[np.ndarray, " item"], first: int, generation: int, seed: str) -> Int[np.ndarray, " item"]:
    """The order in which the children of a generation get the problems of a task.

    Of the first n problems, at least n / 2 are disputed ones as long as there are some, and never a smaller share than of all
    problems. Disputed and other problems have a random permutation each. It is rotated by the number of its problems in a first
    stage, times the generation; after a full turn another permutation follows.

    Args:
        disputed: whether the experts have different scores of a problem.
        first: number of problems in the first stage.
        generation: number of the generation.
        seed: identifies run and task.

    Returns:
        Positions of the problems, each once.
    """
    total, count = len(disputed), int(disputed.sum())

    quota = [min(count, max(-(-n // 2), -(-n * count // total))) for n in range(total + 1)]  # disputed ones of the first n
    parts = {}
    for kind, block in ((True, quota[first]), (False, first - quota[first])):
        positions = np.flatnonzero(disputed == kind)
        turn, offset = divmod(generation * block, max(len(positions), 1))
        keys = [hashlib.blake2b(f"{seed}/{turn}/{position}".encode(), digest_size=8).digest() for position in positions]
        permutation = positions[np.asarray(sorted(range(len(keys)), key=keys.__getitem__), np.int64)]
        parts[kind] = iter(np.roll(permutation, -offset).tolist())
    return np.asarray([next(parts[quota[n + 1] > quota[n]]) for n in range(total)], np.int64)


def strata_of(
    experts: Float[np.ndarray, "expert item"], parents: Float[np.ndarray, "parent item"]
) -> tuple[Int[np.ndarray, " item"], Float[np.ndarray, " stratum"]]:
    """Divides the problems of a task into strata.

    Args:
        experts: scores of the experts.
        parents: scores of the parents; of the experts where a child has none.

    Returns:
        The stratum of each problem, and the prior mean of each stratum's rate.
    """
    disputed = experts.max(axis=0) != experts.min(axis=0)
    known = parents.mean(axis=0)
    kinds = np.where(known == 0, 0, np.where(known == 1, 2, 1))  # none, some and all of the parents solve it
    found, strata = np.unique(3 * disputed + kinds, return_inverse=True)
    return strata.reshape(-1), (found % 3 + 0.5) / 3


def mean_distribution(
    scores: Mapping[int, float], strata: Int[np.ndarray, " item"], means: Float[np.ndarray, " stratum"]
) -> Distribution:
    """The distribution of a task's mean score over all problems, given the scores of some.

    Args:
        scores: in [0, 1], by the position of the problem.
        strata: the stratum of each problem.
        means: the prior mean of each stratum's rate.

    Returns:
        One value for each number of remaining problems that may be solved.
    """
    rest = np.ones(1)
    for stratum, mean in enumerate(means.tolist()):
        given = [value for position, value in scores.items() if strata[position] == stratum]
        solved, left = math.fsum(given), int((strata == stratum).sum()) - len(given)
        rest = np.convolve(rest, _beta_binomial(left, _PRIOR * mean + solved, _PRIOR * (1 - mean) + len(given) - solved))
    values = (math.fsum(scores.values()) + np.arange(len(rest))) / len(strata)
    return Distribution(values, rest / rest.sum())


def _beta_binomial(count: int, a: float, b: float) -> Float[np.ndarray, " value"]:
    """The probabilities of 0 to ``count`` successes, whose rate has the distribution Beta(a, b)."""
    k = np.arange(count + 1)
    chosen = gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1)
    return np.exp(chosen + betaln(k + a, count - k + b) - betaln(a, b))


@functools.cache
def _lattice(axes: int) -> Float[np.ndarray, "point axis"]:
    """Evenly spread points of the unit cube: an additive recurrence with the roots of x^(axes + 1) = x + 1 (Roberts, 2018)."""
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (axes + 1))
    steps = root ** -np.arange(1.0, axes + 1)
    return (0.5 + np.arange(1, POINTS + 1)[:, None] * steps[None]) % 1.0


def entry_probability(
    distributions: Sequence[Distribution], admits: Callable[[Float[np.ndarray, "point task"]], Bool[np.ndarray, " point"]]
) -> float:
    """The probability that a child enters an archive.

    Args:
        distributions: the distributions of the score of each task, independent of each other.
        admits: whether individuals with these scores would enter some archive.

    Returns:
        The probability, to about 1 / POINTS.
    """
    points = _lattice(len(distributions))
    columns = []
    for axis, (values, probabilities) in enumerate(distributions):
        ends = np.cumsum(probabilities)
        chosen = np.searchsorted(ends, points[:, axis] * ends[-1], side="right")
        columns.append(values[np.minimum(chosen, len(values) - 1)])
    return float(np.mean(np.asarray(admits(np.stack(columns, axis=1).astype(np.float32)))))
