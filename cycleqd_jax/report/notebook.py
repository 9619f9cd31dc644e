"""Progress in Jupyter notebooks, as ``ipywidgets`` progress bars."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any

from cycleqd_jax.report.displays import Stream, write
from cycleqd_jax.report.stage import REDRAW_SECONDS, Stage

__all__ = ["Widgets", "in_notebook"]


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook (or of another front end that speaks its protocol)."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


@dataclasses.dataclass
class _Row:
    """The widgets of one stage.

    Attributes:
        box: holds the other three.
        bar: the progress bar.
        text: count, time and figures.
        stage: the stage that the row shows.
        drawn: time of the last change.
    """

    box: Any
    bar: Any
    text: Any
    stage: Stage
    drawn: float


class Widgets:
    """One progress bar per stage. A finished outermost stage keeps its bar; the bars of its nested stages are removed.

    Args:
        stream: where to write single lines.

    Raises:
        ImportError: if ``ipywidgets`` is not installed.
    """

    def __init__(self, stream: Stream) -> None:
        self._widgets = importlib.import_module("ipywidgets")
        self._display = importlib.import_module("IPython.display").display
        self._stream = stream
        self._column = self._widgets.VBox(children=())  # holds the rows; displayed with the first stage
        self._rows: dict[str, _Row] = {}  # of unfinished stages and of finished nested ones

    def show(self, stage: Stage, now: float) -> None:
        """Updates the bar of a stage, at most ten times a second. A new stage gets a new bar."""
        row = self._rows.get(stage.name)
        if row is None:
            row = self._add(stage, now)
        elif row.stage is stage and not stage.finished and now - row.drawn < REDRAW_SECONDS:
            return
        row.stage, row.drawn = stage, now
        row.bar.value = stage.share
        row.bar.bar_style = "success" if stage.finished else "" if stage.total > 0 else "info"
        row.text.value = " · ".join([stage.count, stage.when(now), *stage.figure_texts()])
        if stage.finished and stage.outer is None:
            self._keep_only(row)

    def log(self, text: str) -> None:
        """Writes a line below the bars."""
        write(self._stream, text + "\n")

    def close(self) -> None:
        """Marks the bars of unfinished stages; the next stage begins a new column of bars."""
        for row in self._rows.values():
            if not row.stage.finished:
                row.bar.bar_style = "warning"
        self._rows.clear()
        self._column = self._widgets.VBox(children=())

    def _add(self, stage: Stage, now: float) -> _Row:
        widgets = self._widgets
        label = widgets.Label(value=stage.name, layout={"width": "12em"})
        bar = widgets.FloatProgress(value=0.0, min=0.0, max=1.0, layout={"width": "24em"})
        text = widgets.Label(value="")
        row = _Row(widgets.HBox(children=(label, bar, text)), bar, text, stage, now)
        self._rows[stage.name] = row
        is_first = not self._column.children
        self._column.children = (*self._column.children, row.box)
        if is_first:
            self._display(self._column)
        return row

    def _keep_only(self, row: _Row) -> None:
        """Ends an outermost stage: its bar stays, the bars of finished stages inside it are removed."""
        nested = [other.box for other in self._rows.values() if other is not row and other.stage.finished]
        self._column.children = tuple(box for box in self._column.children if not any(box is one for one in nested))
        self._rows = {name: other for name, other in self._rows.items() if other is not row and not other.stage.finished}
