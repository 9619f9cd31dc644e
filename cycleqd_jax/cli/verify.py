"""``cycleqd verify-task``: replays the gold solutions of a benchmark's file: are data, sandbox and judges sound?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cycleqd_jax.config import task_options
from cycleqd_jax.runs.sandbox import open_sandbox
from cycleqd_jax.tasks import RecordTask, Solution, TaskOptions, make_task, own_options, play, task_class
from cycleqd_jax.types import InputError, Score

__all__ = ["verify_task"]


@dataclasses.dataclass(frozen=True)
class _Replay:
    """How a record's solutions did.

    Attributes:
        id: of the record.
        score: the best one.
        seconds: that the solution which got it took, or all together, where none scores 1.
    """

    id: str
    score: Score
    seconds: float


def verify_task(
    kind: str,
    data: str | Path,
    overrides: Sequence[str] = (),
    *,
    split: str = "all",
    backend: str | None = None,
    isolation: str | None = None,
    workers: int | None = None,
    stub: bool = False,
    quiet: bool = False,
) -> int:
    """Replays the solutions of all records through the episodes that runs play, and prints JSON.

    Args:
        kind: of the task, or ``package.module:Class``.
        data: the benchmark's file, or its address.
        overrides: options of the task as ``key=value``, and of the sandbox as ``sandbox.key=value``.
        split: ``train`` or ``test`` for one half of the file.
        backend: the task's, where it has that option, else the sandbox's.
        isolation: the sandbox's.
        workers: episodes at a time; one for each core by default.
        stub: play what does nothing instead, none of which may score.
        quiet: print nothing but the JSON.

    Returns:
        0 where every record was solved (with ``stub``: none), else 1.

    Raises:
        InputError: for anything wrong with kind, file or options.
        InfraError: where the sandbox, or a server that the task needs, is broken.
    """
    if workers is not None and workers < 1:
        raise InputError(f"expected --workers to be at least 1, got {workers}.")
    found = task_class(kind)
    overrides = [*overrides, *([f"sandbox.isolation={isolation}"] if isolation else [])]
    overrides += [f"sandbox.workers={workers}"] if workers else []
    if backend is not None:
        own = "backend" in own_options(found)
        overrides.append(f"backend={backend}" if own else f"sandbox.backend={backend}")
    options, config = task_options(overrides)
    began = time.monotonic()
    with open_sandbox(config) as sandbox:
        task = make_task(kind, TaskOptions(sandbox=sandbox, name=kind, data=data, memo=False), **options)
        with contextlib.closing(task):
            replays = _replay_all(task, split, stub, config.workers or os.cpu_count() or 1, quiet)
        held = sandbox.isolation.name
    seconds = time.monotonic() - began
    solved = [replay for replay in replays if replay.score.value == 1.0]
    wrong = solved if stub else [replay for replay in replays if replay.score.value != 1.0]
    slowest = max(replays, key=lambda replay: replay.seconds)
    result = {
        "task": kind,
        "data": str(data),
        "split": split,
        "backend": getattr(task, "backend", held if config.backend == "bwrap" else config.backend),
        "isolation": held,
        "solutions": "stub" if stub else "gold",
        "passed": len(solved),
        "total": len(replays),
        "measures": task.measures([replay.score for replay in replays]),
        "solved" if stub else "failed": [{"id": replay.id, "reason": replay.score.reason} for replay in wrong],
        "seconds": round(seconds, 2),
        "slowest": {"id": slowest.id, "seconds": round(slowest.seconds, 2)},
    }
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
    return 1 if wrong else 0


def _replay_all(task: RecordTask[Any], split: str, stub: bool, workers: int, quiet: bool) -> list[_Replay]:
    halves: Any = ("train", "test") if split == "all" else (split,)
    pairs = [pair for half in halves for pair in zip(task.rows[half], task.records[half], strict=True)]
    shows = not quiet and sys.stderr.isatty()
    replays: list[_Replay] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        futures = [
            pool.submit(_replay, task, row.id, record, task.stubs(record) if stub else task.solutions(record))
            for row, record in pairs
        ]
        try:
            for future in futures:
                replays.append(future.result())
                if shows:
                    print(f"\rverify-task: {len(replays)} of {len(pairs)}", end="", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            if shows:
                print(file=sys.stderr)
    return replays


def _replay(task: RecordTask[Any], identity: str, record: Any, solutions: Iterable[Solution]) -> _Replay:
    """Plays the solutions of a record until one scores 1."""
    began = time.monotonic()
    best = Score(-1.0, "there is no gold solution")
    for solution in solutions:
        start = time.monotonic()
        environment = task.environment(record)
        try:
            score = play(environment, solution)[1] or Score(0.0, "the solution ended before the episode")
        finally:
            environment.close()
        if score.value > best.value:
            best = score
        if best.value == 1.0:
            return _Replay(identity, best, time.monotonic() - start)
    return _Replay(identity, dataclasses.replace(best, value=max(best.value, 0.0)), time.monotonic() - began)
