"""The archives as maps of the HTML page: every cell, frame, label and tick in SVG units."""

from __future__ import annotations

from typing import Any

import numpy as np

from cycleqd_jax.report.history import Archive, History
from cycleqd_jax.report.style import place_labels, ramp
from cycleqd_jax.report.tables.formats import percent

__all__ = ["CELL", "archive_maps"]

CELL = 20
"""Side of a cell."""

_LEFT, _TOP, _RIGHT, _BOTTOM = 48.0, 24.0, 12.0, 44.0  # margins of a map


def archive_maps(history: History) -> list[dict[str, Any]]:
    """Every map of every archive after the last generation, as the template needs it."""
    return [_map(history, archive, pair) for archive in history.archives() for pair in archive.pairs()]


def _map(history: History, archive: Archive, pair: tuple[int, int]) -> dict[str, Any]:
    """One archive, projected on a pair of its axes."""
    grid = history.grid
    flat = pair[0] == pair[1]  # two tasks: a strip
    rows = archive.project(pair)
    cell_height = CELL * (3 if flat else 1)
    width, height = CELL * rows.shape[1], cell_height * rows.shape[0]
    low, high = history.quality_range(archive.task)
    horizontal, vertical = (archive.axes[i] for i in pair)
    frames = history.expert_cells(archive, pair)

    def corner(row: int, column: int) -> dict[str, float]:
        return {"x": _LEFT + CELL * column, "y": _TOP + height - cell_height * (row + 1)}

    colors = ramp()
    cells = []
    for (y, x), row in np.ndenumerate(rows):
        cell: dict[str, Any] = {**corner(y, x), "row": y, "column": x, "id": "", "fill": "", "title": ""}
        if row >= 0:
            share = (history.scores[row, archive.task] - low) / (high - low) if high > low else 1.0
            fill = colors[round(share * (len(colors) - 1))]
            cell |= {"id": history.individuals[row].id, "fill": fill, "title": _tooltip(history, int(row))}
        cells.append(cell)
    return {
        "archive": archive.task,
        "pair": pair,
        "task": grid.tasks[archive.task],
        "horizontal": grid.tasks[horizontal],
        "vertical": "" if flat else grid.tasks[vertical],
        "width": _LEFT + width + _RIGHT,
        "height": _TOP + height + _BOTTOM,
        "map": {"x": _LEFT, "y": _TOP, "width": width, "height": height, "cell": cell_height},
        "low": low,
        "high": high,
        "filled": len(archive.cells),
        "capacity": archive.capacity,
        "cells": cells,
        "frames": [corner(*spot) for spot in frames],
        "labels": _labels(frames, (int(rows.shape[0]), int(rows.shape[1])), height, flat),
        "ticks_x": _ticks(grid.bounds[horizontal], _LEFT, _LEFT + width),
        "ticks_y": [] if flat else _ticks(grid.bounds[vertical], _TOP + height, _TOP),
    }


def _tooltip(history: History, row: int) -> str:
    """Scores and origin of an individual in one line."""
    one = history.individuals[row]
    scores = ", ".join(f"{task} {percent(score)}" for task, score in zip(history.grid.tasks, history.scores[row], strict=True))
    parents = " and ".join(f"#{parent}" for parent in one.parents if parent >= 0)
    child = f"generation {one.generation}{f', parents {parents}' if parents else ''}"
    origin = f"{one.expert} expert" if one.expert else child
    return f"#{one.id}: {scores}; {origin}"


def _labels(frames: dict[tuple[int, int], list[str]], shape: tuple[int, int], height: int, flat: bool) -> list[dict[str, Any]]:
    """The names of the experts, beside the frames of their cells."""
    places = place_labels(frames, shape, 7.0 / CELL, 13 / CELL)
    labels = []
    for spot, names in frames.items():
        across, up = places[spot]
        x, y = (spot[1] + 0.5, _TOP - 8) if flat else (across, _TOP + height - CELL * up + 4)
        labels.append({"x": _LEFT + CELL * x, "y": y, "text": ", ".join(names)})
    return labels


def _ticks(bounds: np.ndarray, start: float, end: float) -> list[dict[str, Any]]:
    """Five ticks of an axis from ``start`` to ``end``."""
    low, high = (float(bound) for bound in bounds)
    return [
        {"at": start + share * (end - start), "text": f"{low + share * (high - low):.2f}"} for share in (0, 0.25, 0.5, 0.75, 1)
    ]
