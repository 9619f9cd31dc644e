"""The figures: archives as heat maps (fig. 4), archives over generations, score curves (fig. 5), and results as dots.

Each function returns a new Matplotlib ``Figure`` (no pyplot, no global state); :func:`render` turns it into bytes.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from cycleqd_jax.report.history import Archive, History
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.report.metrics import Metrics, milestones
from cycleqd_jax.report.style import EXPERT, THEMES, place_labels, quality_colormap, rc, task_color
from cycleqd_jax.report.tables import ResultsTable

__all__ = ["plot_archives", "plot_archives_over_generations", "plot_curves", "plot_results", "render"]

_P = ParamSpec("_P")


def _themed(plot: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Decorates a plot so that it is drawn with the settings of its ``theme`` argument."""

    @functools.wraps(plot)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with mpl.rc_context(rc(str(kwargs.get("theme", "light")))):
            return plot(*args, **kwargs)

    return drawn


def render(figure: Figure, kind: str, theme: str = "light") -> bytes:
    """Renders a figure as the content of a file.

    Args:
        figure: a figure drawn with the same theme.
        kind: ``"png"`` (opaque, 160 dpi) or ``"svg"`` (transparent, reproducible byte for byte).
        theme: ``"light"`` or ``"dark"``.
    """
    out = io.BytesIO()
    with mpl.rc_context(rc(theme)):
        if kind == "png":
            figure.savefig(out, format="png", dpi=160, facecolor=THEMES[theme]["page"], metadata={"Software": None})
        else:
            figure.savefig(out, format="svg", dpi=160, facecolor="none", metadata={"Date": None})
    return out.getvalue()


def _heat_map(axes: Axes, history: History, archive: Archive, pair: tuple[int, int], theme: str, names: bool = True) -> Any:
    """Draws one projection of an archive and returns the mesh, for a colour bar."""
    rows = archive.project(pair)
    quality = np.where(rows >= 0, history.scores[rows, archive.task], np.nan)
    bounds, tasks = history.grid.bounds, history.grid.tasks
    horizontal, vertical = archive.axes[pair[0]], archive.axes[pair[1]]
    flat = pair[0] == pair[1]
    x = np.linspace(bounds[horizontal, 0], bounds[horizontal, 1], archive.bins + 1)
    y = np.array([0.0, 1.0]) if flat else np.linspace(bounds[vertical, 0], bounds[vertical, 1], archive.bins + 1)
    low, high = history.quality_range(archive.task)
    axes.set_facecolor(THEMES[theme]["empty"])
    mesh = axes.pcolormesh(
        x, y, np.ma.masked_invalid(quality), cmap=quality_colormap(), vmin=low, vmax=high if high > low else low + 1e-6,
        edgecolors=THEMES[theme]["page"], linewidth=0.4 if names else 0.0, rasterized=not names or len(tasks) > 3,
    )  # fmt: skip
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2.5)
    _frame_experts(axes, history, archive, pair, (x, y), names)
    if flat:
        axes.set_yticks([])
    if names:
        axes.set_xlabel(f"{tasks[horizontal]} score")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        if not flat:
            axes.set_ylabel(f"{tasks[vertical]} score")
            axes.yaxis.set_major_locator(MaxNLocator(6))
    return mesh


def _frame_experts(
    axes: Axes, history: History, archive: Archive, pair: tuple[int, int], edges: tuple[np.ndarray, np.ndarray], names: bool
) -> None:
    """Draws red frames around the cells of the experts, and their names.

    Args:
        axes: the heat map.
        history: the journal.
        archive: the archive that the map shows.
        pair: the positions of the map's axes in ``archive.axes``.
        edges: the horizontal and the vertical edges of the cells.
        names: whether to draw the names.
    """
    x, y = edges
    flat = pair[0] == pair[1]
    frames = history.expert_cells(archive, pair)
    step_x, step_y = x[1] - x[0], y[1] - y[0]
    letter, line = 0.024 * archive.bins, 0.05 * archive.bins  # parts of a map, in cells
    labels = place_labels(frames, (len(y) - 1, len(x) - 1), letter, line) if names and not flat else {}
    for (row, column), experts in frames.items():
        for color, width, order in ((THEMES["light"]["page"], 3.6, 3), (EXPERT, 1.8, 4)):
            frame = Rectangle((x[column], y[row]), step_x, step_y, fill=False, edgecolor=color, zorder=order, clip_on=False)
            frame.set_linewidth(width if names else width * 0.55)
            axes.add_patch(frame)
        if not names:
            continue
        if flat:
            axes.text(
                x[column] + step_x / 2, 1.08, "\n".join(experts), color=EXPERT, fontsize=8, fontweight="bold", ha="center",
                va="bottom",
            )  # fmt: skip
        else:
            across, up = labels[row, column]
            axes.text(
                x[0] + across * step_x, y[0] + up * step_y, ", ".join(experts), color=EXPERT, fontsize=8, fontweight="bold",
                ha="center", va="center", zorder=5, path_effects=[withStroke(linewidth=2.6, foreground="white")],
            )  # fmt: skip


@_themed
def plot_archives(history: History, generation: int | None = None, *, theme: str = "light") -> Figure:
    """All archives as heat maps; the cells of the experts have red frames and names (fig. 4).

    With two tasks, an archive is a strip, with three a map. With more, it is a row of maps, one per pair of axes, where each
    cell shows the best elite over the other axes.

    Args:
        history: the journal.
        generation: the generation to show; the last by default.
        theme: ``"light"`` or ``"dark"``.
    """
    archives = history.archives(generation)
    tasks = history.grid.tasks
    pairs = archives[0].pairs()
    several = len(pairs) > 1
    flat = len(tasks) == 2
    rows, columns = (len(archives), len(pairs)) if several else ((2, 1) if flat else _shape(len(archives)))
    size = (7.5, 4.2) if flat else (4.1 * columns, 3.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for a, archive in enumerate(archives):
        for p, pair in enumerate(pairs):
            axes = grid[a, p] if several else grid.flat[a]
            mesh = _heat_map(axes, history, archive, pair, theme)
            cells = archive.capacity
            title = f"{tasks[archive.task]} archive"
            if p == 0:
                axes.set_title(title + (f"  ({len(archive.cells)} of {cells} cells)"), fontsize=10.5, pad=24 if flat else 8)
            bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=8 if flat else 26)
            bar.ax.spines["outline"].set_visible(False)
            bar.ax.tick_params(length=0)
            bar.set_label(f"best {tasks[archive.task]} score", color=THEMES[theme]["ink"])
    return figure


def _shape(panels: int) -> tuple[int, int]:
    columns = min(panels, 3)
    return math.ceil(panels / columns), columns


@_themed
def plot_archives_over_generations(history: History, *, theme: str = "light") -> Figure:
    """Small maps: a column per milestone, a row per archive, one colour scale per archive.

    With four tasks or more, an archive has a row per pair of axes, as in :func:`plot_archives`.
    """
    marks = milestones(history.last_generation, most=5)
    tasks = history.grid.tasks
    flat = len(tasks) == 2
    pairs = history.archives(-1)[0].pairs()
    rows = len(tasks) * len(pairs)
    height = 0.95 if flat else 1.75
    figure = Figure(figsize=(1.75 * len(marks) + 1.4, height * rows + 0.75), layout="constrained")
    grid = figure.subplots(rows, len(marks), squeeze=False)
    for column, mark in enumerate(marks):
        for archive in history.archives(mark):
            first = archive.task * len(pairs)
            for row, pair in enumerate(pairs, start=first):
                axes = grid[row, column]
                mesh = _heat_map(axes, history, archive, pair, theme, names=False)
                axes.set_xticks([])
                axes.set_yticks([])
                if not flat:
                    axes.set_box_aspect(1)
                if row == 0:
                    axes.set_title("experts" if mark < 0 else f"generation {mark}", fontsize=9, loc="center", pad=5)
                if column == 0:
                    axes.set_ylabel(f"{tasks[archive.task]} archive", fontweight="bold")
                    if len(pairs) > 1:
                        across, up = (tasks[archive.axes[i]] for i in pair)
                        axes.set_ylabel(f"{tasks[archive.task]} archive\n{up} over {across}", fontsize=7)
            if column == len(marks) - 1:
                bar = figure.colorbar(mesh, ax=grid[first : first + len(pairs), :], pad=0.01, aspect=14 * len(pairs))
                bar.ax.spines["outline"].set_visible(False)
                bar.ax.tick_params(length=0)
                bar.set_label("score", color=THEMES[theme]["ink"])
    return figure


@_themed
def plot_curves(history: History, metrics: Metrics, *, theme: str = "light") -> Figure:
    """Averages (fig. 5), best quality, coverage and QD score over generations; the experts' scores as dashed lines."""
    t = THEMES[theme]
    tasks = history.grid.tasks
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    (average, best), (coverage, qd_score) = figure.subplots(2, 2, sharex=True)
    generations = metrics.generations
    marks = np.array(milestones(history.last_generation)) + 1

    average.set_title("Average over all tasks")
    average.set_ylabel("average score")
    for values, color, name, marker in (
        (metrics.best_average, t["ink"], "best individual", "o"),
        (metrics.elites_average, "#7b61ff", "mean of all elites", "s"),
    ):
        average.plot(generations, values, color=color, drawstyle="steps-post" if marker == "o" else "default", label=name)
        average.plot(generations[marks], values[marks], marker, color=color, markersize=4.5, markeredgecolor=t["page"])
    for row in history.experts:
        name = str(history.individuals[row].expert)
        color = task_color(tasks.index(name)) if name in tasks else t["muted"]
        average.axhline(float(history.scores[row].mean()), ls=(0, (5, 3)), lw=1.2, color=color, label=f"{name} expert")

    best.set_title("Best of each archive")
    best.set_ylabel("score on the archive's task")
    for k, task in enumerate(tasks):
        color = task_color(k)
        best.plot(generations, metrics.best[:, k], color=color, drawstyle="steps-post", label=task)
        for row in history.experts:
            if history.individuals[row].expert == task:
                best.axhline(float(history.scores[row, k]), ls=(0, (5, 3)), lw=1.2, color=color)
        coverage.plot(generations, 100 * metrics.coverage[:, k], color=color, drawstyle="steps-post", label=task)
        qd_score.plot(generations, metrics.qd_score[:, k], color=color, drawstyle="steps-post", label=task)
    best.plot([], [], ls=(0, (5, 3)), lw=1.2, color=t["muted"], label="expert of the task")
    coverage.set_title("Coverage")
    coverage.set_ylabel("filled cells (%)")
    coverage.set_ylim(bottom=0)
    qd_score.set_title("QD score")
    qd_score.set_ylabel("sum of qualities")
    qd_score.set_ylim(bottom=0)
    for axes in (coverage, qd_score):
        axes.set_xlabel("generation (−1: experts)")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    for axes in (average, best, coverage, qd_score):
        axes.margins(x=0.02)
        if axes in (average, best):  # lines cross the whole plot: make room for the legend below them
            low, high = axes.get_ylim()
            axes.set_ylim(low - 0.38 * (high - low), high)
            axes.legend(ncols=2, loc="lower right")
        else:
            axes.legend(loc="upper left")
    return figure


@_themed
def plot_results(table: ResultsTable, *, theme: str = "light") -> Figure:
    """The results table as dots: a panel per task and one for the average. Hollow dots are the train split.

    Whiskers are standard deviations over runs.
    """
    t = THEMES[theme]
    panels = len(table.columns)
    figure = Figure(figsize=(2.5 * panels + 1.8, 0.36 * len(table.methods) + 1.5), layout="constrained")
    grid = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    height = np.arange(len(table.methods))[::-1]
    primary = table.splits[0]
    # Hollow dots are drawn first, so that the reported split is on top.
    for c, column in enumerate(table.columns):
        axes = grid[c]
        color = t["ink"] if c == panels - 1 else task_color(c)
        values = [100 * table.mean(split)[:, c] for split in table.splits]
        if len(values) == 2:
            axes.hlines(height, *values, color=color, lw=1.2, alpha=0.4)
        for split in reversed(table.splits):
            mean, std = 100 * table.mean(split)[:, c], 100 * table.std(split)[:, c]
            main = split == primary
            whiskers = {"xerr": std} if np.isfinite(std).any() and main else {}
            axes.errorbar(
                mean, height, fmt="o", color=color, markersize=7.5 if main else 6, ecolor=color, elinewidth=1.2,
                markerfacecolor=color if main else "none", markeredgewidth=1.4, label=split, linestyle="none", **whiskers,
            )  # fmt: skip
        if table.best(primary)[:, c].any():
            for m in np.flatnonzero(table.best(primary)[:, c]):
                axes.axhspan(height[m] - 0.42, height[m] + 0.42, color=color, alpha=0.11, lw=0)
        axes.set_title(column)
        axes.set_xlabel("score (%)")
        axes.margins(x=0.14)
        axes.set_ylim(-0.6, len(height) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    grid[0].set_yticks(height, [method_label(method) for method in table.methods], color=t["ink"], fontsize=9.5)
    if len(table.splits) == 2:
        handles = [
            Line2D([], [], ls="none", marker="o", color=t["ink"], ms=7.5, label=f"{table.splits[0]} split"),
            Line2D([], [], ls="none", marker="o", mfc="none", color=t["ink"], ms=6, label=f"{table.splits[1]} split"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower right", ncols=2)
    return figure
