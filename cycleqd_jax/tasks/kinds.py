"""The kinds of tasks by name, and the construction of a task from the options of a config."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from cycleqd_jax.tasks.base import RecordTask
from cycleqd_jax.tasks.choice import Arc, BoolQ, CommonsenseQA, HellaSwag, Mmlu
from cycleqd_jax.tasks.coding import BigCodeBench, EvalPlus, HumanEval, Mbpp
from cycleqd_jax.tasks.dbbench import DbBench
from cycleqd_jax.tasks.exact_match import Bbh, Gsm8k
from cycleqd_jax.tasks.options import TaskOptions, check_option
from cycleqd_jax.tasks.os_interaction import OsInteraction
from cycleqd_jax.types import InputError

__all__ = ["TASKS", "checked_options", "make_task", "own_options", "task_class"]

TASKS: dict[str, type[RecordTask[Any]]] = {
    "mbpp": Mbpp,
    "evalplus": EvalPlus,
    "humaneval": HumanEval,
    "bigcodebench": BigCodeBench,
    "dbbench": DbBench,
    "os_interaction": OsInteraction,
    "arc": Arc,
    "boolq": BoolQ,
    "commonsenseqa": CommonsenseQA,
    "hellaswag": HellaSwag,
    "mmlu": Mmlu,
    "gsm8k": Gsm8k,
    "bbh": Bbh,
}
"""Task classes by the name that configs use."""

_SHARED = {"seconds": float | None, "memo": bool}  # shared options that a config gives among a task's own options


def task_class(kind: str) -> type[RecordTask[Any]]:
    """The class of a kind of task.

    Args:
        kind: a name in :data:`TASKS`, or ``"package.module:Class"`` for a class outside this package.

    Raises:
        InputError: there is no such kind, the module can't be imported, or the class is not a :class:`RecordTask`.
    """
    if kind in TASKS:
        return TASKS[kind]
    module, colon, name = kind.partition(":")
    if not (colon and module and name):
        near = difflib.get_close_matches(kind, TASKS, 1)
        advice = f"did you mean {near[0]}?" if near else "correct the kind"
        raise InputError(f"expected a kind of task ({', '.join(TASKS)}) or package.module:Class, got {kind!r}; {advice}")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module may raise anything
        raise InputError(
            f"expected a task class, got {type(error).__name__}: {error} in {kind!r}; check the name and PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, RecordTask)):
        raise InputError(f"expected a subclass of cycleqd_jax.tasks.RecordTask, got {found!r} in {kind!r}; correct the kind")
    return found


def own_options(task: type[RecordTask[Any]]) -> dict[str, Any]:
    """A task's own options: the annotations of the keyword-only parameters of ``__init__``, by name.

    Options that ``__init__`` passes on as ``**options`` are those of the base class.
    """
    found: dict[str, Any] = {}
    for base in task.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        try:
            annotations = typing.get_type_hints(base.__init__)
        except Exception:  # an annotation that can't be resolved at run time is not checked
            annotations = {}
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                found.setdefault(parameter.name, annotations.get(parameter.name, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def checked_options(kind: str, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a config gives a task, checked.

    Args:
        kind: a name in :data:`TASKS`, or ``"package.module:Class"``.
        name: name of the task, for messages.
        own: the options.

    Returns:
        The options; numbers of ``float`` options as floats.

    Raises:
        InputError: the kind or an option is unknown, or an option has the wrong type.
    """
    known = own_options(task_class(kind)) | _SHARED
    for option in own:
        if option not in known:
            raise InputError(
                f"expected an option of {kind} ({', '.join(known)}), got {option!r} in task {name!r}; correct the config"
            )
    return {option: check_option(name, option, known[option], value) for option, value in own.items()}


def make_task(kind: str, options: TaskOptions, **own: Any) -> RecordTask[Any]:
    """Makes a task, and checks the names and the types of its own options.

    Args:
        kind: a name in :data:`TASKS`, or ``"package.module:Class"``.
        options: the options that all tasks share.
        own: the task's own options as in the ``options`` of a config, which may also set ``seconds`` and ``memo``.

    Raises:
        InputError: the kind or an option is unknown, an option has the wrong type, a file is missing or empty, or a record is
            malformed.
    """
    found = task_class(kind)
    own = checked_options(kind, options.name, own)
    shared = {option: own.pop(option) for option in _SHARED if option in own}
    return found(dataclasses.replace(options, **shared), **own)
