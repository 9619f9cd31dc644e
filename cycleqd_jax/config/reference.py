"""The reference of all config keys: types, defaults, ranges and descriptions, read from the schema."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from cycleqd_jax.config.fields import range_of
from cycleqd_jax.config.schema import RunConfig

__all__ = ["KeyDoc", "describe"]

_ATTRIBUTE = re.compile(r"(\w+): (.*)")


@dataclasses.dataclass(frozen=True)
class KeyDoc:
    """What a config key means.

    Attributes:
        key: the dotted key; ``*`` stands for the index or name of a list item (``tasks.*.train``).
        type: type of the value, such as ``int or null``; ``section`` for a key that only groups other keys,
            ``section or null`` for one that is null by default.
        default: the default value; None for sections and required keys.
        required: whether the config must have the key.
        range: the accepted values, such as ``at least 1`` or ``one of elite, uniform``; empty where there is no limit.
        text: the description, one or more sentences.
    """

    key: str
    type: str
    default: Any
    required: bool
    range: str
    text: str


def describe() -> list[KeyDoc]:
    """Describes every key of a config, in the order of the schema; a section comes before its keys.

    >>> from cycleqd_jax.config import describe
    >>> [(doc.type, doc.default, doc.range) for doc in describe() if doc.key == "search.bins"]
    [('int', 15, 'at least 1')]
    """
    return list(_describe(RunConfig, ""))


def _describe(section: type, prefix: str) -> Iterator[KeyDoc]:
    hints, texts = typing.get_type_hints(section), _attributes(section)
    for item in dataclasses.fields(section):
        hint, key = hints[item.name], f"{prefix}{item.name}"
        limits = range_of(item)
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        nested, suffix = _section(hint)
        yield KeyDoc(
            key=key,
            type=_type_name(hint),
            default=None if required or nested is not None else _default(item),
            required=required,
            range=_choices(hint) if limits is None else str(limits),
            text=texts.get(item.name, ""),
        )
        if nested is not None:
            yield from _describe(nested, f"{key}{suffix}.")


def _section(hint: Any) -> tuple[type | None, str]:
    """The dataclass of a section or of the items of a list of sections, and what its keys have after the section's key."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(filter(lambda found: found[0], map(_section, typing.get_args(hint))), (None, ""))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, ""
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
        return typing.get_args(hint)[0], ".*"
    return None, ""


def _default(item: dataclasses.Field[Any]) -> Any:
    value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    return list(value) if isinstance(value, tuple) else value


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return "section"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(arg) for arg in args)
    if origin in (tuple, list):
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return "mapping" if args[1] is Any else f"mapping to {_type_name(args[1])}"
    if origin is Literal:
        return type(args[0]).__name__
    return "null" if hint is type(None) else hint.__name__


def _choices(hint: Any) -> str:
    """``one of a, b`` for a type that contains a Literal, else nothing."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return next(filter(None, map(_choices, typing.get_args(hint))), "")


def _attributes(section: type) -> dict[str, str]:
    """The descriptions under "Attributes" in the docstrings of a class and its bases, by name and each on one line."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        found |= _described(kind.__doc__ or "")
    return found


def _described(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(docstring).partition("Attributes:\n")[2].splitlines():
        if line and not line.startswith(" "):  # the end of the section
            break
        start = _ATTRIBUTE.fullmatch(line.removeprefix("    "))
        if start is not None:
            name, found[start[1]] = start[1], start[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
