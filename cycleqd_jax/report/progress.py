"""Progress of long stages, shown on a terminal, in a notebook or in a log."""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from cycleqd_jax.report.displays import Display, PlainLines, Stream, Terminal, is_terminal
from cycleqd_jax.report.notebook import Widgets, in_notebook
from cycleqd_jax.report.stage import REDRAW_SECONDS, Stage

__all__ = ["ProgressBar"]


class ProgressBar:
    """A ``types.Progress`` for people.

    * On a terminal, one line is redrawn in place at most ten times a second: bar, count, time left and figures. What does
      not fit the width is left out, figures first. A finished stage keeps its line; a stage inside another unfinished stage
      leaves no line. ``NO_COLOR`` is respected.
    * In a Jupyter notebook with ``ipywidgets`` (``pip install 'cycleqd_jax[notebook]'``), every stage has a progress bar.
    * Elsewhere (files, pipes, ``TERM=dumb``, notebooks without ``ipywidgets``), a stage writes a plain line at its start and
      end, and at growing intervals in between.

    The cursor is never hidden and terminal modes are never changed, so an interrupt leaves the terminal usable. Used as a
    context manager, the bar moves to a fresh line however the block ends. Calls from several threads are safe.

    Args:
        stream: where to write text. The default is standard error, or standard output in a notebook, where only the default
            shows widgets.
        clock: monotonic time in seconds.
    """

    def __init__(self, stream: Stream | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = _choose_display(stream)
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: dict[str, Stage] = {}  # unfinished stages, outermost first

    def __call__(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Shows that ``done`` of ``total`` steps of ``stage`` are finished.

        Args:
            stage: name of the stage.
            done: finished steps; fewer than before means that the stage has started again.
            total: all steps; 0 if unknown.
            figures: values to show, such as best scores.
        """
        with self._lock:
            now = self._clock()
            state = self._stages.get(stage)
            if state is None or done < state.done:
                # The first sample is the first count: steps that a resumed run finished earlier do not count for the pace.
                state = Stage(stage, now, done, total, figures, collections.deque([(now, done)], maxlen=100), None)
                self._stages[stage] = state
            state.done, state.total, state.figures = done, total, figures
            if now - state.samples[-1][0] >= REDRAW_SECONDS:
                state.samples.append((now, done))
            outermost = next(iter(self._stages.values()))
            state.outer = None if outermost is state else outermost
            self._display.show(state, now)
            if state.finished:
                del self._stages[stage]

    def log(self, text: str) -> None:
        """Writes a line above the bar (below the bars in a notebook).

        Args:
            text: one line or several, without the last newline.
        """
        with self._lock:
            self._display.log(text)

    def close(self) -> None:
        """Ends all stages and leaves the terminal on a fresh line. Safe to call twice; the bar may be used again."""
        with self._lock:
            self._display.close()
            self._stages.clear()

    def __enter__(self) -> ProgressBar:
        """The bar itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the bar."""
        self.close()


def _choose_display(stream: Stream | None) -> Display:
    if stream is None and in_notebook():
        with contextlib.suppress(ImportError):
            return Widgets(sys.stdout)
        return PlainLines(sys.stdout)
    text: Stream = sys.stderr if stream is None else stream
    return Terminal(text) if is_terminal(text) else PlainLines(text)
