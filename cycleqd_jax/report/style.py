"""Colours and label placement of the figures and the HTML page. The hues suit the common kinds of colour blindness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.colors import Colormap, to_hex

__all__ = ["EXPERT", "TASK_COLORS", "THEMES", "place_labels", "quality_colormap", "ramp", "rc", "task_color"]

TASK_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
"""The palette of Okabe and Ito, ordered so that neighbours contrast."""

EXPERT = "#e3122b"
"""Colour of the frames around the cells of the experts (fig. 4 of the paper)."""

THEMES: dict[str, Mapping[str, str]] = {
    "light": {"ink": "#1c2230", "muted": "#667085", "line": "#d5dae3", "empty": "#eef0f4", "page": "#ffffff"},
    "dark": {"ink": "#e7eaf2", "muted": "#98a2b8", "line": "#3a4358", "empty": "#232a3b", "page": "#161b28"},
}
"""Theme → colours of text, muted text, hairlines, empty cells and the page."""


def task_color(task: int) -> str:
    """The colour of a task in curves and charts; colours repeat after the last."""
    return TASK_COLORS[task % len(TASK_COLORS)]


def quality_colormap() -> Colormap:
    """Colours from low to high quality: perceptually uniform, and readable in greyscale."""
    return mpl.colormaps["viridis"]


def ramp(steps: int = 64) -> list[str]:
    """The quality colours from low to high, as hex."""
    colors = quality_colormap()
    return [to_hex(colors(i / (steps - 1))) for i in range(steps)]


def rc(theme: str) -> Any:
    """Matplotlib settings of a theme, for ``rc_context``."""
    t = THEMES[theme]
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9.5,
        "axes.edgecolor": t["line"],
        "axes.labelcolor": t["ink"],
        "axes.titlecolor": t["ink"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": t["line"],
        "grid.linewidth": 0.6,
        "grid.alpha": 0.7,
        "text.color": t["ink"],
        "xtick.color": t["line"],
        "ytick.color": t["line"],
        "xtick.labelcolor": t["muted"],
        "ytick.labelcolor": t["muted"],
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.facecolor": t["page"],
        "legend.edgecolor": "none",
        "legend.framealpha": 0.85,
        "legend.fontsize": 8.5,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "path",
        "svg.hashsalt": "cycleqd",
        "figure.facecolor": "none",
    }


def place_labels(
    cells: Mapping[tuple[int, int], Sequence[str]], size: tuple[int, int], letter: float, height: float
) -> dict[tuple[int, int], tuple[float, float]]:
    """Places the labels of framed cells inside the map, with as little overlap as possible.

    Args:
        cells: (vertical, horizontal) cell → names.
        size: rows and columns of the map.
        letter: width of a letter, in cells.
        height: height of a line, in cells.

    Returns:
        Cell → centre of its label (horizontal, vertical), in cells from the lower left corner of the map.
    """
    rows, columns = size
    frames = [(float(x), float(y), x + 1.0, y + 1.0) for y, x in cells]
    taken: list[tuple[float, float, float, float]] = []
    placed: dict[tuple[int, int], tuple[float, float]] = {}
    for (y, x), names in sorted(cells.items()):
        width = letter * len(", ".join(names)) + 0.3
        middle = min(max(x + 0.5, width / 2), max(columns - width / 2, width / 2))
        spots = [
            (middle, y + 1.1 + height / 2),
            (middle, y - 0.1 - height / 2),
            (x + 1.2 + width / 2, y + 0.5),
            (x - 0.2 - width / 2, y + 0.5),
            (middle, y + 1.1 + 1.5 * height),
            (middle, y - 0.1 - 1.5 * height),
        ]

        def cost(spot: tuple[float, float], width: float = width) -> float:
            box = (spot[0] - width / 2, spot[1] - height / 2, spot[0] + width / 2, spot[1] + height / 2)
            outside = max(-box[0], 0.0) + max(-box[1], 0.0) + max(box[2] - columns, 0.0) + max(box[3] - rows, 0.0)
            return 10 * outside + 3 * sum(_overlap(box, other) for other in taken) + sum(_overlap(box, f) for f in frames)

        best = min(spots, key=cost)
        placed[y, x] = best
        taken.append((best[0] - width / 2, best[1] - height / 2, best[0] + width / 2, best[1] + height / 2))
    return placed


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
