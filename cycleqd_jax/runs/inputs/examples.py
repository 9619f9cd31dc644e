"""What experts learn from, of all tasks: tokenised conversations, or images with masks."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, overload

from cycleqd_jax import training
from cycleqd_jax.runs.inputs.models import Models
from cycleqd_jax.runs.inputs.tasks import TrainingData

__all__ = ["Examples"]


class Examples:
    """What the expert of every task learns from, made when it is first needed. None is a validation or test problem.

    Attributes:
        identities: JSON by task that changes whenever its training data does.
    """

    def __init__(self, models: Models, training_data: Mapping[str, TrainingData]) -> None:
        """Loads nothing yet.

        Args:
            models: the models of the run, for their processor.
            training_data: the training data of every task, by name.
        """
        self.identities: dict[str, Any] = {task: data.identity for task, data in training_data.items()}
        self._models = models
        self._data = training_data
        self._made: dict[str, Sequence[Any]] = {}

    def of(self, task: str) -> Sequence[Any]:
        """All examples of a task; images are read when they are used. See :meth:`~cycleqd_jax.runs.families.Family.examples`.

        Raises:
            InputError: no gold solution of the task scores in the sandbox.
        """
        if task not in self._made:
            self._made[task] = self._models.family.examples(self._models.processor, self._data[task].load())
        return self._made[task]

    def joined(self, tasks: Sequence[str]) -> Sequence[Any]:
        """All examples of several tasks, those of the first task first.

        Raises:
            InputError: see :meth:`of`.
        """
        return self.of(tasks[0]) if len(tasks) == 1 else _Joined([self.of(task) for task in tasks])

    def mixture(self, shares: Mapping[str, float], count: int, seed: int) -> list[training.Example]:
        """Tokenised conversations of several tasks; see :func:`cycleqd_jax.training.mixture`.

        Args:
            shares: the share of each task.
            count: the number of examples.
            seed: the seed of the choice.

        Raises:
            InputError: no gold solution of a task scores in the sandbox.
        """
        return training.mixture({task: self.of(task) for task in shares}, shares, count, seed)


class _Joined(Sequence[Any]):
    """Several sequences as one, of which no element is kept."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = parts
        self._starts = [0, *itertools.accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        part = bisect.bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]
