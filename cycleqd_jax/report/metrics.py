"""Metrics over generations, computed from the replayed journal."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math

import numpy as np

from cycleqd_jax.report.history import History

__all__ = ["Metrics", "compute_metrics", "milestones"]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """One row per generation, from -1 (experts only) to the last; G rows, K tasks.

    Attributes:
        generations: Int ``[G]``.
        best: highest quality f_k in archive A_k, Float ``[G, K]``; NaN while the archive is empty.
        coverage: share of the cells of A_k that are filled, Float ``[G, K]``.
        qd_score: sum of the qualities of A_k, Float ``[G, K]``.
        best_average: highest average over tasks of any individual so far, Float ``[G]``.
        best_average_id: id of that individual, Int ``[G]``; -1 while there is none.
        elites_average: average over tasks, averaged over the individuals in any archive, Float ``[G]``.
        evaluated: individuals so far, Int ``[G]``.
        quarantined: quarantined individuals so far, Int ``[G]``.
        seconds: stage → seconds spent in each generation, summed over its individuals, Float ``[G]``.
    """

    generations: np.ndarray
    best: np.ndarray
    coverage: np.ndarray
    qd_score: np.ndarray
    best_average: np.ndarray
    best_average_id: np.ndarray
    elites_average: np.ndarray
    evaluated: np.ndarray
    quarantined: np.ndarray
    seconds: dict[str, np.ndarray]


def compute_metrics(history: History) -> Metrics:
    """Computes all metrics of all generations."""
    generations = np.arange(-1, history.last_generation + 1)
    size = len(generations)
    slot = history.clock + 1  # of each individual: the position of its generation in ``generations``
    averages = history.averages
    failed = np.array([one.error is not None for one in history.individuals], bool)
    raced = np.array([one.evaluated is not None for one in history.individuals], bool)  # perhaps without all scores
    best, coverage, qd_score, elites_average = _archive_metrics(history, generations, averages)
    best_average, best_average_id = _best_so_far(history, averages, slot, size)
    return Metrics(
        generations=generations,
        best=best,
        coverage=coverage,
        qd_score=qd_score,
        best_average=best_average,
        best_average_id=best_average_id,
        elites_average=elites_average,
        evaluated=np.cumsum(np.bincount(slot[failed | raced | np.isfinite(averages)], minlength=size)[:size]),
        quarantined=np.cumsum(np.bincount(slot[failed], minlength=size)[:size]),
        seconds=_seconds(history, slot, size),
    )


def _archive_metrics(
    history: History, generations: np.ndarray, averages: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Best quality, coverage and QD score of every archive, and the average over all elites, per generation."""
    tasks, size = len(history.grid.tasks), len(generations)
    best = np.full((size, tasks), np.nan)
    count, qd_score = np.zeros((size, tasks)), np.zeros((size, tasks))
    elites_average = np.full(size, np.nan)
    cells_of: collections.Counter[int] = collections.Counter()  # row of an elite → number of cells that it holds
    filled, total, top = np.zeros(tasks), np.zeros(tasks), np.full(tasks, np.nan)
    insertions = iter(history.insertions)
    pending = next(insertions, None)
    for g, generation in enumerate(generations):
        while pending is not None and history.clock[pending.row] <= generation:
            task, _, row, replaced = pending
            quality = history.scores[row, task]
            cells_of[row] += 1
            total[task] += quality
            top[task] = np.fmax(top[task], quality)
            if replaced < 0:
                filled[task] += 1
            else:
                total[task] -= history.scores[replaced, task]
                cells_of[replaced] -= 1
                if not cells_of[replaced]:
                    del cells_of[replaced]
            pending = next(insertions, None)
        best[g], count[g], qd_score[g] = top, filled, total
        if cells_of:
            elites_average[g] = averages[list(cells_of)].mean()
    return best, count / history.grid.capacity, qd_score, elites_average


def _best_so_far(history: History, averages: np.ndarray, slot: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Highest average of any individual up to each generation, and the id of that individual."""
    best_average, best_id = np.full(size, np.nan), np.full(size, -1)
    leader = -1
    for row, average in enumerate(averages):
        if np.isfinite(average) and (leader < 0 or average > averages[leader]):
            leader = row
        if leader >= 0:
            best_average[slot[row]], best_id[slot[row]] = averages[leader], history.individuals[leader].id
    for g in range(1, size):  # a generation without individuals keeps the best of the one before
        if best_id[g] < 0:
            best_average[g], best_id[g] = best_average[g - 1], best_id[g - 1]
    return best_average, best_id


def _seconds(history: History, slot: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Stage → seconds in each generation, summed over its individuals."""
    seconds = {stage: np.zeros(size) for stage in dict.fromkeys(s for one in history.individuals for s in one.seconds)}
    for row, one in enumerate(history.individuals):
        for stage, spent in one.seconds.items():
            seconds[stage][slot[row]] += spent if math.isfinite(spent) else 0.0
    return seconds


def milestones(last: int, most: int = 12) -> list[int]:
    """The generations to mark in figures: every 100 for the 1200 of the paper (fig. 5), other round steps for other lengths.

    Args:
        last: newest generation (0-based).
        most: most steps.

    Returns:
        -1 (the experts), then the last generation of every step, ending with ``last``.
    """
    if last < 0:
        return [-1]
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if math.ceil((last + 1) / step) <= most)
    marks = [-1, *range(step - 1, last + 1, step)]
    return marks if marks[-1] == last else [*marks, last]
