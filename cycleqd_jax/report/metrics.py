"""Figures of merit over generations, computed from the replayed journal."""

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
        best: highest quality f_k in archive A_k, Float ``[G, K]``; NaN while it is empty.
        coverage: filled share of the cells of A_k, Float ``[G, K]``.
        qd_score: sum of the qualities of A_k, Float ``[G, K]``.
        best_average: highest average over tasks of any individual so far, Float ``[G]``.
        best_average_id: its id, Int ``[G]``; -1 while there is none.
        elites_average: average over tasks, averaged over the individuals that live in any archive, Float ``[G]``.
        evaluated: individuals so far, Int ``[G]``.
        quarantined: individuals without scores so far, Int ``[G]``.
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
    """All metrics of all generations, in one pass over the journal."""
    tasks = len(history.grid.tasks)
    generations = np.arange(-1, history.last_generation + 1)
    size = len(generations)
    cells = history.grid.bins ** (tasks - 1)
    best = np.full((size, tasks), np.nan)
    count, qd_score = np.zeros((size, tasks)), np.zeros((size, tasks))
    elites_average = np.full(size, np.nan)

    averages = history.scores.mean(axis=1)
    residents: collections.Counter[int] = collections.Counter()
    filled, total, top = np.zeros(tasks), np.zeros(tasks), np.full(tasks, np.nan)
    insertions = iter(history.insertions)
    pending = next(insertions, None)
    for g, generation in enumerate(generations):
        while pending is not None and history.clock[pending.row] <= generation:
            task, _, row, replaced = pending
            quality = history.scores[row, task]
            residents[row] += 1
            total[task] += quality
            top[task] = np.fmax(top[task], quality)
            if replaced < 0:
                filled[task] += 1
            else:
                total[task] -= history.scores[replaced, task]
                residents[replaced] -= 1
                if not residents[replaced]:
                    del residents[replaced]
            pending = next(insertions, None)
        best[g], count[g], qd_score[g] = top, filled, total
        if residents:
            elites_average[g] = averages[list(residents)].mean()

    slot = history.clock + 1
    alive = np.isfinite(averages)
    best_average, best_id = np.full(size, np.nan), np.full(size, -1)
    leader = -1
    for row in range(len(history.individuals)):
        if alive[row] and (leader < 0 or averages[row] > averages[leader]):
            leader = row
        if leader >= 0:
            best_average[slot[row]], best_id[slot[row]] = averages[leader], history.individuals[leader].id
    for g in range(1, size):  # generations that wrote nothing keep what was
        if best_id[g] < 0:
            best_average[g], best_id[g] = best_average[g - 1], best_id[g - 1]

    seconds = {stage: np.zeros(size) for stage in dict.fromkeys(s for i in history.individuals for s in i.seconds)}
    for row, one in enumerate(history.individuals):
        for stage, spent in one.seconds.items():
            seconds[stage][slot[row]] += spent if math.isfinite(spent) else 0.0
    return Metrics(
        generations=generations,
        best=best,
        coverage=count / cells,
        qd_score=qd_score,
        best_average=best_average,
        best_average_id=best_id,
        elites_average=elites_average,
        evaluated=np.cumsum(np.bincount(slot, minlength=size)[:size]),
        quarantined=np.cumsum(np.bincount(slot[~alive], minlength=size)[:size]),
        seconds=seconds,
    )


def milestones(last: int, most: int = 12) -> list[int]:
    """The generations to mark: every 100 for the paper's 1200 (fig. 5), a rounder or smaller step for other lengths.

    Args:
        last: newest generation (0-based).
        most: how many steps there may be.

    Returns:
        -1 (the experts), then the last generation of every step, ending with ``last``.
    """
    if last < 0:
        return [-1]
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if math.ceil((last + 1) / step) <= most)
    marks = [-1, *range(step - 1, last + 1, step)]
    return marks if marks[-1] == last else [*marks, last]
