"""The races of a search: which problems a child is evaluated on next, from the journal and the state before its generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cycleqd_jax.individual import Individual
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.racing import entry_probability, item_order, mean_distribution, stage_sizes, strata_of
from cycleqd_jax.types import ArchiveState, Bool, Float, InputError, Int, NextItems, PRNGKeyArray

__all__ = ["Racing", "generation_ids"]


@dataclasses.dataclass(frozen=True)
class Racing:
    """How children are evaluated in stages; see :mod:`cycleqd_jax.search.racing`.

    Attributes:
        first: share of each task's problems in the first stage, in (0, 1].
        least: the fewest problems of a task in the first stage.
        confidence: a child stops where its probability of entry into an archive is below 1 − ``confidence``; in (0, 1).
        items: the most problems that individuals are evaluated on, the experts included; None is no limit. See
            :func:`generation_ids`.

    Raises:
        InputError: a value is out of range.
    """

    first: float = 0.25
    least: int = 4
    confidence: float = 0.95
    items: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 < self.first <= 1:
            raise InputError(f"expected search.racing.first to be above 0 and at most 1, got {self.first}; correct it")
        if not 0 < self.confidence < 1:
            raise InputError(f"expected search.racing.confidence to be above 0 and below 1, got {self.confidence}; correct it")
        if self.least < 1:
            raise InputError(f"expected search.racing.least to be at least 1, got {self.least}; correct it")

    def stages(
        self,
        children: Sequence[Individual],
        journal: Journal,
        tasks: Sequence[str],
        experts: int,
        state: Any,
        key: PRNGKeyArray,
    ) -> list[NextItems]:
        """What the children of a generation are evaluated on.

        Args:
            children: the children of one generation.
            journal: the journal of the search; it has the experts and the parents of the children.
            tasks: names of the tasks.
            experts: number of experts, which have the first ids.
            state: the state of the searcher, before the generation; an :class:`~cycleqd_jax.types.ArchiveState`.
            key: the key of the run.

        Raises:
            InputError: the state has no archives, or the first subset needs more problems than there are.
        """
        if not isinstance(state, ArchiveState):
            raise InputError(
                f"expected a searcher with archives for racing, got a {type(state).__name__}; use CycleQD or PlainQD"
            )
        seed = jax.random.key_data(key).tolist()
        plans: dict[str, _Plan] = {}
        for task in tasks:
            table = np.asarray([journal[k].items[task] for k in range(experts)], np.float64)
            sizes = stage_sizes(table.shape[1], self.first, self.least)
            disputed = table.max(axis=0) != table.min(axis=0)
            plans[task] = _Plan(table, sizes, item_order(disputed, sizes[0], children[0].generation, f"{seed}/{task}"))

        def admits(scores: Float[np.ndarray, "point task"]) -> Bool[np.ndarray, " point"]:
            return np.asarray(state.admits(scores))

        def race_of(child: Individual) -> NextItems:
            parents = [journal[one] for one in child.parents if one >= 0]
            strata = {}
            for task, plan in plans.items():
                known = [one.items[task] for one in parents if one.scores is not None]
                strata[task] = strata_of(plan.experts, np.asarray(known, np.float64) if known else plan.experts)
            return _Race(plans, strata, admits, 1 - self.confidence)

        return [race_of(child) for child in children]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The stages of a task in a generation."""

    experts: Float[np.ndarray, "expert item"]
    sizes: tuple[int, ...]
    order: Int[np.ndarray, " item"]

    def until(self, stage: int) -> int:
        """The number of problems after a stage."""
        return self.sizes[min(stage, len(self.sizes) - 1)]


@dataclasses.dataclass(frozen=True)
class _Race:
    """The problems of one child, a function of the scores that it has: see :data:`~cycleqd_jax.types.NextItems`."""

    plans: Mapping[str, _Plan]
    strata: Mapping[str, tuple[Int[np.ndarray, " item"], Float[np.ndarray, " stratum"]]]
    admits: Callable[[Float[np.ndarray, "point task"]], Bool[np.ndarray, " point"]]
    least: float

    def __call__(self, scores: Mapping[str, Mapping[int, float]]) -> dict[str, list[int]] | None:
        done = {task: len(scores.get(task, ())) for task in self.plans}
        last = max(len(plan.sizes) for plan in self.plans.values())
        for stage in range(last):
            wanted = {task: plan.order[done[task] : plan.until(stage)].tolist() for task, plan in self.plans.items()}
            if any(wanted.values()):
                return wanted if stage == 0 or self._may_enter(scores) else None
        return None

    def _may_enter(self, scores: Mapping[str, Mapping[int, float]]) -> bool:
        found = [mean_distribution(scores[task], *self.strata[task]) for task in self.plans]
        return entry_probability(found, self.admits) >= self.least


def generation_ids(journal: Journal, experts: int, batch_size: int, total: int, items: int | None) -> Iterator[range]:
    """The ids of the children of every generation.

    With a limit of problems, a generation has the children whose complete evaluation would fit into the rest. One that has
    fewer than a whole generation is the last, even where its children stop early and leave a part of the limit. The ids are
    found when they are asked for, and end where the journal lacks an individual of an earlier generation.

    Args:
        journal: the journal of the search. An individual counts with the problems that it was evaluated on, or with all
            problems if it was evaluated on none.
        experts: number of experts, which have the first ids.
        batch_size: children of a whole generation.
        total: the most individuals, the experts included.
        items: the most problems; None is no limit.
    """
    used, counted = 0, 0
    for first in range(experts, total, batch_size):
        size = min(batch_size, total - first)
        if items is not None:
            if any(journal.get(i) is None for i in range(counted, first)):
                return
            each = journal[0].problem_count
            used += sum(journal[i].problem_count or each for i in range(counted, first))
            counted, size = first, min(size, max(items - used, 0) // each)
        if size > 0:
            yield range(first, first + size)
        if size < batch_size:
            return
