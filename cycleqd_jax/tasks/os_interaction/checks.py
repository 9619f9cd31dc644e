"""The built-in comparisons of AgentBench's checks."""

from __future__ import annotations

__all__ = ["BUILTINS", "same_size"]


def same_size(first: str, second: str) -> bool:
    """AgentBench's size-match: compares whole numbers with a unit; other texts (``4.0K``, ``10KB``) equal nothing."""
    try:
        return _size(first) == _size(second)
    except ValueError:
        return False


def _size(text: str) -> int:
    text = text.strip()
    for suffix, power in (("B", 0), ("Byte", 0), ("K", 1), ("M", 2), ("G", 3), ("T", 4), ("P", 5)):
        if text.endswith(suffix):
            return int(text[: -len(suffix)]) * 1024**power
    return int(text)


def _same_integer(first: str, second: str) -> bool:
    try:
        return int(first) == int(second)
    except ValueError:
        return False


def _same_text(first: str, second: str) -> bool:
    return _normal(first) == _normal(second)


def _normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


BUILTINS = {"integer-match": _same_integer, "string-match": _same_text, "size-match": same_size}
"""The comparisons that a check may name, by name."""
