"""Workers express genomes as weights and evaluate them; a worker pool spreads groups of genomes over several workers."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from typing import Any, Protocol, runtime_checkable

import jax

from cycleqd_jax.evaluation.evaluator import EvaluationCancelled
from cycleqd_jax.evaluation.stages import evaluate_in_stages
from cycleqd_jax.types import Evaluation, Genome, ModelEvaluator, NextItems, Params, Split, Transcript, stack_trees

__all__ = [
    "GenomeEvaluator",
    "LazyWorker",
    "PopulationWorker",
    "Relatives",
    "SerialWorker",
    "Source",
    "Stages",
    "StreamEvaluator",
    "Worker",
    "WorkerPool",
]


Relatives = Sequence[Sequence[Transcript]]
"""For each genome of a group, the replies of related models, the closest first."""

Stages = Sequence[NextItems]
"""For each genome of a group, which problems it is evaluated on next; empty where all are evaluated on all problems at once."""


@runtime_checkable
class Worker(Protocol):
    """Evaluates genomes on one device or one group of devices. One thread at a time calls it.

    Attributes:
        size: the most genomes per call.
    """

    size: int

    def __call__(
        self, genomes: Sequence[Genome], stop: threading.Event, relatives: Relatives = (), stages: Stages = ()
    ) -> list[Evaluation]:
        """Evaluates a group of genomes.

        Args:
            genomes: 1 to ``size`` genomes.
            stop: when it is set, the worker abandons the evaluation as soon as it can.
            relatives: for each genome, the replies of related models, which become drafts; none by default.
            stages: for each genome, its problems; all by default.

        Returns:
            An evaluation for each genome, in order; ``seconds`` includes the time to express it.

        Raises:
            EvaluationCancelled: ``stop`` was set.
        """
        ...


@runtime_checkable
class GenomeEvaluator(Protocol):
    """Evaluates any number of genomes in groups, on all available devices.

    Attributes:
        size: genomes per group. Genomes of a group may be evaluated in one batch, so the last bits of their results may depend
            on the group.
    """

    size: int

    def __call__(
        self,
        groups: Sequence[Sequence[Genome]],
        on_result: Callable[[int, list[Evaluation]], None],
        relatives: Sequence[Relatives] = (),
    ) -> None:
        """Evaluates groups of genomes.

        Args:
            groups: lists of up to ``size`` genomes each.
            relatives: for each group and genome, the replies of related models, which become drafts; none by default. Callers
                leave them out where there are none.
            on_result: called with the index of a group and the evaluations of its genomes, as soon as they are complete. The
                groups come in any order; calls do not overlap. Results delivered before an exception are valid.
        """
        ...


Source = Callable[[], tuple[int, Sequence[Genome], Relatives] | None]
"""What to evaluate next: a number, up to ``size`` genomes, and for each the replies of related models; None at the end."""


@runtime_checkable
class StreamEvaluator(GenomeEvaluator, Protocol):
    """A genome evaluator that asks for the next genomes whenever a worker is idle."""

    def stream(self, source: Source, on_result: Callable[[int, list[Evaluation]], None]) -> None:
        """Evaluates genomes until there are no more.

        Args:
            source: called when a worker is idle, not at the same time as ``on_result``. Once it returns None, it does so again.
            on_result: called with the number and the evaluations, as soon as they are complete.
        """
        ...


class SerialWorker:
    """A worker that expresses and evaluates one individual at a time."""

    size = 1

    def __init__(self, express: Callable[[Genome], Params], evaluator: ModelEvaluator, split: Split = "train") -> None:
        """Args:
        express: turns a genome into weights on the devices of the evaluator.
        evaluator: scores the weights; their buffers are donated to it.
        split: the problems that individuals are scored on.
        """  # noqa: D205
        self._express = express
        self._evaluator = evaluator
        self._split: Split = split

    def __call__(
        self, genomes: Sequence[Genome], stop: threading.Event, relatives: Relatives = (), stages: Stages = ()
    ) -> list[Evaluation]:
        """Evaluations of the genomes, in order; see :class:`Worker`."""
        known, parts = relatives or [()] * len(genomes), stages or [None] * len(genomes)
        return [self._evaluate(genome, stop, one, part) for genome, one, part in zip(genomes, known, parts, strict=True)]

    def _evaluate(
        self, genome: Genome, stop: threading.Event, relatives: Sequence[Transcript], stages: NextItems | None
    ) -> Evaluation:
        if stop.is_set():
            raise EvaluationCancelled
        start = time.perf_counter()
        self._evaluator.unload()  # the devices need room for one individual only
        params = jax.block_until_ready(self._express(genome))
        expressed = time.perf_counter() - start
        options = {"donate": True, "stop": stop}
        if stages is None:
            evaluation = self._evaluator(params, self._split, relatives=relatives, **options)
        else:
            (evaluation,) = evaluate_in_stages(self._evaluator, params, [stages], self._split, relatives=[relatives], **options)
        return _with_express_time(evaluation, expressed)


class PopulationWorker:
    """A worker that evaluates several individuals in one batch, over the base weights that they share.

    Attributes:
        size: the most individuals per batch.
    """

    def __init__(
        self, express: Callable[[Genome], Params], evaluator: ModelEvaluator, size: int, split: Split = "train"
    ) -> None:
        """Args:
        express: turns stacked genomes into the weights of all (:meth:`cycleqd_jax.genome.ExpertSpace.express_mixed` for an
            engine, :meth:`cycleqd_jax.genome.ExpertSpace.express_population` for a predictor of masks).
        evaluator: scores all of them together.
        size: the most individuals per batch.
        split: the problems that individuals are scored on.
        """  # noqa: D205
        self.size = size
        self._express = express
        self._evaluator = evaluator
        self._split: Split = split

    def __call__(
        self, genomes: Sequence[Genome], stop: threading.Event, relatives: Relatives = (), stages: Stages = ()
    ) -> list[Evaluation]:
        """Evaluations of the genomes, in order; ``seconds`` is the time of the batch divided by their number."""
        if stop.is_set():
            raise EvaluationCancelled
        start = time.perf_counter()
        self._evaluator.unload()
        padding = [genomes[-1]] * (self.size - len(genomes))  # smaller groups use the same compiled program
        stacked = stack_trees([*genomes, *padding])
        params = jax.block_until_ready(self._express(stacked))
        expressed = (time.perf_counter() - start) / len(genomes)
        evaluations = []
        # not donated: the base is shared
        if stages:
            found = evaluate_in_stages(self._evaluator, params, stages, self._split, stop=stop, relatives=relatives)
        else:
            found = self._evaluator.population(params, len(genomes), self._split, stop=stop, relatives=relatives)
        for evaluation in found:
            share = {stage: seconds / len(genomes) for stage, seconds in evaluation.seconds.items()}
            evaluations.append(_with_express_time(dataclasses.replace(evaluation, seconds=share), expressed))
        return evaluations


class LazyWorker:
    """A worker that is constructed at its first call, so that its devices are not used before.

    Attributes:
        size: that of the worker.
    """

    def __init__(self, size: int, make: Callable[[], Worker]) -> None:
        """Args:
        size: that of the worker.
        make: constructs the worker.
        """  # noqa: D205
        self.size = size
        self._make = make
        self._worker: Worker | None = None

    def __call__(
        self, genomes: Sequence[Genome], stop: threading.Event, relatives: Relatives = (), stages: Stages = ()
    ) -> list[Evaluation]:
        """Evaluations of the genomes, in order; see :class:`Worker`."""
        if self._worker is None:
            self._worker = self._make()
        return self._worker(genomes, stop, **given(relatives, stages))


class WorkerPool:
    """Evaluates groups of genomes on several workers; the results do not depend on the number of workers.

    Attributes:
        size: genomes per group, as of the workers.
    """

    def __init__(
        self, workers: Sequence[Worker], *, grace: float = 0.0, log: Callable[[str], None] = lambda line: None
    ) -> None:
        """Args:
        workers: one or more workers of equal size.
        grace: seconds that running evaluations may take to end after an interrupt (Ctrl-C). A second one cancels them.
        log: called with a line when that begins.

        Raises:
            ValueError: there is no worker, or the sizes differ.
        """  # noqa: D205
        sizes = sorted({worker.size for worker in workers})
        if len(sizes) != 1:
            raise ValueError(f"expected one or more workers of equal size, got the sizes {sizes}; give equal workers")
        self.size = workers[0].size
        self._workers = tuple(workers)
        self._grace = grace
        self._log = log

    def __call__(
        self,
        groups: Sequence[Sequence[Genome]],
        on_result: Callable[[int, list[Evaluation]], None],
        relatives: Sequence[Relatives] = (),
        stages: Sequence[Stages] = (),
    ) -> None:
        """Evaluates groups of genomes; see :class:`GenomeEvaluator`.

        ``stages`` has for each group and genome its problems; all by default.

        After an exception in a worker all workers stop; then the exception is raised. After an interrupt (Ctrl-C) no evaluation
        begins, and running ones may end within the grace period.
        """
        stop, draining = threading.Event(), threading.Event()
        known, parts = relatives or [()] * len(groups), stages or [()] * len(groups)
        if len(self._workers) == 1 and self._grace == 0:
            for i, group in enumerate(groups):
                on_result(i, self._workers[0](group, stop, **given(known[i], parts[i])))
            return
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            idle.put(worker)
        one_at_a_time = threading.Lock()

        def evaluate(i: int, group: Sequence[Genome]) -> None:
            worker = idle.get()
            try:
                if draining.is_set():
                    return
                evaluations = worker(group, stop, **given(known[i], parts[i]))
            finally:
                idle.put(worker)
            with one_at_a_time:
                if not (draining.is_set() and any(one.transient for one in evaluations)):  # the signal may be the cause
                    on_result(i, evaluations)

        pool = ThreadPoolExecutor(len(self._workers), thread_name_prefix="worker")
        try:
            self._wait((pool.submit(evaluate, i, group) for i, group in enumerate(groups)), draining)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def stream(self, source: Source, on_result: Callable[[int, list[Evaluation]], None]) -> None:
        """Evaluates genomes until there are no more; see :class:`StreamEvaluator`."""
        stop, draining, one_at_a_time = threading.Event(), threading.Event(), threading.Lock()

        def serve(worker: Worker) -> None:
            try:
                while not stop.is_set():
                    with one_at_a_time:
                        job = None if stop.is_set() or draining.is_set() else source()
                    if job is None:
                        return
                    number, group, relatives = job
                    evaluations = worker(group, stop, **given(relatives))
                    with one_at_a_time:
                        failed = draining.is_set() and any(one.transient for one in evaluations)  # the signal may be the cause
                        if not stop.is_set() and not failed:
                            on_result(number, evaluations)
            except BaseException:
                stop.set()
                raise

        if len(self._workers) == 1 and self._grace == 0:
            serve(self._workers[0])
            return
        pool = ThreadPoolExecutor(len(self._workers), thread_name_prefix="worker")
        try:
            self._wait((pool.submit(serve, worker) for worker in self._workers), draining)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _wait(self, submitted: Iterator[Future[None]], draining: threading.Event) -> None:
        """Waits for evaluations. After an interrupt none begins, and running ones may end within the grace period."""
        evaluations: list[Future[None]] = []
        try:
            evaluations.extend(submitted)
            for future in as_completed(evaluations):
                future.result()
        except KeyboardInterrupt:
            draining.set()
            running = [future for future in evaluations if not future.cancel() and not future.done()]
            if running and self._grace > 0:
                self._log(f"running evaluations have {self._grace:g} s to end; press Ctrl-C to cancel them")
                for future in wait(running, self._grace).done:
                    if (error := future.exception()) is not None:
                        self._log(f"warning: an evaluation ended with {type(error).__name__}: {error}")
            raise


def given(relatives: Relatives, stages: Stages = ()) -> dict[str, Any]:
    """The relatives and the stages as keywords, where there are any."""
    return ({"relatives": relatives} if any(relatives) else {}) | ({"stages": stages} if stages else {})


def _with_express_time(evaluation: Evaluation, seconds: float) -> Evaluation:
    return dataclasses.replace(evaluation, seconds={"express": seconds, **evaluation.seconds})
