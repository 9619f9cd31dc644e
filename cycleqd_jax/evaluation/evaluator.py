"""From weights to scores: one engine plays the episodes of all tasks at once."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cycleqd_jax.evaluation.episodes import rollout
from cycleqd_jax.types import (
    Episode,
    Evaluation,
    Generator,
    InputError,
    LikelihoodTask,
    Message,
    NonFiniteError,
    Outcome,
    Params,
    Question,
    Reply,
    Scorer,
    Split,
    Task,
    TokenCounts,
    Transcript,
    with_place,
)

__all__ = ["EvaluationCancelled", "Evaluator", "Load"]

QUESTIONS = 512
"""Questions that are scored between two checks of ``stop``."""


class EvaluationCancelled(Exception):
    """The evaluation was stopped before it had a result."""


@dataclasses.dataclass(frozen=True)
class _Played:
    """An episode, the individual that plays it, the task it belongs to, and the replies of the individual's relatives."""

    individual: int
    task: Task
    episode: Episode
    relatives: Sequence[Sequence[Sequence[int]]]


class _GuardedGenerator:
    """A generator for one rollout of several individuals.

    It decodes every conversation with the weights of its individual. It raises :class:`EvaluationCancelled` when ``stop`` is
    set, and an InputError when the first prompt of an episode does not fit, because such an episode scores zero with any
    weights.
    """

    def __init__(self, generator: Generator, played: Sequence[_Played], stop: threading.Event | None) -> None:
        self._generator = generator
        self._played: Mapping[Hashable, _Played] = dict(enumerate(played))
        self._stop = stop
        self._begun: set[Hashable] = set()

    def submit(
        self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int, *, individual: int = 0, **options: Any
    ) -> None:
        individual = self._played[conversation].individual
        self._generator.submit(conversation, messages, max_new_tokens, individual=individual, **options)

    def advance(self) -> list[tuple[Hashable, Reply]]:
        if self._stop is not None and self._stop.is_set():
            raise EvaluationCancelled
        replies = self._generator.advance()
        first = [(conversation, reply) for conversation, reply in replies if conversation not in self._begun]
        self._begun.update(conversation for conversation, _ in first)
        refused = [conversation for conversation, reply in first if reply.finish == "refused"]
        if refused:
            raise InputError(
                "expected engine.max_len to leave room for a reply after the first prompt of every problem, got "
                f"{len(refused)} longer prompts, the first in task {self._played[refused[0]].task.name!r}; raise engine.max_len"
            )
        return replies

    def release(self, conversation: Hashable) -> None:
        self._generator.release(conversation)


@runtime_checkable
class Load(Protocol):
    """Makes a generator use other weights."""

    def __call__(self, params: Params, *, donate: bool) -> None:
        """Loads weights.

        Args:
            params: weights of the model or models.
            donate: whether their buffers may be reused; the caller does not use them afterwards.
        """
        ...


class Evaluator:
    """Scores models: they play all tasks through one engine. Not thread-safe.

    The scores of a model depend on its weights alone. Models share no state except cached scores of identical replies.

    Attributes:
        tasks: the tasks, in the order of the scores.
        unload: frees the weights of the last model, so that there is room for the next.
    """

    def __init__(
        self,
        load: Load,
        generator: Generator,
        tasks: Sequence[Task],
        *,
        scorer: Scorer | None = None,
        unload: Callable[[], None] = lambda: None,
        shrink: Callable[[], bool] = lambda: False,
        usage: Callable[[], Sequence[TokenCounts]] | None = None,
        sizes: Mapping[str, Mapping[Split, int | None]] | None = None,
        workers: int = 2,
    ) -> None:
        """Args:
        load: makes the generator use other weights.
        generator: conversations in, replies out.
        tasks: the tasks to play.
        scorer: log-likelihoods by the weights of the generator, for tasks that need them
            (:class:`~cycleqd_jax.types.LikelihoodTask`); None only where no task does.
        unload: see the class.
        shrink: see :meth:`shrink`.
        usage: the tokens of every model since the weights were loaded.
        sizes: by task and split, how many of the first problems are played; all by default.
        workers: number of sandboxes that work at the same time.
        """  # noqa: D205
        self.tasks = tuple(tasks)
        self.unload = unload
        self._shrink = shrink
        self._load = load
        self._usage = usage
        self._generator = generator
        self._scorer = scorer
        self._sizes = sizes or {}
        self._workers = workers

    def only(self, names: Collection[str]) -> Evaluator:
        """An evaluator of some of the tasks, with the same generator; only one of both may be used at a time.

        Args:
            names: the names of the tasks.
        """
        found = copy.copy(self)
        found.tasks = tuple(task for task in self.tasks if task.name in names)
        return found

    def episodes(self, task: Task, split: Split) -> Sequence[Episode]:
        """The episodes of a split, cut to the configured size."""
        return task.episodes(split)[: self._sizes.get(task.name, {}).get(split)]

    def shrink(self) -> bool:
        """Makes the generator need less memory and drops its weights; returns False where that was done already."""
        return self._shrink()

    def __call__(
        self,
        params: Params,
        split: Split = "train",
        *,
        donate: bool = False,
        stop: threading.Event | None = None,
        relatives: Sequence[Transcript] = (),
    ) -> Evaluation:
        """Plays all tasks with one model.

        Args:
            params: weights of the model.
            split: the problems to play.
            donate: whether the weights' buffers may be reused; the caller must not use them afterwards.
            stop: when it is set, the evaluation is abandoned after the generator's current call.
            relatives: the replies of related models on the same split, the closest first; the generator's drafts.

        Returns:
            The evaluation. Its ``error`` is set if the model's logits are not finite.

        Raises:
            InputError: the first prompt of a problem does not fit the engine's cache.
            InfraError: a sandbox failed; the model has no scores then.
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
        """Plays all tasks with several models at once, whose weights are one tree (:class:`cycleqd_jax.types.MixedMatrix`).

        When the logits of one model are not finite, the other models start again without it.

        Args:
            params: weights of all models.
            count: how many of the models to evaluate, from the first.
            split: the problems to play.
            donate: see :meth:`__call__`.
            stop: see :meth:`__call__`.
            relatives: for each model, see :meth:`__call__`; none by default.

        Returns:
            An evaluation for each model. ``error`` is set where the logits are not finite. ``seconds`` is the time of all
            models together, in each of them.

        Raises:
            InputError: see :meth:`__call__`.
            InfraError: see :meth:`__call__`.
            EvaluationCancelled: see :meth:`__call__`.
        """
        start = time.perf_counter()
        self._load(params, donate=donate)
        found = self._scored(dict.fromkeys(range(count)), split, start, stop, relatives)
        return [found[i] for i in range(count)]

    def sizes(self, split: Split) -> dict[str, int]:
        """The number of problems of a split, by task."""
        return {
            task.name: len(self._questions(task, split) if isinstance(task, LikelihoodTask) else self.episodes(task, split))
            for task in self.tasks
        }

    def load(self, params: Params, *, donate: bool = False) -> None:
        """Loads the weights of one model or of several for :meth:`score`; see :class:`~cycleqd_jax.types.ItemEvaluator`."""
        self._load(params, donate=donate)

    def score(
        self,
        items: Mapping[int, Mapping[str, Sequence[int]]],
        split: Split = "train",
        *,
        stop: threading.Event | None = None,
        relatives: Sequence[Sequence[Transcript]] = (),
    ) -> dict[int, Evaluation]:
        """Plays some problems with the loaded models; see :class:`~cycleqd_jax.types.ItemEvaluator`.

        Raises:
            EvaluationCancelled: see :meth:`__call__`.
        """
        return self._scored(items, split, time.perf_counter(), stop, relatives)

    def _scored(
        self,
        items: Mapping[int, Mapping[str, Sequence[int]] | None],
        split: Split,
        start: float,
        stop: threading.Event | None,
        relatives: Sequence[Sequence[Transcript]],
    ) -> dict[int, Evaluation]:
        """The evaluations of the loaded models on some problems, or on all (None)."""
        errors: dict[int, str] = {}
        outcomes: dict[int, dict[str, list[Outcome]]] = {}
        while alive := {i: chosen for i, chosen in items.items() if i not in errors}:
            try:
                outcomes = self._play(alive, split, stop, relatives or [()] * (max(items) + 1))
                break
            except NonFiniteError as error:
                errors[error.individual] = str(error)
        seconds = {"evaluate": time.perf_counter() - start}
        tokens = {} if self._usage is None else dict(enumerate(map(dataclasses.asdict, self._usage())))
        return {i: Evaluation(outcomes.get(i, {}), errors.get(i), seconds, tokens.get(i)) for i in items}

    def _play(
        self,
        items: Mapping[int, Mapping[str, Sequence[int]] | None],
        split: Split,
        stop: threading.Event | None,
        relatives: Sequence[Sequence[Transcript]],
    ) -> dict[int, dict[str, list[Outcome]]]:
        """Outcomes of all tasks by individual and task."""
        played = [
            _Played(individual, task, episodes[number], _replies(relatives[individual], task, number))
            for individual, chosen in items.items()
            for task in self.tasks
            if not isinstance(task, LikelihoodTask)
            for episodes in [self.episodes(task, split)]
            for number in _positions(chosen, task, len(episodes))
        ]
        found = rollout(
            [one.episode for one in played],
            _GuardedGenerator(self._generator, played, stop),
            [one.task.max_new_tokens for one in played],
            workers=self._workers,
            relatives=[one.relatives for one in played],
        )
        outcomes: dict[int, dict[str, list[Outcome]]] = {i: {task.name: [] for task in self.tasks} for i in items}
        for one, outcome in zip(played, found, strict=True):
            outcomes[one.individual][one.task.name].append(outcome)
        for individual, chosen in items.items():
            for task in self.tasks:
                if isinstance(task, LikelihoodTask):
                    questions = self._questions(task, split)
                    some = [questions[number] for number in _positions(chosen, task, len(questions))]
                    outcomes[individual][task.name] = self._answered(task, some, individual, stop)
        return outcomes

    def _questions(self, task: LikelihoodTask, split: Split) -> Sequence[Question]:
        """The questions of a split, cut to the configured size."""
        return task.questions(split)[: self._sizes.get(task.name, {}).get(split)]

    def _answered(
        self, task: LikelihoodTask, questions: Sequence[Question], individual: int, stop: threading.Event | None
    ) -> list[Outcome]:
        """The outcomes of questions, by the log-likelihoods of their choices.

        Raises:
            InputError: there is no scorer, or a choice does not fit the engine.
            EvaluationCancelled: ``stop`` was set.
        """
        if self._scorer is None:
            raise InputError(
                f"expected a scorer for task {task.name!r}, which is scored by log-likelihoods, got none; give Evaluator one"
            )
        outcomes: list[Outcome] = []
        for start in range(0, len(questions), QUESTIONS):
            if stop is not None and stop.is_set():
                raise EvaluationCancelled
            some = questions[start : start + QUESTIONS]
            try:
                pairs = [(one.context, choice) for one in some for choice in one.choices]
                found = iter(self._scorer.score(pairs, individual=individual))
            except InputError as error:
                raise InputError(with_place(error, f"task {task.name!r}")) from error
            outcomes += [task.outcome(one, [next(found) for _ in one.choices]) for one in some]
        return outcomes


def _positions(chosen: Mapping[str, Sequence[int]] | None, task: Task, count: int) -> Sequence[int]:
    """The positions of a task's problems to play, of ``count``; all without a choice."""
    return range(count) if chosen is None else chosen.get(task.name, ())


def _replies(relatives: Sequence[Transcript], task: Task, episode: int) -> list[Sequence[Sequence[int]]]:
    """The replies of all relatives that have played an episode of a task."""
    return [found[episode] for one in relatives if len(found := one.get(task.name, ())) > episode and found[episode]]
