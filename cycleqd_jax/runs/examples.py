"""The training conversations of all tasks, tokenised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cycleqd_jax import training
from cycleqd_jax.runs.models import Models
from cycleqd_jax.runs.tasks import TrainingData

__all__ = ["Examples"]


class Examples:
    """The training conversations of every task, tokenised when they are first needed. None is a validation or test problem.

    Attributes:
        identities: JSON by task that changes whenever its conversations do.
    """

    def __init__(self, models: Models, training_data: Mapping[str, TrainingData]) -> None:
        """Loads nothing yet.

        Args:
            models: the models of the run, for their tokenizer.
            training_data: the training data of every task, by name.
        """
        self.identities: dict[str, Any] = {task: data.identity for task, data in training_data.items()}
        self._models = models
        self._data = training_data
        self._encoded: dict[str, list[training.Example]] = {}

    def of(self, task: str) -> list[training.Example]:
        """All examples of a task.

        Raises:
            InputError: no gold solution of the task scores in the sandbox.
        """
        if task not in self._encoded:
            encode = self._models.tokenizer.encode_for_training
            self._encoded[task] = [encode(conversation) for conversation in self._data[task].load()]
        return self._encoded[task]

    def mixture(self, shares: Mapping[str, float], count: int, seed: int) -> list[training.Example]:
        """Examples of several tasks; see :func:`cycleqd_jax.training.mixture`.

        Args:
            shares: the share of each task.
            count: the number of examples.
            seed: the seed of the choice.

        Raises:
            InputError: no gold solution of a task scores in the sandbox.
        """
        return training.mixture({task: self.of(task) for task in shares}, shares, count, seed)
