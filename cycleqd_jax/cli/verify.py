"""``cycleqd verify-task``: replays the gold solutions of a benchmark's file to check data, sandbox and judges."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cycleqd_jax.config import task_options
from cycleqd_jax.machine import cpu_count
from cycleqd_jax.runs.inputs.sandbox import open_sandbox
from cycleqd_jax.tasks import TaskOptions, make_task, own_options, task_class
from cycleqd_jax.tasks.replay import replay_solutions
from cycleqd_jax.types import SPLITS, InputError, Split

__all__ = ["verify_task"]


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
    """Replays the solutions of all records through the episodes that runs use, and prints the results as JSON.

    Args:
        kind: kind of the task, or ``package.module:Class``.
        data: the benchmark's file, or its address.
        overrides: options of the task as ``key=value``, and of the sandbox as ``sandbox.key=value``.
        split: ``train`` or ``test`` for one half of the file.
        backend: the task's backend if it has that option, else the sandbox's.
        isolation: isolation of the sandbox.
        workers: number of episodes at the same time, by default one per core.
        stub: whether to play solutions that do nothing, which must not score.
        quiet: whether to print the JSON only, without progress.

    Returns:
        0 if every record is solved (with ``stub``: if none is), else 1.

    Raises:
        InputError: kind, file or options are wrong.
        InfraError: the sandbox, or a server that the task needs, is broken.
    """
    if workers is not None and workers < 1:
        raise InputError(f"expected --workers to be at least 1, got {workers}; correct it")
    cls = task_class(kind)
    overrides = [*overrides, *([f"sandbox.isolation={isolation}"] if isolation else [])]
    overrides += [f"sandbox.workers={workers}"] if workers else []
    if backend is not None:
        of_task = "backend" in own_options(cls)
        overrides.append(f"backend={backend}" if of_task else f"sandbox.backend={backend}")
    options, config = task_options(overrides)
    start = time.monotonic()
    with open_sandbox(config) as sandbox:
        task = make_task(kind, TaskOptions(sandbox=sandbox, name=kind, data=data, memo=False), **options)
        with contextlib.closing(task), contextlib.ExitStack() as stack:
            shows_progress = not quiet and sys.stderr.isatty()
            if shows_progress:
                stack.callback(print, file=sys.stderr)
            replays = replay_solutions(
                task,
                SPLITS if split == "all" else (cast(Split, split),),
                stub=stub,
                workers=config.workers or cpu_count(),
                on_replay=_print_progress if shows_progress else None,
            )
        isolation = sandbox.isolation.name
    seconds = time.monotonic() - start
    solved = [replay for replay in replays if replay.score.value == 1.0]
    wrong = solved if stub else [replay for replay in replays if replay.score.value != 1.0]
    slowest = max(replays, key=lambda replay: replay.seconds)
    result = {
        "task": kind,
        "data": str(data),
        "split": split,
        "backend": getattr(task, "backend", isolation if config.backend == "bwrap" else config.backend),
        "isolation": isolation,
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


def _print_progress(done: int, total: int) -> None:
    print(f"\rverify-task: {done} of {total}", end="", file=sys.stderr, flush=True)
