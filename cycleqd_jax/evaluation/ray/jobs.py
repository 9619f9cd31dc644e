"""What a pool still has to evaluate."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cycleqd_jax.evaluation.workers import Relatives, Source
from cycleqd_jax.interrupts import signals_held
from cycleqd_jax.types import Evaluation, Genome

__all__ = ["Job", "Jobs"]


@dataclasses.dataclass
class Job:
    """Genomes that one worker evaluates together: those at ``members`` of a group.

    Attributes:
        group: number of the group.
        members: positions of the genomes in the group.
        genomes: what is evaluated.
        relatives: see :class:`~cycleqd_jax.evaluation.GenomeEvaluator`.
        ends: why workers ended while they evaluated this job.
        machines: number of machines that were lost meanwhile.
        lost_s: seconds of the attempts that were lost.
        child: number of the group that no other group has, as long as the process runs. Each source counts its own from 0.
    """

    group: int
    members: tuple[int, ...]
    genomes: Sequence[Genome]
    relatives: Relatives
    ends: list[str] = dataclasses.field(default_factory=list)
    machines: int = 0
    lost_s: float = 0.0
    child: int = dataclasses.field(default_factory=itertools.count().__next__)


class _Partial(NamedTuple):
    """The evaluations of a group that are there, and how many there will be."""

    size: int
    found: dict[int, Evaluation]


class Jobs:
    """The groups of a source, until each has its result.

    Attributes:
        waiting: jobs that no worker has.
        delivering: whether a result is being passed on; it stays so where that raises an exception.
        stopped: whether the run ends. Evaluations that failed are not kept then: what stops the run may be the cause.
    """

    def __init__(self, source: Source, on_result: Callable[[int, list[Evaluation]], None]) -> None:
        """Args are those of :class:`~cycleqd_jax.evaluation.StreamEvaluator`."""
        self.waiting: collections.deque[Job] = collections.deque()
        self.delivering, self.stopped = False, False
        self._source, self._on_result = source, on_result
        self._partial: dict[int, _Partial] = {}
        self._more = True

    def any_waits(self) -> bool:
        """Whether a job waits, after one was taken from the source if there was none."""
        if not self.waiting and self._more:
            taken = self._source()
            self._more = taken is not None
            if taken is not None:
                number, genomes, relatives = taken
                self._partial[number] = _Partial(len(genomes), {})
                self.waiting.append(Job(number, tuple(range(len(genomes))), genomes, relatives))
        return bool(self.waiting)

    def any_left(self) -> bool:
        """Whether a group has no result yet, or the source has more."""
        return bool(self._partial) or self.any_waits()

    def keep(self, job: Job, evaluations: Sequence[Evaluation]) -> None:
        """Keeps the evaluations of a job, of which an interrupt may bring the same ones twice."""
        one = self._partial.get(job.group)
        if one is not None and not (self.stopped and any(evaluation.transient for evaluation in evaluations)):
            one.found.update(zip(job.members, evaluations, strict=True))

    def pass_on(self) -> None:
        """Passes on the results of the groups that are complete. An interrupt comes before or after a result."""
        for number in [number for number, one in self._partial.items() if len(one.found) == one.size]:
            with signals_held():
                self.delivering = True
                one = self._partial.pop(number)
                self._on_result(number, [one.found[j] for j in range(one.size)])
                self.delivering = False
