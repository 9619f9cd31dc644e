"""Progress of long stages: a bar redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

__all__ = ["ProgressBar"]

_REDRAW_SECONDS = 0.1
_PLAIN_SECONDS = 5.0  # first pause between plain lines; pauses grow with the stage so that a day leaves dozens of lines
_PLAIN_GROWTH = 0.1
_PLAIN_MOST_SECONDS = 300.0


@dataclasses.dataclass
class _Stage:
    """A stage under way; times in seconds on the bar's clock."""

    name: str
    started: float
    done: int
    total: int
    figures: Mapping[str, float]
    samples: collections.deque[tuple[float, int]]
    printed: float = -math.inf

    def eta(self, now: float) -> float:
        """Seconds left at the pace of the last samples; NaN while unknown."""
        since, before = self.samples[0]
        if self.total <= 0 or self.done <= before or now <= since:
            return math.nan
        return max(self.total - self.done, 0) * (now - since) / (self.done - before)


class ProgressBar:
    """A ``types.Progress`` that shows what long stages do.

    On a terminal one line is redrawn in place (at most ten times a second): bar, count, time left, figures; what does not
    fit the width is left out, figures first. A finished stage keeps its line and the next one starts below; a stage that
    runs inside another unfinished one is shown while it runs, but leaves no line. Elsewhere (files, pipes, ``TERM=dumb``) there
    are plain lines: at start and end of a stage and in between at growing intervals. ``NO_COLOR`` is respected.

    The cursor is never hidden and the terminal's modes are never touched, so an interrupt leaves nothing to repair; used as
    a context manager the bar also moves to a fresh line, whatever ends the block. Calls from several threads are safe.

    Args:
        stream: where to write; default: standard error.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}  # unfinished ones, outermost first
        self._drawn = -math.inf
        self._dirty = False  # the cursor stands at the end of a bar
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._color = self._terminal and not os.environ.get("NO_COLOR")
        encoding = (getattr(self._stream, "encoding", None) or "ascii").lower().replace("-", "")
        self._unicode = encoding.startswith("utf")

    def __call__(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Shows that ``done`` of ``total`` steps of ``stage`` are behind us.

        Args:
            stage: its name.
            done: finished steps; fewer than before means that the stage began anew.
            total: all steps; 0 if unknown.
            figures: what to show beside it, such as best scores.
        """
        with self._lock:
            now = self._clock()
            state = self._stages.get(stage)
            if state is None or done < state.done:
                # Steps that a resumed stage found done say nothing about its pace: the first sample is where it stands.
                state = _Stage(stage, now, done, total, figures, collections.deque([(now, done)], maxlen=100))
                self._stages[stage] = state
            state.done, state.total, state.figures = done, total, figures
            if now - state.samples[-1][0] >= _REDRAW_SECONDS:
                state.samples.append((now, done))
            finished = 0 < total <= done
            if self._terminal:
                self._draw(state, now, finished)
            else:
                self._print(state, now, finished)
            if finished:
                del self._stages[stage]

    def say(self, text: str) -> None:
        """Writes a line above the bar, which is drawn again at its next step.

        Args:
            text: one line or several, without the last newline.
        """
        with self._lock:
            self._write(("\r\x1b[K" if self._dirty else "") + text + "\n")
            self._dirty = False
            self._drawn = -math.inf

    def close(self) -> None:
        """Leaves the terminal on a fresh line; safe to call twice, and the bar may be used again."""
        with self._lock:
            if self._dirty:
                self._write("\n")
                self._dirty = False
            self._stages.clear()

    def __enter__(self) -> ProgressBar:
        """The bar itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes it, however the block ended."""
        self.close()

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()

    def _outer(self, state: _Stage) -> _Stage | None:
        """The unfinished stage that ``state`` runs inside of."""
        outermost = next(iter(self._stages.values()))
        return None if outermost is state else outermost

    def _draw(self, state: _Stage, now: float, finished: bool) -> None:
        lasting = finished and self._outer(state) is None
        if not lasting and now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        self._dirty = True  # before writing: an interrupt may come in the middle of it
        self._write(f"\r\x1b[K{self._line(state, now, finished)}" + ("\n" if lasting else ""))
        self._dirty = not lasting

    def _line(self, state: _Stage, now: float, finished: bool) -> str:
        room = self._columns() - 1  # the last column would wrap on some terminals
        known = state.total > 0
        share = min(max(state.done / state.total, 0.0), 1.0) if known else 0.0
        count = f"{state.done}/{state.total}" if known else f"{state.done}"
        if finished:
            when = f"took {_span(now - state.started)}"
        else:
            when = f"{_span(state.eta(now))} left" if known else _span(now - state.started)
        figures = [f"{name} {_number(value)}" for name, value in state.figures.items()]
        separator, arrow = (" · ", " › ") if self._unicode else (" | ", " > ")
        outer = self._outer(state)
        name = f"{outer.name} {outer.done}/{outer.total}{arrow}{state.name}" if outer else state.name
        head = f"{name} {math.floor(share * 100):3d}% " if known else f"{name} "

        # From the fullest line to the barest; the first that fits is shown.
        fullest_first = [(24, [count, when, *figures[:n]]) for n in range(len(figures), 0, -1)]
        for bar, tail in [*fullest_first, (24, [count, when]), (10, [count, when]), (10, [count]), (0, [count])]:
            bar = bar if known else 0
            end = (" " if bar else "") + separator.join(tail)
            if len(head) + bar + len(end) <= room:
                return head + (self._bar(share, bar) if bar else "") + end
        return f"{head}{count}"[:room]

    def _bar(self, share: float, width: int) -> str:
        eighths = int(share * width * 8)
        if self._unicode:
            full = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
            rest = "░" * (width - len(full))
        else:
            full, rest = "#" * (eighths // 8), "." * (width - eighths // 8)
        return f"\x1b[36m{full}\x1b[90m{rest}\x1b[0m" if self._color else full + rest

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError, AttributeError):
            columns = 0
        return columns or shutil.get_terminal_size((80, 24)).columns

    def _print(self, state: _Stage, now: float, finished: bool) -> None:
        nested = self._outer(state) is not None
        pause = min(max(_PLAIN_SECONDS, _PLAIN_GROWTH * (now - state.started)), _PLAIN_MOST_SECONDS)
        first = state.printed == -math.inf
        if nested and first:  # the outer stage's lines set the pace
            state.printed = state.started
            return
        if not (first or (finished and not nested) or now - state.printed >= pause):
            return
        state.printed = now
        percent = f" ({math.floor(100 * min(state.done / state.total, 1.0))}%)" if state.total > 0 else ""
        count = f"{state.done}/{state.total}{percent}" if state.total > 0 else f"{state.done}"
        parts = [f"{state.name}: {count}"]
        if finished:
            parts.append(f"took {_span(now - state.started)}")
        elif not math.isnan(state.eta(now)):
            parts.append(f"{_span(state.eta(now))} left")
        parts += [f"{name} {_number(value)}" for name, value in state.figures.items()]
        self._write(", ".join(parts) + "\n")


def _span(seconds: float) -> str:
    """A time as people say it: ``"8s"``, ``"3m07s"``, ``"2h05m"``, ``"3d04h"``; ``"?"`` if unknown."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    for size, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{below}"
    return f"{whole}s"


def _number(value: float) -> str:
    """A figure in few characters."""
    if not math.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) >= 2:
        return f"{int(value)}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 or value == 0 else f"{value:.3g}"
