"""From genomes to journal records: which individuals are made into weights where, and scored with whom."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from cycleqd_jax.evaluation.evaluator import Abandoned, Evaluation, Evaluator
from cycleqd_jax.types import Genome, Params

__all__ = ["Judge", "Lane", "OneByOne", "OverOneBase", "Record", "SideBySide"]

Record = dict[str, Any]
"""``scores``, ``error``, ``items`` and ``seconds`` of one individual, as the journal has them."""


@runtime_checkable
class Lane(Protocol):
    """Judges individuals on one device, or on one group of them.

    Attributes:
        size: how many it judges together; fewer may come, when there are no more.
    """

    size: int

    def __call__(self, genomes: Sequence[Genome], stop: threading.Event) -> list[Record]:
        """Judges them.

        Args:
            genomes: up to ``size`` of them.
            stop: when it is set, nobody waits for the outcome any more.

        Returns:
            A record for each, in order.

        Raises:
            Abandoned: ``stop`` was set.
        """
        ...


@runtime_checkable
class Judge(Protocol):
    """From genomes to records, as many at a time as there are devices for.

    Attributes:
        size: how many genomes make a group: what is judged together may differ in its last bits from what is judged apart.
    """

    size: int

    def __call__(self, groups: Sequence[Sequence[Genome]], found: Callable[[int, list[Record]], None]) -> None:
        """Judges groups of genomes.

        Args:
            groups: of up to ``size`` genomes each.
            found: told the number of a group and the records of its genomes as soon as these are known: groups in any order,
                one at a time. What it was told before an exception stands.
        """
        ...


def _record(result: Evaluation, **seconds: float) -> Record:
    spent = {**seconds, **result.seconds}
    return {
        "scores": result.scores,
        "error": result.error,
        "items": result.items,
        "seconds": {name: round(value, 6) for name, value in spent.items()},
    }


class OneByOne:
    """A lane in which every individual is made into weights of its own."""

    size = 1

    def __init__(self, express: Callable[[Genome], Params], evaluator: Evaluator) -> None:
        """Args:
        express: from a genome to weights, where the evaluator's engine is.
        evaluator: from weights to scores; the weights are its own to use up.
        """  # noqa: D205
        self._express = express
        self._evaluator = evaluator

    def __call__(self, genomes: Sequence[Genome], stop: threading.Event) -> list[Record]:
        """Records of the genomes, in order."""
        return [self._judge(genome, stop) for genome in genomes]

    def _judge(self, genome: Genome, stop: threading.Event) -> Record:
        if stop.is_set():
            raise Abandoned
        start = time.perf_counter()
        self._evaluator.unload()  # there need never be room for two children
        params = jax.block_until_ready(self._express(genome))
        expressed = time.perf_counter() - start
        return _record(self._evaluator(params, donate=True, stop=stop), express=expressed)


class OverOneBase:
    """A lane in which individuals that differ by a low rank are decoded together, over the weights that they share.

    Attributes:
        size: how many at a time.
    """

    def __init__(self, express: Callable[[Genome], Params], evaluator: Evaluator, size: int) -> None:
        """Args:
        express: from genomes, stacked, to the weights of all of them (:meth:`cycleqd_jax.genome.ExpertSpace.express_mixed`).
        evaluator: plays the tasks with all of them.
        size: how many at a time.
        """  # noqa: D205
        self.size = size
        self._express = express
        self._evaluator = evaluator

    def __call__(self, genomes: Sequence[Genome], stop: threading.Event) -> list[Record]:
        """Records of the genomes, in order; ``seconds`` are those of all of them together, divided."""
        if stop.is_set():
            raise Abandoned
        start = time.perf_counter()
        self._evaluator.unload()
        missing = self.size - len(genomes)  # one program, whatever the number
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *genomes, *[genomes[-1]] * missing)
        params = jax.block_until_ready(self._express(stacked))
        expressed = (time.perf_counter() - start) / len(genomes)
        found = []
        for result in self._evaluator.population(params, len(genomes), stop=stop):  # the base is not the engine's to use up
            shared = {name: value / len(genomes) for name, value in result.seconds.items()}
            found.append(_record(dataclasses.replace(result, seconds=shared), express=expressed))
        return found


class SideBySide:
    """Judges groups in several lanes at the same time; a group's records do not depend on the lane, nor on how many there are.

    Attributes:
        size: of a group, as the lanes have it.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        """Args:
        lanes: at least one; all of one size.
        """  # noqa: D205
        self.size = lanes[0].size
        self._lanes = tuple(lanes)

    def __call__(self, groups: Sequence[Sequence[Genome]], found: Callable[[int, list[Record]], None]) -> None:
        """Judges groups of genomes, and tells ``found``; see :class:`Judge`.

        After an exception, that of a lane or Ctrl-C, lanes abandon what they are at, and it is raised once they have.
        """
        stop = threading.Event()
        if len(self._lanes) == 1:
            for i, group in enumerate(groups):
                found(i, self._lanes[0](group, stop))
            return
        free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            free.put(lane)
        telling = threading.Lock()

        def judge(i: int, group: Sequence[Genome]) -> None:
            lane = free.get()
            try:
                records = lane(group, stop)
            finally:
                free.put(lane)
            with telling:
                found(i, records)

        pool = ThreadPoolExecutor(len(self._lanes), thread_name_prefix="lane")
        try:
            for future in as_completed([pool.submit(judge, i, group) for i, group in enumerate(groups)]):
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
