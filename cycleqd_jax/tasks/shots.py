"""Solved problems that stand before every problem of a task: few-shot examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cycleqd_jax.tasks.base import RecordTask, refuse_overlap
from cycleqd_jax.tasks.download import local_file
from cycleqd_jax.tasks.records import read_rows
from cycleqd_jax.types import InputError

__all__ = ["preamble"]

R = TypeVar("R")


def preamble(task: RecordTask[R], count: int | None, file: str | Path | None, solved: Callable[[R], str]) -> str:
    """The text of the first records of a file with their answers, each followed by a blank line.

    Args:
        task: reads their records; none of its own may be among them.
        count: how many; None is none.
        file: where they are, or its URL.
        solved: a record with its answer, as text.

    Raises:
        InputError: only one of ``count`` and ``file`` is given, the file has fewer records, one is malformed, or one is a
            problem of the task too.
    """
    if count is None and file is None:
        return ""
    if count is None or file is None:
        given, missing = ("shots_file", "shots") if count is None else ("shots", "shots_file")
        raise InputError(f"expected both shots and shots_file, got {given} alone in task {task.name!r}; give {missing} too")
    found = read_rows(local_file(file))
    if len(found) < count:
        raise InputError(
            f"expected at least {count} records for shots: {count}, got {len(found)} in {file} of task {task.name!r}; "
            "decrease it"
        )
    rows = [row for split in task.rows.values() for row in split]
    refuse_overlap(task.name, rows, found[:count], "the task and its shots")
    return "".join(f"{solved(task.parse_row(row))}\n\n" for row in found[:count])
