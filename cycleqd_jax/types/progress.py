"""The callback of long stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Progress", "no_progress"]

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""``progress(stage, done, total, figures)``: a callback of long stages; ``figures`` are numbers to show, by name."""


def no_progress(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """A :data:`Progress` that shows nothing."""
