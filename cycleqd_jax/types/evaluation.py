"""The result of an evaluation, and the contract of what turns the weights of models into it."""

from __future__ import annotations

import dataclasses
import statistics
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from cycleqd_jax.types.arrays import Params
from cycleqd_jax.types.tasks import Outcome, Split, Transcript

__all__ = ["Evaluation", "ItemEvaluator", "ModelEvaluator", "NextItems"]

NextItems = Callable[[Mapping[str, Mapping[int, float]]], Mapping[str, Sequence[int]] | None]
"""Which problems of which tasks a model is evaluated on next, as positions in their split, by task; None at the end. The
argument has the scores of all problems that the model was evaluated on, by task and position."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of one model on one split.

    Attributes:
        outcomes: for each task, the outcomes of its episodes in their order; empty if the model is quarantined.
        error: why the model could not be evaluated, or None.
        seconds: wall time by stage.
        tokens: the fields of :class:`~cycleqd_jax.types.TokenCounts`, by name; None if the generator does not count.
        transient: whether another evaluation of the model may have no error: a sandbox, the memory or the time was the reason.
        evaluated: by task, the positions of the problems that ``outcomes`` are of, ascending; None if they are all problems of
            the split.
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    error: str | None
    seconds: Mapping[str, float]
    tokens: Mapping[str, int] | None = None
    transient: bool = False
    evaluated: Mapping[str, Sequence[int]] | None = None

    @property
    def items(self) -> dict[str, list[float]]:
        """The score of every episode, by task."""
        return {name: [outcome.score.value for outcome in outcomes] for name, outcomes in self.outcomes.items()}

    @property
    def transcript(self) -> Transcript:
        """The token ids of all replies; nothing for problems that were not evaluated."""
        if self.evaluated is None:
            return {name: [outcome.replies for outcome in outcomes] for name, outcomes in self.outcomes.items()}
        found: dict[str, list[Sequence[Sequence[int]]]] = {}
        for name, positions in self.evaluated.items():
            replies = {place: outcome.replies for place, outcome in zip(positions, self.outcomes[name], strict=True)}
            found[name] = [replies.get(place, ()) for place in range(max(positions, default=-1) + 1)]
        return found

    @property
    def scores(self) -> dict[str, float] | None:
        """f_k: the mean score of each task; None if the model is quarantined, or was not evaluated on all problems."""
        if self.error is not None or self.evaluated is not None:
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
            names: the names of the tasks.
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


@runtime_checkable
class ItemEvaluator(ModelEvaluator, Protocol):
    """A model evaluator that can also score some problems of a split, and go on with others."""

    def sizes(self, split: Split) -> Mapping[str, int]:
        """The number of problems of a split, by task."""
        ...

    def load(self, params: Params, *, donate: bool = False) -> None:
        """Loads weights for :meth:`score`, of one model or of several.

        Args:
            params: weights of all models.
            donate: see :meth:`__call__`.
        """
        ...

    def score(
        self,
        items: Mapping[int, Mapping[str, Sequence[int]]],
        split: Split = "train",
        *,
        stop: threading.Event | None = None,
        relatives: Sequence[Sequence[Transcript]] = (),
    ) -> dict[int, Evaluation]:
        """Scores the loaded models on some problems; it may be called again for others.

        Args:
            items: positions of problems, by model and task. The key of a model is its number among the loaded ones.
            split: the problems that the positions are of.
            stop: see :meth:`__call__`.
            relatives: for each loaded model, see :meth:`__call__`; none by default.

        Returns:
            An evaluation for each model of ``items``, equal to the part of a whole evaluation that these problems are. The
            outcomes are in the order of the positions; ``evaluated`` is not set.
            ``seconds`` is the time of all models together, and ``tokens`` counts from the loading of the weights.

        Raises:
            EvaluationCancelled: ``stop`` was set.
        """
        ...
