"""Parses and compares the final answers of DBBench."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cycleqd_jax.tasks.syntax import literal

__all__ = ["parse_answer", "same_answer", "same_cells"]

_LONGEST_ANSWER = 20_000
_TOLERANCE = 1e-2
_NULLS = {"none", "null", "undefined", "nan", "inf", "infinity", "-inf", "-infinity", ""}


def parse_answer(answer: str) -> list[str]:
    """The items of a list in JSON or Python syntax, or in broken syntax; any other text is one item. Nothing is evaluated."""
    answer = answer.strip()[:_LONGEST_ANSWER]
    if not (answer.startswith("[") and answer.endswith("]")):
        return [answer]
    if answer.count("[") + answer.count("(") + answer.count("{") < 50:  # deep nesting could overflow the stack of the parsers
        for parser in (json.loads, literal):
            try:
                values = parser(answer)
                if isinstance(values, list):  # str() of a very long number raises ValueError
                    return [str(v[0]) if isinstance(v, list | tuple) and len(v) == 1 else str(v) for v in values]
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
    return _split_at_commas(answer[1:-1])


def same_answer(answer: str, labels: Sequence[str]) -> bool:
    """Whether an answer is correct, by the rules of AgentBench's result processor (without its ``eval``).

    Cells are compared without surrounding blanks and quotes, percent signs and thousands separators; null values such as
    "none" count as "0". If all cells are numbers, they must match one to one within 0.01; otherwise the sets of texts must be
    equal. One rule is stricter than in AgentBench: an empty answer is wrong even if the label is "none".
    """
    if not answer.strip() or len(answer) > _LONGEST_ANSWER:
        return False
    return same_cells(parse_answer(answer), labels)


def same_cells(cells: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether the items of an answer are correct, by the rules of :func:`same_answer`."""
    given = [_normal(value) for value in cells]
    wanted = [_normal(label) for label in labels]
    numbers, targets = _numbers(given), _numbers(wanted)
    if numbers is None or targets is None:
        return set(given) == set(wanted)
    for number in numbers:
        near = next((i for i, target in enumerate(targets) if abs(number - target) <= _TOLERANCE), None)
        if near is None:
            return False
        del targets[near]
    return not targets


def _normal(value: str) -> str:
    value = value.strip().strip("'\"").strip()
    if value.endswith("%"):
        return value[:-1].strip()
    if not value.startswith("["):
        value = value.replace(",", "")
    return "0" if value.lower() in _NULLS else value


def _numbers(values: Sequence[str]) -> list[float] | None:
    """The values as numbers; None if one of them is not a number."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _split_at_commas(text: str) -> list[str]:
    """The items of a list, separated by commas outside quotes."""
    parts, start, quoted = [], 0, False
    for position, character in enumerate(text):
        if character in "\"'":
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip().strip("'\"") for part in parts if part.strip()]
