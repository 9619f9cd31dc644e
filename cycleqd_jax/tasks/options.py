"""The options that all tasks share, and the check of options that come from a config."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.types import InputError

__all__ = ["TaskOptions", "check_option", "option_error"]

_LONGEST_VALUE = 500  # characters of a wrong value in a message


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """The options that all tasks share.

    Attributes:
        sandbox: executes the replies.
        name: name of the task in configs, journals and tables.
        max_new_tokens: largest number of tokens of a reply.
        train: file with the records that the search may see, or its URL (:func:`~cycleqd_jax.tasks.download.local_file`).
        test: file with the records to report on, or its URL.
        data: instead of both, one file that is split evenly (:func:`~cycleqd_jax.tasks.records.split_evenly`).
        seconds: time limit of one execution; None takes the task's default, or else the sandbox's limit.
        memo: whether verdicts are cached (:class:`~cycleqd_jax.tasks.memo.Memo`).
        cache: folder where demonstrations are stored, or None.
        workers: number of threads that replay demonstrations.

    Raises:
        InputError: an option has the wrong type, or the files are neither ``train`` and ``test`` nor ``data``.
    """

    sandbox: Sandbox
    name: str
    max_new_tokens: int = 512
    train: str | Path | None = None
    test: str | Path | None = None
    data: str | Path | None = None
    seconds: int | float | None = None
    memo: bool = True
    cache: str | Path | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        """Checks all options."""
        for option, annotation in _annotations().items():
            object.__setattr__(self, option, check_option(self.name, option, annotation, getattr(self, option)))
        given = [option for option in ("train", "test", "data") if getattr(self, option) is not None]
        if given not in (["train", "test"], ["data"]):
            raise InputError(
                "expected either the two files train and test or the one file data, "
                f"got {', '.join(given) or 'none of them'} in task {self.name!r}; correct the config"
            )


@functools.cache
def _annotations() -> dict[str, Any]:
    return {name: kind for name, kind in typing.get_type_hints(TaskOptions).items() if name != "sandbox"}


def option_error(task: str, option: str, expected: str, value: Any) -> InputError:
    """The error for an option with a wrong value."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or deep nesting
        shown = f"a {type(value).__name__}"
    shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}..."
    return InputError(f"expected option {option} to be {expected}, got {shown} in task {task!r}; correct the config")


def check_option(task: str, option: str, annotation: Any, value: Any) -> Any:
    """Checks the value of an option against the annotation of its parameter.

    Numbers must be positive. Annotations other than ``Literal``, ``bool``, ``int``, ``float``, ``str``, ``str | Path`` and
    their unions with None are not checked.

    Args:
        task: name of the task, for the message.
        option: name of the option.
        annotation: the annotation.
        value: the value.

    Returns:
        The value; numbers of ``float`` options as floats.

    Raises:
        InputError: the value does not fit.
    """
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = set(typing.get_args(annotation)) if union else {annotation}
    optional = types.NoneType in kinds
    kinds -= {types.NoneType}
    if value is None and optional:
        return None
    literal = next((kind for kind in kinds if typing.get_origin(kind) is Literal), None)
    if literal is not None:
        allowed = typing.get_args(literal)
        expected, fits = f"one of {', '.join(map(str, allowed))}", value in allowed
    elif frozenset(kinds) in _CHECKS:
        expected, check = _CHECKS[frozenset(kinds)]
        fits = check(value)
    else:
        return value
    if not fits:
        raise option_error(task, option, f"{expected}{' or null' if optional else ''}", value)
    return float(value) if isinstance(value, int) and float in kinds else value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


_CHECKS: dict[frozenset[Any], tuple[str, Callable[[Any], bool]]] = {
    frozenset({bool}): ("true or false", lambda value: isinstance(value, bool)),
    frozenset({int}): ("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    frozenset({float}): ("a finite number above 0", _is_positive),
    frozenset({int, float}): ("a finite number above 0", _is_positive),
    frozenset({str}): ("a text", lambda value: isinstance(value, str)),
    frozenset({str, Path}): ("a path", lambda value: isinstance(value, str | Path)),
}
