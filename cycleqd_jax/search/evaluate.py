"""From weights to scores: all tasks of a model are played through one engine at once."""

from __future__ import annotations

import dataclasses
import queue
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from cycleqd_jax.engine import NonFiniteError
from cycleqd_jax.tasks import rollout
from cycleqd_jax.types import Episode, Generator, Genome, InputError, Message, Outcome, Params, Reply, Split, Task

__all__ = ["Evaluation", "Evaluator", "Judge", "Lane", "OverOneBase", "SideBySide"]


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

    def __init__(self, generator: Generator, names: Sequence[str], individuals: Sequence[int] | None = None) -> None:
        self._generator = generator
        self._names = names
        self._individuals = individuals
        self._begun: set[Hashable] = set()

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int) -> None:
        whose: dict[str, Any] = {}
        if self._individuals is not None:
            whose["individual"] = self._individuals[conversation]  # type: ignore[index]
        self._generator.submit(conversation, messages, max_new_tokens, **whose)

    def advance(self) -> list[tuple[Hashable, Reply]]:
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


class Lane(NamedTuple):
    """What decodes one model at a time: an engine on one device, or on a group of them.

    Attributes:
        load: ``load(params, donate=…)`` makes the generator speak with these weights.
        generator: conversations in, replies out.
    """

    load: Callable[..., None]
    generator: Generator


class Evaluator:
    """Scores models by letting them play the tasks.

    A model's scores depend on its weights alone: an engine begins every model alike, and nothing is shared between models but
    verdicts on equal replies.

    Attributes:
        tasks: in the order of the scores.
        lanes: what decodes; as many models as there are can be evaluated at once, from as many threads.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        tasks: Sequence[Task],
        *,
        sizes: Mapping[str, Mapping[Split, int | None]] | None = None,
        workers: int = 2,
        overlap: bool = True,
    ) -> None:
        """Args:
        lanes: what decodes.
        tasks: what to play.
        sizes: how many of the first problems of each task and split count; all where nothing is said.
        workers: sandboxes at work at the same time, for each lane.
        overlap: see :func:`cycleqd_jax.tasks.rollout`.
        """  # noqa: D205
        self.tasks = tuple(tasks)
        self.lanes = tuple(lanes)
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self.lanes:
            self._free.put(lane)
        self._sizes = sizes or {}
        self._workers = workers
        self._overlap = overlap

    def episodes(self, task: Task, split: Split) -> Sequence[Episode]:
        """The episodes of a split that count."""
        return task.episodes(split)[: self._sizes.get(task.name, {}).get(split)]

    def __call__(self, params: Params, split: Split = "train", *, donate: bool = False) -> Evaluation:
        """Plays all tasks with one model.

        Args:
            params: its weights.
            split: which half.
            donate: the weights are not needed afterwards.

        Returns:
            The evaluation; a model whose logits are not finite has ``error`` set.

        Raises:
            InputError: when the first prompt of a problem does not fit the engine's cache.
            InfraError: when a sandbox is broken; nothing is known of the model then.
        """
        return self.population(params, None, split, donate=donate)[0]

    def population(
        self, params: Params, count: int | None, split: Split = "train", *, donate: bool = False
    ) -> list[Evaluation]:
        """Plays all tasks with several models at once, whose weights are one tree (``types.MixedMatrix``).

        Args:
            params: their weights.
            count: how many they are; ``None`` for the weights of one.
            split: which half.
            donate: the weights are not needed afterwards.

        Returns:
            An evaluation for each; those whose logits are not finite have ``error`` set. All have the same ``seconds``: those
            of all of them together.

        Raises:
            InputError: see :meth:`__call__`.
            InfraError: see :meth:`__call__`.
        """
        start = time.perf_counter()
        errors: dict[int, str] = {}
        lane = self._free.get()
        try:
            lane.load(params, donate=donate)
            while True:
                alive = [i for i in range(count or 1) if i not in errors]
                try:
                    played = self._play(lane, alive if count is not None else None, split) if alive else {}
                    break
                except NonFiniteError as error:
                    errors[error.individual] = str(error)
        finally:
            self._free.put(lane)
        seconds = {"evaluate": time.perf_counter() - start}
        return [Evaluation(played.get(i, {}), errors.get(i), seconds) for i in range(count or 1)]

    def _play(self, lane: Lane, individuals: Sequence[int] | None, split: Split) -> dict[int, dict[str, list[Outcome]]]:
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
        generator = _FirstPromptsFit(lane.generator, names, None if individuals is None else owners)
        outcomes = rollout(episodes, generator, limits, workers=self._workers, overlap=self._overlap)
        played: dict[int, dict[str, list[Outcome]]] = {i: {task.name: [] for task in self.tasks} for i in individuals or (0,)}
        for owner, name, outcome in zip(owners, names, outcomes, strict=True):
            played[owner][name].append(outcome)
        return played


class Judge(Protocol):
    """From genomes to journal records, several at once.

    Attributes:
        size: how many genomes are best judged together.
    """

    size: int

    def __call__(self, genomes: Sequence[Genome]) -> Iterator[dict[str, Any]]:
        """``scores``, ``error``, ``items`` and ``seconds`` of each genome, in order."""
        ...


def _record(result: Evaluation, **seconds: float) -> dict[str, Any]:
    spent = {**seconds, **result.seconds}
    return {
        "scores": result.scores,
        "error": result.error,
        "items": result.items,
        "seconds": {name: round(value, 6) for name, value in spent.items()},
    }


class SideBySide:
    """Judges individuals on their own, as many at a time as the evaluator has lanes.

    Attributes:
        size: the number of lanes.
    """

    def __init__(self, express: Callable[[Genome], Params], evaluate: Callable[[Params], Evaluation], lanes: int = 1) -> None:
        """Args:
        express: from one genome to weights.
        evaluate: from weights to scores; called from as many threads as there are lanes.
        lanes: how many.
        """  # noqa: D205
        self.size = lanes
        self._express = express
        self._evaluate = evaluate
        self._expressing = threading.Lock()  # one program at a time on devices that they share

    def __call__(self, genomes: Sequence[Genome]) -> Iterator[dict[str, Any]]:
        """Records of the genomes, in order, each as soon as it and those before it are known."""
        if self.size == 1:
            yield from map(self._judge, genomes)
            return
        with ThreadPoolExecutor(self.size, thread_name_prefix="lane") as pool:
            futures = [pool.submit(self._judge, genome) for genome in genomes]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def _judge(self, genome: Genome) -> dict[str, Any]:
        start = time.perf_counter()
        with self._expressing:
            params = jax.block_until_ready(self._express(genome))
        expressed = time.perf_counter() - start
        return _record(self._evaluate(params), express=expressed)


class OverOneBase:
    """Judges individuals that differ by a low rank together, in one engine over the weights that they share.

    Attributes:
        size: how many at a time.
    """

    def __init__(self, express: Callable[[Genome], Params], evaluator: Evaluator, size: int) -> None:
        """Args:
        express: from genomes, stacked, to the weights of all of them (:meth:`cycleqd_jax.genome.ExpertSpace.express_mixed`).
        evaluator: plays the tasks with all of them.
        size: how many at a time.
        """  # noqa: D205
        self.size = size
        self._express = express
        self._evaluator = evaluator

    def __call__(self, genomes: Sequence[Genome]) -> Iterator[dict[str, Any]]:
        """Records of the genomes, in order; ``seconds`` are those of all of them together, divided."""
        start = time.perf_counter()
        missing = self.size - len(genomes)  # one program, whatever the number
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *genomes, *[genomes[-1]] * missing)
        params = jax.block_until_ready(self._express(stacked))
        expressed = (time.perf_counter() - start) / len(genomes)
        for result in self._evaluator.population(params, len(genomes)):
            shared = {name: value / len(genomes) for name, value in result.seconds.items()}
            yield _record(dataclasses.replace(result, seconds=shared), express=expressed)
