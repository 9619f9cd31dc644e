"""The result of an evaluation, and the contract of what turns the weights of models into it."""

from __future__ import annotations

import dataclasses
import statistics
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from cycleqd_jax.types.arrays import Params
from cycleqd_jax.types.tasks import Outcome, Split, Transcript

__all__ = ["Evaluation", "ModelEvaluator"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of one model on one split.

    Attributes:
        outcomes: for each task, the outcomes of its episodes in their order; empty if the model is quarantined.
        error: why the model could not be evaluated, or None.
        seconds: wall time by stage.
        tokens: the fields of :class:`~cycleqd_jax.types.TokenCounts`, by name; None if the generator does not count.
        transient: whether another evaluation of the model may have no error: a sandbox, the memory or the time was the reason.
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    error: str | None
    seconds: Mapping[str, float]
    tokens: Mapping[str, int] | None = None
    transient: bool = False

    @property
    def items(self) -> dict[str, list[float]]:
        """The score of every episode, by task."""
        return {name: [outcome.score.value for outcome in outcomes] for name, outcomes in self.outcomes.items()}

    @property
    def transcript(self) -> Transcript:
        """The token ids of all replies."""
        return {name: [outcome.replies for outcome in outcomes] for name, outcomes in self.outcomes.items()}

    @property
    def scores(self) -> dict[str, float] | None:
        """f_k: the mean score of each task; None if the model is quarantined."""
        if self.error is not None:
            return None
        return {name: statistics.fmean(values) for name, values in self.items.items()}


@runtime_checkable
class ModelEvaluator(Protocol):
    """Scores models on all tasks of a run: all that workers, the results table and commands need of an evaluator.

    Implementations need not be thread-safe. The scores of a model depend on its weights alone.
    """

    def unload(self) -> None:
        """Frees the weights of the last model, so that there is room for the next."""
        ...

    def shrink(self) -> bool:
        """Makes the evaluator need less memory, where memory has run out; its weights are dropped.

        Returns:
            Whether it did; False where nothing can be shrunk.
        """
        ...

    def only(self, names: Collection[str]) -> ModelEvaluator:
        """An evaluator of some of the tasks, on the same devices; only one of both may be used at a time.

        Args:
            names: of the tasks.
        """
        ...

    def __call__(
        self,
        params: Params,
        split: Split = "train",
        *,
        donate: bool = False,
        stop: threading.Event | None = None,
        relatives: Sequence[Transcript] = (),
    ) -> Evaluation:
        """Scores one model.

        Args:
            params: weights of the model.
            split: the problems.
            donate: whether the weights' buffers may be reused; the caller must not use them afterwards.
            stop: when it is set, the evaluation is abandoned as soon as possible.
            relatives: the replies of related models on the same split. They must not change the scores.

        Returns:
            The evaluation. Its ``error`` is set if the model's logits are not finite.

        Raises:
            EvaluationCancelled: ``stop`` was set.
        """
        ...

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
        """Scores several models at once, whose weights are one tree.

        Args:
            params: weights of all models.
            count: how many of the models to evaluate, from the first.
            split: see :meth:`__call__`.
            donate: see :meth:`__call__`.
            stop: see :meth:`__call__`.
            relatives: for each model, see :meth:`__call__`; none by default.

        Returns:
            An evaluation for each model. ``seconds`` is the time of all models together, in each of them.

        Raises:
            EvaluationCancelled: ``stop`` was set.
        """
        ...
