"""Tasks: problems played as conversations, executed in a sandbox and scored.

:data:`TASKS` has the classes by name.
"""

from __future__ import annotations

import importlib
from typing import Any

from cycleqd_jax.tasks.base import RecordTask
from cycleqd_jax.tasks.coding import BigCodeBench, EvalPlus, HumanEval, Mbpp
from cycleqd_jax.tasks.dbbench.task import DbBench
from cycleqd_jax.tasks.memo import Memo
from cycleqd_jax.tasks.os_interaction.task import OsInteraction
from cycleqd_jax.types import InputError

__all__ = [
    "TASKS",
    "BigCodeBench",
    "DbBench",
    "EvalPlus",
    "HumanEval",
    "Mbpp",
    "Memo",
    "OsInteraction",
    "RecordTask",
    "task_class",
]

TASKS: dict[str, type[RecordTask[Any]]] = {
    "mbpp": Mbpp,
    "evalplus": EvalPlus,
    "humaneval": HumanEval,
    "bigcodebench": BigCodeBench,
    "dbbench": DbBench,
    "os_interaction": OsInteraction,
}
"""Task classes by the name that configurations use."""


def task_class(kind: str) -> type[RecordTask[Any]]:
    """The class of a kind of task.

    Args:
        kind: a name in :data:`TASKS`, or ``"package.module:Class"``, where a task of one's own is.

    Raises:
        InputError: there is no such kind, the module can't be imported, or the class is no :class:`RecordTask`.
    """
    if kind in TASKS:
        return TASKS[kind]
    module, colon, name = kind.partition(":")
    if not (colon and module and name):
        raise InputError(f"expected a kind of task ({', '.join(TASKS)}) or package.module:Class, got {kind!r}")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module of the user's raises
        raise InputError(
            f"expected a task of one's own at {kind!r}, got {type(error).__name__}: {error}; check its name"
        ) from error
    if not (isinstance(found, type) and issubclass(found, RecordTask)):
        raise InputError(f"expected a subclass of cycleqd_jax.tasks.RecordTask at {kind!r}, got {found!r}")
    return found
