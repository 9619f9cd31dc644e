"""What an audit of a run folder has found."""

from __future__ import annotations

import dataclasses

__all__ = ["ROUNDING", "Audit"]

ROUNDING = 1e-9
"""The largest difference between a stored mean and a computed one. A sum in another order is rounded in another way."""


@dataclasses.dataclass
class Audit:
    """What :func:`verify_run` has found.

    Attributes:
        checked: what was checked.
        notes: remarks that are not disagreements.
        problems: the disagreements: what was expected, what is there, in which file, and what to do.
    """

    checked: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def expect(self, agrees: bool, problem: str) -> None:
        """Adds a problem where something does not agree."""
        if not agrees:
            self.problems.append(problem)
