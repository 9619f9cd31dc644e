"""Reads YAML: with keys that occur once, and without values that hold themselves."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import yaml

__all__ = ["load_yaml", "parse_yaml"]


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; the standard one keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise ValueError(f"the key {key!r} twice, line {node.value[i][0].start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def parse_yaml(source: str | IO[str]) -> Any:
    """The value of a text in YAML.

    Args:
        source: the text, or an open file.

    Raises:
        ValueError: it is not YAML; or a key occurs twice; or nothing can be made of a value, such as a date with 13 months; or
            lists are nested too deeply, or hold themselves. The message has the line, where it is known.
        OSError: the file can't be read.

    >>> from cycleqd_jax.yaml_files import parse_yaml
    >>> parse_yaml("bins: [5, 10]")
    {'bins': [5, 10]}
    """
    try:
        value = yaml.load(source, _UniqueKeyLoader)
        _refuse_cycles(value, set(), set())
    except OSError:
        raise
    except Exception as error:  # the constructors of PyYAML raise many types
        mark = getattr(error, "problem_mark", None)
        reason = " ".join(str(error if mark is None else getattr(error, "problem", error)).split())[:80]
        raise ValueError(reason if mark is None else f"line {mark.line + 1}: {reason}") from error
    return value


def load_yaml(path: str | Path) -> Any:
    """The YAML value of a file.

    Args:
        path: path of the file.

    Raises:
        ValueError: as for :func:`parse_yaml`.
        OSError: the file can't be read.
    """
    with Path(path).open(encoding="utf-8") as stream:
        return parse_yaml(stream)


def _refuse_cycles(value: Any, above: set[int], done: set[int]) -> None:
    """Raises ValueError where an alias stands for what it is in; every value is visited once, however many aliases it has."""
    if not isinstance(value, list | dict) or id(value) in done:
        return
    if id(value) in above:
        raise ValueError("an alias stands for what it is in")
    above.add(id(value))
    for part in value.values() if isinstance(value, dict) else value:
        _refuse_cycles(part, above, done)
    above.remove(id(value))
    done.add(id(value))
