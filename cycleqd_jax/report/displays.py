"""Displays of progress that write text: one line redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import shutil
import weakref
from typing import Protocol, runtime_checkable

from cycleqd_jax.report.stage import REDRAW_SECONDS, Stage, span

__all__ = ["Display", "PlainLines", "Stream", "Terminal", "is_terminal", "write"]

_PLAIN_SECONDS = 5.0  # first pause between plain lines; pauses grow with the stage, so a day leaves dozens of lines
_PLAIN_GROWTH = 0.1
_PLAIN_MOST_SECONDS = 300.0


@runtime_checkable
class Stream(Protocol):
    """The methods of a text stream that displays need."""

    def write(self, text: str, /) -> object:
        """Writes text."""
        ...

    def flush(self) -> object:
        """Flushes the text."""
        ...

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        ...

    def fileno(self) -> int:
        """The file descriptor; raises OSError if there is none."""
        ...


@runtime_checkable
class Display(Protocol):
    """Shows the stages of a :class:`~cycleqd_jax.report.ProgressBar`, which holds a lock around every call."""

    def show(self, stage: Stage, now: float) -> None:
        """Shows the new state of a stage."""
        ...

    def log(self, text: str) -> None:
        """Writes a line of text, apart from the bars."""
        ...

    def close(self) -> None:
        """Ends the display; stages that are unfinished stay so."""
        ...


def is_terminal(stream: Stream) -> bool:
    """Whether lines of ``stream`` can be redrawn in place."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def write(stream: Stream, text: str) -> None:
    """Writes and flushes text; characters that the encoding lacks are replaced."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


class Terminal:
    """Redraws one line in place.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._drawn = -math.inf  # time of the last redraw
        self._dirty = False  # whether the cursor is at the end of a bar
        self._color = not os.environ.get("NO_COLOR")
        encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
        self._unicode = encoding.startswith("utf")

    def show(self, stage: Stage, now: float) -> None:
        """Redraws the line. A finished outermost stage keeps its line, and the next stage starts below."""
        lasting = stage.finished and stage.outer is None
        if not lasting and now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        self._dirty = True  # set before writing, because an interrupt may arrive during the write
        write(self._stream, f"\r\x1b[K{self._line(stage, now)}" + ("\n" if lasting else ""))
        self._dirty = not lasting

    def log(self, text: str) -> None:
        """Writes a line above the bar, which is redrawn at its next step."""
        write(self._stream, ("\r\x1b[K" if self._dirty else "") + text + "\n")
        self._dirty = False
        self._drawn = -math.inf

    def close(self) -> None:
        """Moves the cursor to a fresh line."""
        if self._dirty:
            write(self._stream, "\n")
            self._dirty = False

    def _line(self, stage: Stage, now: float) -> str:
        """The line of a stage: the fullest form that fits the terminal's width."""
        room = self._columns() - 1  # some terminals wrap after the last column
        known = stage.total > 0
        separator, arrow = (" · ", " › ") if self._unicode else (" | ", " > ")
        name = f"{stage.outer.name} {stage.outer.count}{arrow}{stage.name}" if stage.outer else stage.name
        head = f"{name} {math.floor(stage.share * 100):3d}% " if known else f"{name} "
        count, when, figures = stage.count, stage.when(now), stage.figure_texts()

        fullest_first = [(24, [count, when, *figures[:n]]) for n in range(len(figures), 0, -1)]
        for bar, tail in [*fullest_first, (24, [count, when]), (10, [count, when]), (10, [count]), (0, [count])]:
            bar = bar if known else 0
            end = (" " if bar else "") + separator.join(tail)
            if len(head) + bar + len(end) <= room:
                return head + (self._bar(stage.share, bar) if bar else "") + end
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


class PlainLines:
    """Writes a line at the start and at the end of a stage, and at growing intervals in between.

    Args:
        stream: a file, a pipe, or any other stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._printed: weakref.WeakKeyDictionary[Stage, float] = weakref.WeakKeyDictionary()  # time of each stage's last line

    def show(self, stage: Stage, now: float) -> None:
        """Writes a line if one is due."""
        if self._is_due(stage, now):
            self._printed[stage] = now
            write(self._stream, self._line(stage, now) + "\n")

    def log(self, text: str) -> None:
        """Writes a line."""
        write(self._stream, text + "\n")

    def close(self) -> None:
        """Does nothing: every line is complete."""

    def _is_due(self, stage: Stage, now: float) -> bool:
        if stage not in self._printed:
            if stage.outer is None:
                return True
            self._printed[stage] = stage.started  # a nested stage writes no first line: the outer stage sets the pace
            return False
        if stage.finished and stage.outer is None:
            return True
        pause = min(max(_PLAIN_SECONDS, _PLAIN_GROWTH * (now - stage.started)), _PLAIN_MOST_SECONDS)
        return now - self._printed[stage] >= pause

    def _line(self, stage: Stage, now: float) -> str:
        percent = f" ({math.floor(100 * stage.share)}%)" if stage.total > 0 else ""
        parts = [f"{stage.name}: {stage.count}{percent}"]
        if stage.finished:
            parts.append(stage.when(now))
        elif not math.isnan(stage.eta(now)):
            parts.append(f"{span(stage.eta(now))} left")
        return ", ".join([*parts, *stage.figure_texts()])
