"""Solved problems that stand before every problem of a task: few-shot examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cycleqd_jax.tasks.base import refuse_overlap
from cycleqd_jax.tasks.download import local_file
from cycleqd_jax.tasks.records import Row, read_rows
from cycleqd_jax.types import InputError

__all__ = ["preamble"]


def preamble(name: str, count: int | None, file: str | Path | None, rows: Sequence[Row], solved: Callable[[Row], str]) -> str:
    """The text of the first records of a file with their answers, each followed by a blank line.

    Args:
        name: name of the task.
        count: how many; None is none.
        file: where they are, or its URL.
        rows: all records of the task, none of which may be among them.
        solved: a record with its answer, as text.

    Raises:
        InputError: only one of ``count`` and ``file`` is given, the file has fewer records, one is malformed, or one is a
            problem of the task too.
    """
    if count is None and file is None:
        return ""
    if count is None or file is None:
        given, missing = ("shots_file", "shots") if count is None else ("shots", "shots_file")
        raise InputError(f"expected both shots and shots_file, got {given} alone in task {name!r}; give {missing} too")
    found = read_rows(local_file(file))
    if len(found) < count:
        raise InputError(
            f"expected at least {count} records for shots: {count}, got {len(found)} in {file} of task {name!r}; decrease it"
        )
    refuse_overlap(name, rows, found[:count], "the task and its shots")
    return "".join(f"{solved(row)}\n\n" for row in found[:count])
