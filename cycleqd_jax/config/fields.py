"""Fields of config dataclasses that carry the range of their values."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["Range", "field", "range_of"]

Number = int | float


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a key accepts; a bound that is None is absent.

    Attributes:
        minimum: smallest value.
        maximum: largest value.
        above: every value is greater than this one.
        below: every value is less than this one.
        special: one value that is accepted outside the bounds.
    """

    minimum: Number | None = None
    maximum: Number | None = None
    above: Number | None = None
    below: Number | None = None
    special: Number | None = None

    def accepts(self, value: Number) -> bool:
        """Whether a number is in the range."""
        if self.special is not None and value == self.special:
            return True
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        text = " and ".join(f"{words} {value}" for words, value in bounds.items() if value is not None)
        return text if self.special is None else f"{text}, or {self.special}"


def field(
    default: Any,
    *,
    minimum: Number | None = None,
    maximum: Number | None = None,
    above: Number | None = None,
    below: Number | None = None,
    special: Number | None = None,
) -> Any:
    """A dataclass field whose numbers have a range; None is accepted where the annotation allows it.

    The range is also that of every number in a list or in a mapping.

    Args:
        default: the default value, immutable.
        minimum: smallest value.
        maximum: largest value.
        above: exclusive lower bound.
        below: exclusive upper bound.
        special: one value that is accepted outside the bounds.
    """
    return dataclasses.field(default=default, metadata={"range": Range(minimum, maximum, above, below, special)})


def range_of(item: dataclasses.Field[Any]) -> Range | None:
    """The range of a field made by :func:`field`, else None."""
    return item.metadata.get("range")
