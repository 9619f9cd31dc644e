"""A suite: tasks that no search has seen, on which the models of a finished run are measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cycleqd_jax.config.fields import field
from cycleqd_jax.config.load import from_tree, read_yaml
from cycleqd_jax.types import InputError

__all__ = ["Suite", "SuiteTask", "load_suite"]


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """A task of a suite.

    Attributes:
        name: the name of the task in tables.
        kind: the kind of the task, such as ``arc``.
        data: file with the problems, or its URL. All of them are test problems.
        limit: number of problems: the first in the order of the hashes of their ids. Null takes all.
        max_new_tokens: largest number of tokens of a reply.
        options: the options of the task.
    """

    name: str
    kind: str
    data: str
    limit: int | None = field(None, minimum=1)
    max_new_tokens: int = field(512, minimum=1)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks on which the models of a run are measured.

    Attributes:
        name: the name of the suite, and of the files with its results: letters, digits, ``-`` and ``_``.
        tasks: the tasks.
        title: the title of its table.
        max_len: maximum number of tokens of prompt and reply together. Null uses ``engine.max_len`` of the run.
        slots: number of prompts that are computed together. Null uses ``engine.slots`` of the run.
    """

    name: str
    tasks: tuple[SuiteTask, ...]
    title: str = ""
    max_len: int | None = field(None, minimum=2)
    slots: int | None = field(None, minimum=1)


def load_suite(file: str | Path) -> Suite:
    """Reads a suite.

    Args:
        file: a YAML file. ``${NAME}`` in a text is replaced by the environment variable NAME.

    Raises:
        InputError: the file can't be read, a key is wrong, there is no task, or two have one name.
    """
    suite = from_tree(Suite, read_yaml(Path(file), "a suite"))
    if not suite.name or not suite.name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"expected letters, digits, - and _ in name, got {suite.name!r} in {file}; correct it")
    names = [task.name for task in suite.tasks]
    if not names or len({*names}) != len(names) or {"", "average"} & {*names}:
        raise InputError(
            f"expected tasks with different names other than average, got {', '.join(names) or 'none'} in {file}; correct it"
        )
    return suite
