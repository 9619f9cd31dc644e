"""Functions and classes that the tests of the tasks share."""

from __future__ import annotations

import dataclasses
from typing import Any

from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.tasks import RecordTask, TaskOptions, make_task, play_solution
from cycleqd_jax.types import Score

_SHARED = {field.name for field in dataclasses.fields(TaskOptions)} - {"seconds", "memo"}


class FakeSandbox(Sandbox):
    """A sandbox that can't run anything, for tests that need only its limits; subclasses replace single methods."""

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**limits)
        self.system = "host"


def make(kind: str, *, sandbox: Sandbox, name: str | None = None, **options: Any) -> RecordTask[Any]:
    """A task from shared and own options; ``seconds`` and ``memo`` are checked like those of a config."""
    shared = {option: options.pop(option) for option in list(options) if option in _SHARED}
    return make_task(kind, TaskOptions(sandbox, name or kind, **shared), **options)


def results(episode, replies) -> list[str | Score]:
    """Starts an episode, sends replies until one ends it, and closes it: the observations, and the score at the end."""
    found: list[str | Score] = []
    try:
        episode.start()
        for reply in replies:
            result = episode.step(reply)
            if isinstance(result, Score):
                return [*found, result]
            (message,) = result
            assert message["role"] == "user"
            found.append(message["content"])
    finally:
        episode.close()
    return found


def play_replies(task, replies, split="train", number=0) -> list[str | Score]:
    """The results of replies in a fresh episode of a problem."""
    return results(task.episodes(split)[number], replies)


def final_score(task, record, *replies) -> Score:
    """The score of replies in a fresh environment of a record; the last reply must end the episode."""
    *_, last = results(task.environment(record), replies)
    assert isinstance(last, Score), "the episode goes on"
    return last


def solution_scores(task, record, solutions=None) -> list[float | None]:
    """The score of every solution of a record, or of the given solutions; None if the solution returned early."""
    scores = []
    for solution in task.solutions(record) if solutions is None else solutions:
        episode = task.environment(record)
        try:
            score = play_solution(episode, solution)[1]
        finally:
            episode.close()
        scores.append(None if score is None else score.value)
    return scores
