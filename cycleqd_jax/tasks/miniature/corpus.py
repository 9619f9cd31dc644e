"""Generated data sets and training conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.tasks.miniature.common import Pool, Problem, Record, pool_of
from cycleqd_jax.tasks.miniature.functions import draw_humaneval
from cycleqd_jax.tasks.miniature.python import draw_mbpp
from cycleqd_jax.tasks.miniature.shell import draw_os_interaction
from cycleqd_jax.tasks.miniature.sql import draw_dbbench
from cycleqd_jax.types import InputError, Message, Split

__all__ = ["DRAW", "OPTIONS", "SIZES", "TASKS", "demonstrations", "distinct", "generate", "pretraining", "problems_of", "write"]

TASKS = ("mbpp", "dbbench", "os_interaction", "humaneval")
"""The kinds of tasks that have miniature problems."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "mbpp": {"prompt": "brief", "shown": "first"},
    "dbbench": {"prompt": "brief"},
    "os_interaction": {"prompt": "brief"},
    "humaneval": {"prompt": "brief"},
}
"""The task options with which conversations have the format of :func:`demonstrations`."""

SIZES: Mapping[str, int] = {"train": 32, "validation": 32, "test": 64, "finetune": 2000}
"""Default numbers of problems per split, and of conversations for fine-tuning."""

DRAW: dict[str, Callable[[random.Random, bool], Problem | None]] = {
    "mbpp": draw_mbpp,
    "dbbench": draw_dbbench,
    "os_interaction": draw_os_interaction,
    "humaneval": draw_humaneval,
}
"""Functions that draw a random problem, or None if the one drawn is not usable."""


def problems_of(task: str, pool: Pool, seed: int, breadth: float = 1.0) -> Iterator[Problem]:
    """An endless sequence of random problems of a pool.

    Args:
        task: one of :data:`TASKS`.
        pool: pool of the problems.
        seed: seed of the problems.
        breadth: probability that a problem may have any phrase; other problems have basic phrases only.

    Raises:
        InputError: there are no miniature problems of the task.
    """
    if task not in DRAW:
        raise InputError(f"expected a task with miniature problems, one of {', '.join(TASKS)}, got {task!r}; give a train file")
    rng = random.Random(f"{task}/{pool}/{seed}")
    while True:
        problem = DRAW[task](rng, rng.random() >= breadth)
        if problem is not None and pool_of(problem.program) == pool:
            yield problem


def _numbered(task: str, split: str, number: int, record: Record) -> Record:
    if task == "mbpp":
        return {"task_id": number, **record}
    if task == "humaneval":
        return {"task_id": f"{task}/{split}/{number}", **record}
    return {"id": f"{task}/{split}/{number}", "index": number, **record}


def generate(
    seed: int, train: int, test: int, tasks: Sequence[str] = TASKS, *, validation: int = 0
) -> dict[str, dict[str, list[Record]]]:
    """Generates problems in the record formats of the benchmarks.

    Args:
        seed: seed of the problems.
        train: number of problems per task that the search may see.
        test: number of problems per task to report on.
        tasks: a selection of :data:`TASKS`.
        validation: number of problems per task to choose a model on. The train and test problems do not depend on it.

    Returns:
        ``{task: {"train": [record, …], "validation": [record, …], "test": [record, …]}}``; without the key ``"validation"``
        where there are none. No gold program occurs twice in a task, nor in :func:`demonstrations` or :func:`pretraining` of
        any seed.

    Raises:
        InputError: a task is unknown or a number is negative.
    """
    if min(train, test, validation) < 0:
        raise InputError(
            f"expected numbers of problems that are 0 or more, got train={train}, validation={validation}, test={test}; "
            "correct them"
        )
    found: dict[str, dict[str, list[Record]]] = {}
    for task in tasks:
        # Validation problems are the next ones of the train pool, so the train problems stay the same.
        pool, tests = distinct(task, "train", seed, train + validation), distinct(task, "test", seed, test)
        splits: dict[Split, tuple[list[Problem], int]] = {
            "train": (pool[:train], 1),
            **({"validation": (pool[train:], train + 1)} if validation else {}),
            "test": (tests, 1),
        }
        found[task] = {
            split: [_numbered(task, split, n, problem.record) for n, problem in enumerate(problems, start=first)]
            for split, (problems, first) in splits.items()
        }
    return found


def distinct(task: str, pool: Pool, seed: int, count: int) -> list[Problem]:
    """The first ``count`` problems of a pool with different programs.

    Raises:
        InputError: there are fewer problems.
    """
    found: dict[str, Problem] = {}
    problems = problems_of(task, pool, seed)
    fruitless = 0
    while len(found) < count and fruitless < 1000:
        problem = next(problems)
        fruitless = fruitless + 1 if problem.program in found else 0
        found.setdefault(problem.program, problem)
    if len(found) == count:
        return list(found.values())
    raise InputError(f"expected at most {len(found)} different {pool} problems of {task}, got {count}; correct the size")


def write(
    folder: str | Path, seed: int, train: int, test: int, tasks: Sequence[str] = TASKS, *, validation: int = 0
) -> dict[str, dict[str, Path]]:
    """Writes the records of :func:`generate` to ``folder/<task>/<split>.jsonl``.

    Returns:
        ``{task: {split: path}}``.
    """
    paths: dict[str, dict[str, Path]] = {}
    for task, splits in generate(seed, train, test, tasks, validation=validation).items():
        for split, records in splits.items():
            path = Path(folder) / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
            paths.setdefault(task, {})[split] = path
    return paths


def demonstrations(task: str, seed: int, size: int) -> list[list[Message]]:
    """Solved conversations of one task with all phrases, for the fine-tuning of its expert.

    Args:
        task: one of :data:`TASKS`.
        seed: seed of the problems.
        size: number of conversations.

    Raises:
        InputError: there are no miniature problems of the task.
    """
    problems = problems_of(task, "lessons", seed)
    return [next(problems).conversation for _ in range(size)]


def pretraining(seed: int, size: int, breadth: float, tasks: Sequence[str] = TASKS) -> list[list[Message]]:
    """The corpus of a base model: solved conversations of all tasks in turn, most of them with basic phrases only.

    Args:
        seed: seed of the problems.
        size: number of conversations.
        breadth: share of the conversations that may have any phrase, in [0, 1]; the others have basic phrases only.
        tasks: a selection of :data:`TASKS`.

    Raises:
        InputError: there are no miniature problems of a task.
    """
    problems = [problems_of(task, "lessons", seed, breadth) for task in tasks]
    return [next(problems[n % len(problems)]).conversation for n in range(size)]
