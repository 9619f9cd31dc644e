"""Reads configs from YAML or mappings, applies overrides and environment variables, and writes configs back.

Unknown keys, values of the wrong type and values out of range are errors that name the key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cycleqd_jax.config.check import check_keys_together
from cycleqd_jax.config.fields import Range, range_of
from cycleqd_jax.config.schema import RunConfig, SandboxConfig
from cycleqd_jax.schema import without_versions
from cycleqd_jax.types import InputError
from cycleqd_jax.yaml_files import load_yaml, parse_yaml

__all__ = ["check_config", "from_tree", "load_config", "read_yaml", "task_options", "to_dict", "to_yaml"]

_Kind = TypeVar("_Kind")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a config and applies overrides.

    ``${NAME}`` in a text is replaced by the environment variable NAME.

    Args:
        source: path of a YAML file, or a mapping with the same keys, which is not changed.
        overrides: ``dotted.key=value`` strings. Values are YAML. An item of a list is addressed by its index or its ``name``
            (``tasks.mbpp.train_size=8``).

    Raises:
        InputError: naming the file, the key, or the environment variable that is not set.

    >>> from cycleqd_jax.config import load_config
    >>> config = load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}, ["search.bins=10"])
    >>> config.task_names, config.search.bins
    (('mbpp', 'dbbench'), 10)
    """
    tree = _plain(source) if isinstance(source, Mapping) else read_yaml(Path(source))
    tree = without_versions(tree, "the config" if isinstance(source, Mapping) else source)
    for assignment in overrides:
        _override(tree, assignment)
    config = from_tree(RunConfig, tree)
    check_keys_together(config)
    return config


def check_config(config: RunConfig) -> None:
    """Checks a config that was not read by :func:`load_config`, such as the result of ``dataclasses.replace``.

    Raises:
        InputError: naming the key whose value has another type or is out of range, or the keys that do not fit together.

    >>> import dataclasses
    >>> from cycleqd_jax.config import check_config, load_config
    >>> config = load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]})
    >>> check_config(dataclasses.replace(config, search=dataclasses.replace(config.search, bins=0)))
    Traceback (most recent call last):
    cycleqd_jax.types.errors.InputError: expected search.bins to be at least 1, got 0; correct the config
    """
    _build(RunConfig, to_dict(config), "")
    check_keys_together(config)


def from_tree(kind: type[_Kind], tree: Mapping[Any, Any]) -> _Kind:
    """An object of a dataclass of settings, from plain YAML.

    Args:
        kind: the dataclass.
        tree: its keys and values. ``${NAME}`` in a text is replaced by the environment variable NAME.

    Raises:
        InputError: naming the key, or the environment variable that is not set.
    """
    return _build(kind, _fill_variables(tree, ""), "")


def task_options(overrides: Sequence[str]) -> tuple[dict[str, Any], SandboxConfig]:
    """Reads the options of a task and its sandbox without a config.

    Args:
        overrides: ``key=value`` for an option of the task, ``sandbox.key=value`` for the sandbox.

    Returns:
        The options of the task, and the sandbox.

    Raises:
        InputError: naming the key.
    """
    tree: dict[str, Any] = {"sandbox": {}}
    for assignment in overrides:
        _override(tree, assignment)
    return tree, _build(SandboxConfig, tree.pop("sandbox"), "sandbox")


def to_dict(config: Any) -> Any:
    """A config as plain YAML types, with every default written out."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(item) for key, item in config.items()}
    return config


def to_yaml(config: RunConfig) -> str:
    """A config as YAML that :func:`load_config` reads back equal, unless a text has ``${NAME}``, which it would replace."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


# --------------------------------------------------------------------------------------------------------------------
# YAML and overrides


def read_yaml(path: Path, what: str = "a config") -> dict[Any, Any]:
    """Reads a YAML file that holds a mapping.

    Args:
        path: path of the file.
        what: what the file should hold, for messages.

    Raises:
        InputError: the file can't be read, is not YAML, holds something other than a mapping, or has a key twice.
    """
    try:
        tree = load_yaml(path)
    except OSError as error:
        raise InputError(f"expected {what} in {path}, got {error.strerror}; correct the path") from error
    except ValueError as error:
        raise InputError(f"expected {what}, got text that is not YAML in {path} ({error}); correct the file") from error
    if not isinstance(tree, dict):
        raise InputError(f"expected a mapping of keys, got {type(tree).__name__} in {path}; correct the file")
    return tree


def _plain(value: Any) -> Any:
    """A copy of a value with the types that YAML has."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _override(tree: Any, assignment: str) -> None:
    """Sets ``a.b.0.c=value`` in a tree of dicts and lists; the value is YAML."""
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted:
        raise InputError(f"expected an override of the form key=value, got {assignment!r}; correct it")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise InputError(
            f"expected YAML as the value, got {text!r} ({error}) in the override {assignment!r}; correct it"
        ) from error
    names = dotted.split(".")
    for depth, name in enumerate(names):
        place = _place(tree, name, ".".join(names[: depth + 1]), assignment)
        if depth == len(names) - 1:
            tree[place] = value
            return
        if isinstance(tree, dict) and tree.get(place) is None:
            tree[place] = {}
        tree = tree[place]


def _place(tree: Any, name: str, key: str, assignment: str) -> Any:
    """What ``name`` indexes in a dict or a list; an item of a list is addressed by its index or its ``name``."""
    outer = key.rpartition(".")[0]
    if isinstance(tree, dict):
        return name
    if not isinstance(tree, list):
        raise InputError(
            f"expected {outer} to be a mapping, got {tree!r} for {key} in the override {assignment!r}; correct the key"
        )
    if name.isdigit() and int(name) < len(tree):
        return int(name)
    for i, item in enumerate(tree):
        if isinstance(item, dict) and item.get("name") == name:
            return i
    raise InputError(
        f"expected the index or the name of one of the {len(tree)} items of {outer}, got {key} in the override "
        f"{assignment!r}; correct it"
    )


def _fill_variables(value: Any, key: str) -> Any:
    """A copy of a value in which the environment variable replaces each ``${NAME}`` of a text."""
    if isinstance(value, Mapping):
        return {name: _fill_variables(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill_variables(item, f"{key}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    return _VARIABLE.sub(lambda match: _variable(match[1], value, key), value)


def _variable(name: str, text: str, key: str) -> str:
    """The value of the environment variable that a text names."""
    found = os.environ.get(name)
    if not found:
        raise InputError(
            f"expected the environment variable {name} to be set, got nothing for {text!r} in {key}; set it, or override {key}"
        )
    return found


# --------------------------------------------------------------------------------------------------------------------
# Types and ranges


def _error(key: str, expected: object, value: Any) -> InputError:
    return InputError(f"expected {key or 'the config'} to be {expected}, got {value!r}; correct the config")


def _build(kind: Any, value: Any, key: str, limits: Range | None = None) -> Any:
    """Converts plain YAML to the type of a key.

    Args:
        kind: the annotated type.
        value: plain YAML.
        key: the dotted key, for messages.
        limits: the range of a number, or of the numbers in a list or a mapping.

    Raises:
        InputError: naming the key.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, key)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, key, limits)
    if origin is Literal:
        if value not in args:
            raise _error(key, f"one of {', '.join(map(str, args))}", value)
        return value
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise _error(key, "a list", value)
        return origin(_build(args[0], item, f"{key}.{i}", limits) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _error(key, "a mapping", value)
        return {str(k): _build(args[1], v, f"{key}.{k}", limits) for k, v in value.items()}
    return value if kind is Any else _build_scalar(kind, value, key, limits)


def _build_scalar(kind: type, value: Any, key: str, limits: Range | None) -> Any:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # YAML 1.1 reads 1e-3 as a text
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _error(key, f"of type {kind.__name__}", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _error(key, "finite", value)
    if isinstance(value, str) and "\0" in value:  # no path has one
        raise _error(key, "a text without NUL", value)
    if limits is not None and isinstance(value, int | float) and not limits.accepts(value):
        raise _error(key, limits, value)
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise _error(key, "a mapping", value)
    hints = _hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            found = f"got the unknown key {prefix}{name}"
            if close:
                raise InputError(f"expected a key of the config, {found}; did you mean {prefix}{close[0]}?")
            raise InputError(f"expected one of the keys {', '.join(hints)}, {found}; correct the config")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"expected the key {prefix}{name}, got none in the config; add it")
    return kind(**{name: _build(hints[name], item, f"{prefix}{name}", range_of(fields[name])) for name, item in value.items()})
