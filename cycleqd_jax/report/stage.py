"""The state of a stage that is under way, and how times and figures are written."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping

__all__ = ["REDRAW_SECONDS", "Stage", "number", "span"]

REDRAW_SECONDS = 0.1
"""Displays that are redrawn in place change at most this often."""


@dataclasses.dataclass(eq=False)
class Stage:
    """A stage under way. Times are seconds on the clock of the progress bar.

    Attributes:
        name: the name of the stage.
        started: when the stage began.
        done: finished steps.
        total: all steps; 0 if unknown.
        figures: values to show, such as best scores.
        samples: recent (time, done) pairs, which give the pace.
        outer: the unfinished stage that contains this one; None for an outermost stage.
    """

    name: str
    started: float
    done: int
    total: int
    figures: Mapping[str, float]
    samples: collections.deque[tuple[float, int]]
    outer: Stage | None

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return 0 < self.total <= self.done

    @property
    def share(self) -> float:
        """Finished share of the steps, in [0, 1]; 0 if the total is unknown."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 0.0

    @property
    def count(self) -> str:
        """``"3/10"``, or ``"3"`` if the total is unknown."""
        return f"{self.done}/{self.total}" if self.total > 0 else f"{self.done}"

    def eta(self, now: float) -> float:
        """Seconds left at the recent pace; NaN while unknown."""
        since, before = self.samples[0]
        if self.total <= 0 or self.done <= before or now <= since:
            return math.nan
        return max(self.total - self.done, 0) * (now - since) / (self.done - before)

    def when(self, now: float) -> str:
        """``"took 3m07s"`` if finished, ``"2h05m left"`` if the total is known, or else the time so far."""
        if self.finished:
            return f"took {span(now - self.started)}"
        return f"{span(self.eta(now))} left" if self.total > 0 else span(now - self.started)

    def figure_texts(self) -> list[str]:
        """Each figure as ``"name value"``."""
        return [f"{name} {number(float(value))}" for name, value in self.figures.items()]


def span(seconds: float) -> str:
    """A duration in a few characters: ``"8s"``, ``"3m07s"``, ``"2h05m"``, ``"3d04h"``; ``"?"`` if unknown."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    for size, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{below}"
    return f"{whole}s"


def number(value: float) -> str:
    """A figure in a few characters; ``"-"`` for NaN and infinity."""
    if not math.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) >= 2:
        return f"{int(value)}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 or value == 0 else f"{value:.3g}"
