"""From weights to scores: all tasks of a model are played through one engine at once."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

from cycleqd_jax.evaluation import rollout
from cycleqd_jax.types import Episode, Generator, InputError, Message, NonFiniteError, Outcome, Params, Reply, Split, Task

__all__ = ["Abandoned", "Evaluation", "Evaluator"]


class Abandoned(Exception):
    """An evaluation was told to stop; nothing is known of the model."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known of one model on one split.

    Attributes:
        outcomes: for each task, how each episode ended, in the order of the task's episodes; empty if quarantined.
        error: why the model could not be evaluated, or None.
        seconds: wall time by stage.
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    error: str | None
    seconds: Mapping[str, float]

    @property
    def items(self) -> dict[str, list[float]]:
        """The score of every episode, by task."""
        return {name: [outcome.score.value for outcome in outcomes] for name, outcomes in self.outcomes.items()}

    @property
    def scores(self) -> dict[str, float] | None:
        """f_k: the mean score of each task; None if quarantined."""
        if self.error is not None:
            return None
        return {name: statistics.fmean(values) for name, values in self.items.items()}


class _Watched:
    """A generator that stops when it is told to, and refuses problems whose very first prompt does not fit.

    Those would score zero whatever the model.
    """

    def __init__(
        self,
        generator: Generator,
        names: Sequence[str],
        individuals: Sequence[int] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._generator = generator
        self._names = names
        self._individuals = individuals
        self._stop = stop
        self._begun: set[Hashable] = set()

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int, *, individual: int = 0) -> None:
        if self._individuals is not None:
            individual = self._individuals[conversation]  # type: ignore[index]
        self._generator.submit(conversation, messages, max_new_tokens, individual=individual)

    def advance(self) -> list[tuple[Hashable, Reply]]:
        if self._stop is not None and self._stop.is_set():
            raise Abandoned
        replies = self._generator.advance()
        new = [(key, reply) for key, reply in replies if key not in self._begun]
        self._begun.update(key for key, _ in new)
        refused = [key for key, reply in new if reply.finish == "refused"]
        if refused:
            raise InputError(
                f"{len(refused)} prompts, the first of them of task {self._names[refused[0]]!r}, leave no room for a reply in "  # type: ignore[index]
                "engine.max_len: raise it."
            )
        return replies

    def release(self, conversation: Hashable) -> None:
        self._generator.release(conversation)


class Evaluator:
    """Scores models by letting them play the tasks, through one engine; from one thread at a time.

    A model's scores depend on its weights alone: an engine begins every model alike, and nothing is shared between models but
    verdicts on equal replies.

    Attributes:
        tasks: in the order of the scores.
        unload: lets go of the weights of the last model, so that there is room to make the next one's.
    """

    def __init__(
        self,
        load: Callable[..., None],
        generator: Generator,
        tasks: Sequence[Task],
        *,
        unload: Callable[[], None] = lambda: None,
        sizes: Mapping[str, Mapping[Split, int | None]] | None = None,
        workers: int = 2,
        overlap: bool = True,
    ) -> None:
        """Args:
        load: ``load(params, donate=…)`` makes the generator speak with these weights.
        generator: conversations in, replies out.
        tasks: what to play.
        unload: see the class.
        sizes: how many of the first problems of each task and split count; all where nothing is said.
        workers: sandboxes at work at the same time.
        overlap: see :func:`cycleqd_jax.evaluation.rollout`.
        """  # noqa: D205
        self.tasks = tuple(tasks)
        self.unload = unload
        self._load = load
        self._generator = generator
        self._sizes = sizes or {}
        self._workers = workers
        self._overlap = overlap

    def episodes(self, task: Task, split: Split) -> Sequence[Episode]:
        """The episodes of a split that count."""
        return task.episodes(split)[: self._sizes.get(task.name, {}).get(split)]

    def __call__(
        self, params: Params, split: Split = "train", *, donate: bool = False, stop: threading.Event | None = None
    ) -> Evaluation:
        """Plays all tasks with one model.

        Args:
            params: its weights.
            split: which half.
            donate: the weights are not needed afterwards.
            stop: when it is set, the model is abandoned as soon as the engine comes back from what it is at.

        Returns:
            The evaluation; a model whose logits are not finite has ``error`` set.

        Raises:
            InputError: when the first prompt of a problem does not fit the engine's cache.
            InfraError: when a sandbox is broken; nothing is known of the model then.
            Abandoned: ``stop`` was set.
        """
        return self.population(params, None, split, donate=donate, stop=stop)[0]

    def population(
        self,
        params: Params,
        count: int | None,
        split: Split = "train",
        *,
        donate: bool = False,
        stop: threading.Event | None = None,
    ) -> list[Evaluation]:
        """Plays all tasks with several models at once, whose weights are one tree (``types.MixedMatrix``).

        Args:
            params: their weights.
            count: how many of them are wanted, from the first; ``None`` for the weights of one.
            split: which half.
            donate: the weights are not needed afterwards.
            stop: see :meth:`__call__`.

        Returns:
            An evaluation for each; those whose logits are not finite have ``error`` set. All have the same ``seconds``: those
            of all of them together.

        Raises:
            InputError: see :meth:`__call__`.
            InfraError: see :meth:`__call__`.
            Abandoned: see :meth:`__call__`.
        """
        start = time.perf_counter()
        errors: dict[int, str] = {}
        self._load(params, donate=donate)
        while True:
            alive = [i for i in range(count or 1) if i not in errors]
            try:
                played = self._play(alive if count is not None else None, split, stop) if alive else {}
                break
            except NonFiniteError as error:
                errors[error.individual] = str(error)
        seconds = {"evaluate": time.perf_counter() - start}
        return [Evaluation(played.get(i, {}), errors.get(i), seconds) for i in range(count or 1)]

    def _play(
        self, individuals: Sequence[int] | None, split: Split, stop: threading.Event | None
    ) -> dict[int, dict[str, list[Outcome]]]:
        names: list[str] = []
        owners: list[int] = []
        episodes: list[Episode] = []
        limits: list[int] = []
        for individual in individuals or (0,):
            for task in self.tasks:
                group = self.episodes(task, split)
                episodes += group
                names += [task.name] * len(group)
                owners += [individual] * len(group)
                limits += [task.max_new_tokens] * len(group)
        generator = _Watched(self._generator, names, None if individuals is None else owners, stop)
        outcomes = rollout(episodes, generator, limits, workers=self._workers, overlap=self._overlap)
        played: dict[int, dict[str, list[Outcome]]] = {i: {task.name: [] for task in self.tasks} for i in individuals or (0,)}
        for owner, name, outcome in zip(owners, names, outcomes, strict=True):
            played[owner][name].append(outcome)
        return played
