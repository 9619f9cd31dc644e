"""The figures of a comparison: scores with intervals, and the best average against the evaluated individuals."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cycleqd_jax.report.comparison import ComparisonTable
from cycleqd_jax.report.style import THEMES, rc, task_color

__all__ = ["plot_best_so_far", "plot_scores"]


def plot_scores(table: ComparisonTable) -> Figure:
    """The scores of all rows on the test problems with their 95 % intervals: a panel per task and one for the average.

    The line is the score of the row that the others are compared with. Marked scores have a coloured background.
    """
    ink, split, panels = THEMES["light"]["ink"], table.splits[0], len(table.columns)
    mean, best, rows = 100 * table.mean(split), table.best(split), range(len(table.methods))
    with mpl.rc_context(rc("light")):
        figure = Figure(figsize=(2.5 * panels + 2.4, 0.3 * len(rows) + 1.3), layout="constrained")
        grid = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        height = np.arange(len(rows))[::-1]
        for c, column in enumerate(table.columns):
            axes, color = grid[c], ink if c == panels - 1 else task_color(c)
            for m in rows:
                found = table.interval(split, m, c)
                if found is not None:
                    axes.hlines(height[m], 100 * found.low, 100 * found.high, color=color, lw=1.4, alpha=0.6)
                if best[m, c]:
                    axes.axhspan(height[m] - 0.42, height[m] + 0.42, color=color, alpha=0.11, lw=0)
            axes.plot(mean[:, c], height, "o", color=color, markersize=5.5)
            axes.axvline(mean[table.methods.index(table.chosen), c], color=color, lw=0.9, ls=(0, (5, 3)), alpha=0.6)
            axes.set_title(column)
            axes.set_xlabel("score (%)")
            axes.set_ylim(-0.6, len(rows) - 0.4)
            axes.grid(axis="x", visible=False)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        grid[0].set_yticks(height, [table.label(m) for m in rows], color=ink, fontsize=9)
    return figure


def plot_best_so_far(curves: Mapping[str, np.ndarray], experts: int) -> Figure:
    """The best average on the train problems so far against the evaluated individuals, experts included.

    Lines are means over seeds, bands are ± one standard deviation. The lines begin with the last expert, because all methods
    have the same experts.

    Args:
        curves: label → Float ``[run, individual]``.
        experts: number of experts.
    """
    with mpl.rc_context(rc("light")):
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axes = figure.subplots()
        styles = ("-", (0, (5, 1.5)), (0, (1, 1)))
        for i, (name, runs) in enumerate(curves.items()):
            count, color = np.arange(experts, runs.shape[1] + 1), task_color(i)
            shown = runs[:, experts - 1 :]
            mean = 100 * shown.mean(axis=0)
            axes.plot(count, mean, color=color, ls=styles[i // 8 % len(styles)], lw=1.8, drawstyle="steps-post", label=name)
            if len(runs) > 1:
                std = 100 * shown.std(axis=0, ddof=1)
                axes.fill_between(count, mean - std, mean + std, color=color, alpha=0.12, lw=0, step="post")
        axes.set_title("Best average on the train problems")
        axes.set_xlabel("evaluated individuals, experts included")
        axes.set_ylabel("average score (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(x=0.02)
        axes.legend(loc="lower right", ncols=1 if len(curves) < 5 else 2)
    return figure
