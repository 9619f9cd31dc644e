"""From weights to the scores of masks: one predictor segments the images of all tasks."""

from __future__ import annotations

import collections
import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

import numpy as np
from jaxtyping import Bool

from cycleqd_jax.evaluation.evaluator import EvaluationCancelled
from cycleqd_jax.types import (
    Evaluation,
    InputError,
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

_Place = tuple[SegmentationTask, int]
"""A task and the index of one of its items."""

_Read = Callable[[SegmentationTask, int], SegmentationItem]
"""Reads an item."""

_PENDING = 64
"""The most masks that wait for their scores, beside those of one item."""


class _Work(Sequence[SegmentationItem]):
    """The items of all tasks in order. Each is read when it is needed, and waits until its masks are scored."""

    def __init__(self, places: Sequence[_Place], read: _Read) -> None:
        self._places = places
        self._read = read
        self._waiting: dict[int, SegmentationItem] = {}

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> SegmentationItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SegmentationItem]: ...
    def __getitem__(self, index: int | slice) -> SegmentationItem | Sequence[SegmentationItem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._waiting:
            self._waiting[index] = self._read(*self._places[index])
        return self._waiting[index]

    def take(self, index: int) -> SegmentationItem:
        """An item that is not needed again."""
        item = self[index]
        del self._waiting[index]
        return item


@dataclasses.dataclass
class _Kept:
    """Images and masks in memory, which an evaluator and those of some of its tasks have in common."""

    bytes_left: int
    items: dict[tuple[str, Split, int], SegmentationItem] = dataclasses.field(default_factory=dict)


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
        cache_bytes: int = 1 << 30,
    ) -> None:
        """Args:
        predictor: predicts the masks.
        tasks: the tasks to score; the scores of their masks must be safe to compute in several threads.
        shrink: see :meth:`shrink`.
        usage: what every model has computed since the weights were loaded, in images.
        sizes: by task and split, how many of the first items are used; all by default.
        workers: number of threads that score masks while the predictor continues.
        cache_bytes: host memory for images and masks; further ones are read again by every evaluation.
        """  # noqa: D205
        self.tasks = tuple(tasks)
        self._shrink = shrink
        self._predictor = predictor
        self._usage = usage
        self._sizes = sizes or {}
        self._workers = workers
        self._items: dict[tuple[str, Split], Sequence[SegmentationItem]] = {}
        self._kept = _Kept(cache_bytes)

    def unload(self) -> None:
        """Frees the weights of the last model."""
        self._predictor.unload()

    def shrink(self) -> bool:
        """Makes the predictor need less memory and drops its weights; returns False where that was done already."""
        return self._shrink()

    def only(self, names: Collection[str]) -> SegmentationEvaluator:
        """An evaluator of some of the tasks, with the same predictor; only one of both may be used at a time."""
        found = copy.copy(self)
        found.tasks = tuple(task for task in self.tasks if task.name in names)
        return found

    def items(self, task: SegmentationTask, split: Split) -> Sequence[SegmentationItem]:
        """The items of a split, cut to the configured size. The task is asked once; it may read an item at each access.

        Raises:
            InputError: there is none.
        """
        key = (task.name, split)
        if key not in self._items:
            self._items[key] = task.items(split)[: self._sizes.get(task.name, {}).get(split)]
        if not self._items[key]:
            raise InputError(
                f"expected at least one item to evaluate, got none in split {split!r} of task {task.name!r}; increase its size"
            )
        return self._items[key]

    def masks(self, params: Params, items: Sequence[SegmentationItem]) -> list[Bool[np.ndarray, "height width"]]:
        """The masks that one model predicts for items of any tasks; nothing is scored.

        Args:
            params: weights of the model.
            items: the images, with their boxes as prompts.
        """
        self._predictor.load(params, donate=False)
        return [predicted.masks[0] for predicted in self._predictor.predict(items, 1)]

    def _item(self, task: SegmentationTask, split: Split, index: int) -> SegmentationItem:
        """An item of a split, which is kept while there is room."""
        key = (task.name, split, index)
        if key in self._kept.items:
            return self._kept.items[key]
        item = self.items(task, split)[index]
        size = item.image.nbytes + item.mask.nbytes
        if size <= self._kept.bytes_left:
            self._kept.bytes_left -= size
            self._kept.items[key] = item
        return item

    def __call__(
        self,
        params: Params,
        split: Split = "train",
        *,
        donate: bool = False,
        stop: threading.Event | None = None,
        relatives: Sequence[Transcript] = (),
    ) -> Evaluation:
        """Segments the images of all tasks with one model; see :class:`~cycleqd_jax.types.ModelEvaluator`.

        Args:
            params: weights of the model.
            split: the items.
            donate: whether their buffers may be reused.
            stop: when it is set, the evaluation is abandoned before the next item is read or scored.
            relatives: not used, because masks have no drafts.

        Raises:
            EvaluationCancelled: ``stop`` was set.
            InputError: a task has no item in the split, or one can't be read.
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
        """Segments the images of all tasks with several models at once; see :class:`~cycleqd_jax.types.ModelEvaluator`.

        Args:
            params: weights of all models, as :meth:`~cycleqd_jax.types.MaskPredictor.load` takes them.
            count: how many of the models to evaluate, from the first.
            split: the items.
            donate: see :meth:`__call__`.
            stop: see :meth:`__call__`.
            relatives: see :meth:`__call__`.

        Raises:
            EvaluationCancelled: ``stop`` was set.
            InputError: see :meth:`__call__`.
        """
        del relatives
        start = time.perf_counter()

        def read(task: SegmentationTask, index: int) -> SegmentationItem:
            if stop is not None and stop.is_set():
                raise EvaluationCancelled
            return self._item(task, split, index)

        places = [(task, i) for task in self.tasks for i in range(len(self.items(task, split)))]
        self._predictor.load(params, donate=donate)
        names: list[str] = []
        errors: dict[int, str] = {}
        scores: _Scores = {i: [] for i in range(count)}
        with ThreadPoolExecutor(max(1, self._workers), thread_name_prefix="score") as pool:
            try:
                self._score(places, read, count, stop, pool, scores, errors, names)
                values = {i: [future.result() for future in found] for i, found in scores.items() if i not in errors}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        seconds = {"evaluate": time.perf_counter() - start}
        counts = [None] * count if self._usage is None else [dataclasses.asdict(one) for one in self._usage()[:count]]
        return [
            Evaluation(self._outcomes(places, names, values[i]) if i in values else {}, errors.get(i), seconds, counts[i])
            for i in range(count)
        ]

    def _score(
        self,
        places: Sequence[_Place],
        read: _Read,
        count: int,
        stop: threading.Event | None,
        pool: ThreadPoolExecutor,
        scores: _Scores,
        errors: dict[int, str],
        names: list[str],
    ) -> None:
        """Starts the scoring of every mask; individuals without finite logits are left out from then on."""
        work = _Work(places, read)
        predictions = iter(self._predictor.predict(work, count))
        pending: collections.deque[Future[float]] = collections.deque()
        for index, (task, _) in enumerate(places):
            if stop is not None and stop.is_set():
                raise EvaluationCancelled
            if len(errors) == count:
                return
            predicted, item = next(predictions), work.take(index)
            names.append(item.name)
            for i in range(count):
                if i not in errors and not predicted.finite[i]:
                    errors[i] = f"the weights or the logits for {item.name!r} of task {task.name!r} are not finite"
                elif i not in errors:
                    scores[i].append(pool.submit(task.score, predicted.masks[i], item))
                    pending.append(scores[i][-1])
            while len(pending) > _PENDING:
                pending.popleft().result()

    def _outcomes(self, places: Sequence[_Place], names: Sequence[str], values: Sequence[float]) -> dict[str, list[Outcome]]:
        """The outcomes of one individual by task."""
        outcomes: dict[str, list[Outcome]] = {task.name: [] for task in self.tasks}
        for (task, _), name, value in zip(places, names, values, strict=True):
            outcomes[task.name].append(Outcome(Score(value, name), (), 0, 1))
        return outcomes
