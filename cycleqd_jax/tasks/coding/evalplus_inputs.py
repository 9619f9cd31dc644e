"""Restores the Python types (tuples, sets, complex numbers) of the inputs of MBPP+, which JSON does not preserve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["has_types", "typed_inputs"]


def has_types(number: int) -> bool:
    """Whether the types of an MBPP+ problem are listed here."""
    return number in _RESTORE


def typed_inputs(number: int, inputs: Sequence[Any]) -> list[Any]:
    """The inputs of an MBPP+ problem with the types that JSON does not preserve.

    Args:
        number: number of the problem.
        inputs: lists of arguments as in the published file.

    Raises:
        ValueError, TypeError, IndexError, AttributeError: the inputs do not have the shape of that problem.
    """
    restore = _RESTORE.get(number)
    return list(inputs) if restore is None else [restore(list(arguments)) for arguments in inputs]


def _tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(argument) for argument in arguments]


def _lists_of_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(item) for item in argument] for argument in arguments]


def _tuples_of_tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(item) for item in argument) for argument in arguments]


def _tuple_of_mixed(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(item) if isinstance(item, list) else item for item in argument) for argument in arguments]


def _first_lists_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(item) for item in arguments[0]], *arguments[1:]]


def _first_tuple(arguments: list[Any]) -> list[Any]:
    return [tuple(arguments[0]), *arguments[1:]]


def _second_tuple(arguments: list[Any]) -> list[Any]:
    return [arguments[0], tuple(arguments[1])]


def _all_tuples(value: Any) -> Any:
    return tuple(map(_all_tuples, value)) if isinstance(value, list) else value


def _list_of_sets(arguments: list[Any]) -> list[Any]:
    # EvalPlus empties the dictionaries as well, so that a function that always returns True would be correct.
    return [[(set(item) if item else {}) if isinstance(item, list) else item for item in arguments[0]]]


def _dict_of_tuples(arguments: list[Any]) -> list[Any]:
    return [{key: tuple(value) for key, value in arguments[0].items()}, *arguments[1:]]


_RESTORE: dict[int, Callable[[list[Any]], Any]] = {
    **dict.fromkeys(
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809), _tuples
    ),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), _lists_of_tuples),
    **dict.fromkeys((75, 413, 444, 753), _first_lists_tuples),
    **dict.fromkeys((106, 750), _second_tuple),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), _first_tuple),
    **dict.fromkeys((259, 401, 445), _tuples_of_tuples),
    **dict.fromkeys((580, 615, 791), _all_tuples),
    115: _list_of_sets,
    124: lambda arguments: [float(arguments[0]), complex(arguments[1])],
    252: lambda arguments: [complex(arguments[0])],
    278: _tuple_of_mixed,
    722: _dict_of_tuples,
}
