"""From weights to the scores of masks: one predictor segments the images of all tasks."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool

from cycleqd_jax.evaluation.evaluator import EvaluationCancelled
from cycleqd_jax.types import (
    Evaluation,
    MaskPredictor,
    Outcome,
    Params,
    Score,
    SegmentationItem,
    SegmentationTask,
    Split,
    TokenCounts,
    Transcript,
)

__all__ = ["SegmentationEvaluator"]

_Scores = dict[int, list[Future[float]]]
"""The scores of every individual whose logits are finite, item by item."""

_PENDING = 64
"""The most masks that wait for their scores, beside those of one item."""


class SegmentationEvaluator:
    """Scores models that segment images; a :class:`~cycleqd_jax.types.ModelEvaluator`. Not thread-safe.

    The outcome of an item is the task's score of its mask, with the item's name as its reason and no messages.

    Attributes:
        tasks: the tasks, in the order of the scores.
    """

    def __init__(
        self,
        predictor: MaskPredictor,
        tasks: Sequence[SegmentationTask],
        *,
        shrink: Callable[[], bool] = lambda: False,
        usage: Callable[[], Sequence[TokenCounts]] | None = None,
        sizes: Mapping[str, Mapping[Split, int | None]] | None = None,
        workers: int = 2,
    ) -> None:
        """Args:
        predictor: predicts the masks.
        tasks: the tasks to score; the scores of their masks must be safe to compute in several threads.
        shrink: see :meth:`shrink`.
        usage: what every model has computed since the weights were loaded, in images.
        sizes: by task and split, how many of the first items are used; all by default.
        workers: number of threads that score masks while the predictor continues.
        """  # noqa: D205
        self.tasks = tuple(tasks)
        self._shrink = shrink
        self._predictor = predictor
        self._usage = usage
        self._sizes = sizes or {}
        self._workers = workers
        self._items: dict[tuple[str, Split], Sequence[SegmentationItem]] = {}

    def unload(self) -> None:
        """Frees the weights of the last model."""
        self._predictor.unload()

    def shrink(self) -> bool:
        """Makes the predictor need less memory and drops its weights; returns False where that was done already."""
        return self._shrink()

    def items(self, task: SegmentationTask, split: Split) -> Sequence[SegmentationItem]:
        """The items of a split, cut to the configured size; they are read once."""
        key = (task.name, split)
        if key not in self._items:
            self._items[key] = task.items(split)[: self._sizes.get(task.name, {}).get(split)]
        return self._items[key]

    def masks(self, params: Params, items: Sequence[SegmentationItem]) -> list[Bool[np.ndarray, "height width"]]:
        """The masks that one model predicts for items of any tasks; nothing is scored.

        Args:
            params: weights of the model.
            items: the images, with their boxes as prompts.
        """
        self._predictor.load(params, donate=False)
        return [predicted.masks[0] for predicted in self._predictor.predict(items, 1)]

    def __call__(
        self,
        params: Params,
        split: Split = "train",
        *,
        donate: bool = False,
        stop: threading.Event | None = None,
        relatives: Sequence[Transcript] = (),
    ) -> Evaluation:
        """Segments the images of all tasks with one model.

        Args:
            params: weights of the model.
            split: the items.
            donate: whether the weights' buffers may be reused; the caller must not use them afterwards.
            stop: when it is set, the evaluation is abandoned after the predictor's current batch.
            relatives: not used, because masks have no drafts.

        Returns:
            The evaluation. Its ``error`` is set if weights or logits are not finite.

        Raises:
            EvaluationCancelled: ``stop`` was set.
        """
        return self.population(params, 1, split, donate=donate, stop=stop, relatives=[relatives])[0]

    def population(
        self,
        params: Params,
        count: int,
        split: Split = "train",
        *,
        donate: bool = False,
        stop: threading.Event | None = None,
        relatives: Sequence[Sequence[Transcript]] = (),
    ) -> list[Evaluation]:
        """Segments the images of all tasks with several models at once.

        Args:
            params: weights of all models, as :meth:`~cycleqd_jax.types.MaskPredictor.load` takes them.
            count: how many of the models to evaluate, from the first.
            split: the items.
            donate: see :meth:`__call__`.
            stop: see :meth:`__call__`.
            relatives: see :meth:`__call__`.

        Returns:
            An evaluation for each model. ``error`` is set where weights or logits are not finite. ``seconds`` is the time of
            all models together, in each of them.

        Raises:
            EvaluationCancelled: ``stop`` was set.
        """
        del relatives
        start = time.perf_counter()
        self._predictor.load(params, donate=donate)
        work = [(task, item) for task in self.tasks for item in self.items(task, split)]
        errors: dict[int, str] = {}
        scores: _Scores = {i: [] for i in range(count)}
        with ThreadPoolExecutor(max(1, self._workers), thread_name_prefix="score") as pool:
            try:
                self._score(work, count, stop, pool, scores, errors)
                values = {i: [future.result() for future in found] for i, found in scores.items() if i not in errors}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        seconds = {"evaluate": time.perf_counter() - start}
        counts = [None] * count if self._usage is None else [dataclasses.asdict(one) for one in self._usage()[:count]]
        return [
            Evaluation(self._outcomes(work, values[i]) if i in values else {}, errors.get(i), seconds, counts[i])
            for i in range(count)
        ]

    def _score(
        self,
        work: Sequence[tuple[SegmentationTask, SegmentationItem]],
        count: int,
        stop: threading.Event | None,
        pool: ThreadPoolExecutor,
        scores: _Scores,
        errors: dict[int, str],
    ) -> None:
        """Starts the scoring of every mask; individuals without finite logits are left out from then on."""
        predictions = iter(self._predictor.predict([item for _, item in work], count))
        pending: collections.deque[Future[float]] = collections.deque()
        for task, item in work:
            if stop is not None and stop.is_set():
                raise EvaluationCancelled
            if len(errors) == count:
                return
            predicted = next(predictions)
            for i in range(count):
                if i not in errors and not predicted.finite[i]:
                    errors[i] = f"the weights or the logits for {item.name!r} of task {task.name!r} are not finite"
                elif i not in errors:
                    scores[i].append(pool.submit(task.score, predicted.masks[i], item))
                    pending.append(scores[i][-1])
            while len(pending) > _PENDING:
                pending.popleft().result()

    def _outcomes(
        self, work: Sequence[tuple[SegmentationTask, SegmentationItem]], values: Sequence[float]
    ) -> dict[str, list[Outcome]]:
        """The outcomes of one individual by task."""
        outcomes: dict[str, list[Outcome]] = {task.name: [] for task in self.tasks}
        for (task, item), value in zip(work, values, strict=True):
            outcomes[task.name].append(Outcome(Score(value, item.name), (), 0, 1))
        return outcomes
