"""The values of a mergekit config: numbers, lists interpolated over the layers, and filters by the names of tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

from cycleqd_jax.types import InputError

__all__ = ["Rule", "Setting", "parse_setting"]

Value = object
"""A value of YAML."""


class Rule(NamedTuple):
    """The value of a setting for some tensors.

    Attributes:
        pattern: the tensors whose name contains this text; None for all.
        values: one number, or several that are spread evenly over the layers.
    """

    pattern: str | None
    values: tuple[float, ...]


class Setting(NamedTuple):
    """A setting of a config. The first rule that fits a tensor counts.

    Attributes:
        rules: the rules, in order.
        truth: whether the values are true or false, which are not interpolated.
    """

    rules: tuple[Rule, ...]
    truth: bool

    @property
    def by_layer(self) -> bool:
        """Whether a value depends on the layer."""
        return any(len(rule.values) > 1 for rule in self.rules)

    def at(self, tensor: str, position: float) -> float | None:
        """The value for one tensor, or None if no rule fits.

        Args:
            tensor: the name of the tensor.
            position: its layer, from 0 for the first to 1 for the last one; 0 for tensors outside layers.
        """
        for pattern, values in self.rules:
            if pattern in (None, "*") or pattern in tensor:
                if not values:
                    return None
                place = position * (len(values) - 1)
                first = int(place)
                if self.truth:
                    return values[first]
                share = place - first
                return (1 - share) * values[first] + share * values[min(len(values) - 1, first + 1)]
        return None


def parse_setting(raw: Value, where: str, *, truth: bool = False) -> Setting:
    """Reads a value of ``parameters``.

    Args:
        raw: a number, a list of numbers, ``{filter, value}``, or a list of these.
        where: the key in the file, for messages.
        truth: whether the value is true or false.

    Raises:
        InputError: it is something else.
    """
    conditions = raw if isinstance(raw, list) and any(isinstance(entry, dict) for entry in raw) else [raw]
    rules = []
    for condition in conditions:
        if not isinstance(condition, dict):
            if len(conditions) > 1:
                raise InputError(f"expected numbers, or {{filter, value}} entries, got both in {where}; write one kind")
            rules.append(Rule(None, _numbers(condition, where, truth)))
            continue
        unknown = sorted(str(key) for key in condition if key not in ("filter", "value"))
        if unknown or "value" not in condition:
            got = f"the key {unknown[0]!r}" if unknown else "no value"
            raise InputError(f"expected the keys filter and value, got {got} in {where}; correct the entry")
        pattern = condition.get("filter")
        if pattern is not None and not isinstance(pattern, str):
            raise InputError(f"expected a part of a tensor's name, got {pattern!r} in {where}.filter; write a text")
        rules.append(Rule(pattern, _numbers(condition["value"], where, truth)))
    return Setting(tuple(rules), truth)


def _numbers(raw: Value, where: str, truth: bool) -> tuple[float, ...]:
    entries = raw if isinstance(raw, list) else [raw]
    return tuple(_number(entry, where, truth) for entry in entries)


def _number(raw: Value, where: str, truth: bool) -> float:
    if truth and isinstance(raw, (bool, int, float)) and raw in (0, 1):
        return float(raw)
    if not truth and not isinstance(raw, bool) and isinstance(raw, (int, float, str)):
        try:
            number = float(raw)  # YAML reads 1e-1 as a text
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    shown = "an integer of many digits" if isinstance(raw, int) and raw.bit_length() > 256 else repr(raw)[:80]
    raise InputError(f"expected {'true or false' if truth else 'a number'}, got {shown} in {where}; correct the value")
