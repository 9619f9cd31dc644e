"""From weights to scores: all tasks of a model are played through one engine at once."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from cycleqd_jax.engine import NonFiniteError
from cycleqd_jax.tasks import rollout
from cycleqd_jax.types import Episode, Generator, InputError, Message, Outcome, Params, Reply, Split, Task

__all__ = ["Evaluation", "Evaluator"]


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


class _FirstPromptsFit:
    """A generator that refuses problems whose very first prompt does not fit: they would score zero whatever the model."""

    def __init__(self, generator: Generator, names: Sequence[str]) -> None:
        self._generator = generator
        self._names: Sequence[str] | None = names

    def generate(self, conversations: Sequence[Sequence[Message]], max_new_tokens: Sequence[int]) -> list[Reply]:
        replies = self._generator.generate(conversations, max_new_tokens)
        if self._names is not None:
            refused = [i for i, reply in enumerate(replies) if reply.finish == "refused"]
            if refused:
                raise InputError(
                    f"{len(refused)} prompts, the first of them of task {self._names[refused[0]]!r}, leave no room for a reply "
                    "in engine.max_len: raise it."
                )
            self._names = None
        return replies


class Evaluator:
    """Scores models by letting them play the tasks.

    A model's scores depend on its weights alone: the engine decodes with fixed shapes, and nothing is shared between models
    but verdicts on equal replies.

    Attributes:
        tasks: in the order of the scores.
    """

    def __init__(
        self,
        load: Callable[[Params], None],
        generator: Generator,
        tasks: Sequence[Task],
        *,
        sizes: Mapping[str, Mapping[Split, int | None]] | None = None,
        workers: int = 2,
    ) -> None:
        """Args:
        load: makes the generator speak with these weights.
        generator: conversations in, replies out.
        tasks: what to play.
        sizes: how many of the first problems of each task and split count; all where nothing is said.
        workers: sandboxes at work at the same time.
        """  # noqa: D205
        self.tasks = tuple(tasks)
        self._load = load
        self._generator = generator
        self._sizes = sizes or {}
        self._workers = workers

    def episodes(self, task: Task, split: Split) -> Sequence[Episode]:
        """The episodes of a split that count."""
        return task.episodes(split)[: self._sizes.get(task.name, {}).get(split)]

    def __call__(self, params: Params, split: Split = "train") -> Evaluation:
        """Plays all tasks with one model.

        Args:
            params: its weights.
            split: which half.

        Returns:
            The evaluation; a model whose logits are not finite has ``error`` set.

        Raises:
            InputError: when the first prompt of a problem does not fit the engine's cache.
            InfraError: when a sandbox is broken; nothing is known of the model then.
        """
        start = time.perf_counter()
        played = {task.name: self.episodes(task, split) for task in self.tasks}
        episodes = [episode for group in played.values() for episode in group]
        limits = [task.max_new_tokens for task in self.tasks for _ in played[task.name]]
        try:
            self._load(params)
            names = [task.name for task in self.tasks for _ in played[task.name]]
            generator = _FirstPromptsFit(self._generator, names)
            outcomes = iter(rollout(episodes, generator, limits, workers=self._workers))
        except NonFiniteError as error:
            return Evaluation({}, str(error), {"evaluate": time.perf_counter() - start})
        by_task = {name: [next(outcomes) for _ in group] for name, group in played.items()}
        return Evaluation(by_task, None, {"evaluate": time.perf_counter() - start})
