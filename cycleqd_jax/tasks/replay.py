"""Replays the gold solutions of a task, to verify that data, sandbox and judges work together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.tasks.base import RecordTask, Solution, is_unprepared, play_solution
from cycleqd_jax.types import SPLITS, Score, Split

__all__ = ["Replay", "replay_solutions"]


@dataclasses.dataclass(frozen=True)
class Replay:
    """The score of a record's solutions.

    Attributes:
        id: id of the record.
        score: the best score.
        seconds: duration of the solution that scored 1, or of all solutions if none did.
    """

    id: str
    score: Score
    seconds: float


def replay_solutions(
    task: RecordTask[Any],
    splits: Sequence[Split] = SPLITS,
    *,
    stub: bool = False,
    workers: int = 1,
    on_replay: Callable[[int, int], None] | None = None,
) -> list[Replay]:
    """Plays the solutions of every record through the episodes that runs use, until one scores 1.

    Args:
        task: the task; verdicts must not come from its memo.
        splits: the halves of the data to replay.
        stub: whether to play solutions that do nothing, which must not score, instead of the gold solutions.
        workers: number of episodes at the same time.
        on_replay: called with the number of finished records and their total after each.

    Returns:
        One replay per record, in the order of the data.

    A record whose episode raises any other error than ``InfraError`` has failed; the other records are played all the same.

    Raises:
        InfraError: the sandbox, or a server that the task needs, is broken.
    """
    pairs = [pair for split in splits for pair in zip(task.rows[split], task.records[split], strict=True)]
    replays: list[Replay] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="replay") as pool:
        futures = [
            pool.submit(_replay, task, row.id, record, task.stubs(record) if stub else task.solutions(record))
            for row, record in pairs
        ]
        try:
            for future in futures:
                replays.append(future.result())
                if on_replay is not None:
                    on_replay(len(replays), len(pairs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return replays


def _play(task: RecordTask[Any], record: Any, solution: Solution) -> Score:
    environment = task.environment(record)
    try:
        return play_solution(environment, solution)[1] or Score(0.0, "the solution ended before the episode")
    finally:
        environment.close()


def _replay(task: RecordTask[Any], record_id: str, record: Any, solutions: Iterable[Solution]) -> Replay:
    start = time.monotonic()
    best = Score(-1.0, "there is no gold solution")
    try:
        for solution in solutions:
            solution_start = time.monotonic()
            score = _play(task, record, solution)
            if score.value > best.value:
                best = score
            if best.value == 1.0:
                return Replay(record_id, best, time.monotonic() - solution_start)
            if is_unprepared(score):  # so it would be for the other solutions, and each may take minutes
                break
    except InfraError:
        raise
    except Exception as error:  # the record, or the code of a task outside this package
        best = Score(0.0, f"the episode raised {type(error).__name__}: {error}")
    return Replay(record_id, dataclasses.replace(best, value=max(best.value, 0.0)), time.monotonic() - start)
