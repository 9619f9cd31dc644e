"""How many models a run evaluates, and on how many problems: in the search, in the choice of the final model, at the end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from cycleqd_jax.config import RunConfig
from cycleqd_jax.plan.device import Device
from cycleqd_jax.plan.memory import Memory
from cycleqd_jax.plan.seconds import Seconds
from cycleqd_jax.plan.workload import Mesh, Workload, rounds_of
from cycleqd_jax.types import InputError, Split

__all__ = ["Evaluations", "evaluations_of"]


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """Models that are evaluated on the same problems.

    Attributes:
        stage: ``search``, ``selection`` (of the final model, on the validation problems) or ``measurement`` (of the rows of the
            results table, on the train and test problems).
        models: the most models. Soups that are tried, and rows with equal weights, may be fewer.
        waves: how many times models are evaluated, where every group of devices evaluates one at a time.
        problems: problems of every model.
        rounds: replies of one model in each round, as in :class:`Workload`.
    """

    stage: Literal["search", "selection", "measurement"]
    models: int
    waves: int
    problems: int
    rounds: tuple[int, ...]

    def seconds(self, work: Workload, mesh: Mesh, device: Device) -> float:
        """The time at the device's limits, by the formulas of :mod:`cycleqd_jax.plan.estimate`; without sandboxes."""
        given = dataclasses.replace(work, rounds=self.rounds)
        one = Seconds(Memory(given, mesh, "cpu" if device.chip is None else "gpu"), device)
        return self.waves * (one.express() + one.prefill() + one.decode())


def evaluations_of(
    run: RunConfig, sizes: Mapping[Split, Sequence[int]], replies: Sequence[int], population: int
) -> list[Evaluations]:
    """The evaluations of a run.

    Args:
        run: the config.
        sizes: by split, the number of problems of every task.
        replies: for every task, the most replies of one episode.
        population: the groups of devices that evaluate models at the same time.

    Raises:
        InputError: ``search.budget_items`` does not suffice for the experts and the first population.
    """
    experts, batch, export = len(run.expert_names), run.search.batch_size, run.export

    def on(stage: Literal["search", "selection", "measurement"], models: int, waves: int, *splits: Split) -> Evaluations:
        episodes = [(size, most) for split in splits for size, most in zip(sizes[split], replies, strict=True)]
        return Evaluations(stage, models, waves, sum(size for size, _ in episodes), rounds_of(episodes))

    limits = [experts + run.search.generations * batch]
    if run.search.budget is not None:
        limits.append(run.search.budget)
    if run.search.budget_items is not None:
        limits.append(run.search.budget_items // sum(sizes["train"]))
        least = run.search.least(experts)
        if limits[-1] < least:
            raise InputError(
                f"expected search.budget_items of at least {least * sum(sizes['train'])}, which the experts and the first "
                f"population need, got {run.search.budget_items}; increase it"
            )
    whole, rest = divmod(min(limits) - experts, batch)
    waves = math.ceil(experts / population) + whole * math.ceil(batch / population) + math.ceil(rest / population)
    found = [on("search", min(limits), waves, "train")]
    cycleqd = run.search.method == "cycleqd"
    if run.selects:
        elites = min(export.elites, min(limits))
        candidates = elites + cycleqd  # the merge of equation 5 is CycleQD's
        soups = elites - 1  # one after the other
        found.append(on("selection", candidates + soups, math.ceil(candidates / population) + soups, "validation"))
    optional = (run.model.prepare is not None) + (run.gradient is not None)
    rows = 1 + experts + len(run.baselines) + 1 + len(run.merges) + optional + (1 + cycleqd) + 2 * run.selects
    return [*found, on("measurement", rows, rows, "train", "test")]
