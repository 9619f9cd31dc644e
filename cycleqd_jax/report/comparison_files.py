"""The files of a comparison: its tables and figures."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cycleqd_jax.files import write_bytes, write_json
from cycleqd_jax.report.comparison import ComparisonTable

__all__ = ["write_comparison"]


def write_comparison(folder: Path, table: ComparisonTable, curves: Mapping[str, np.ndarray]) -> list[Path]:
    """Writes ``tables/comparison.md|tex|csv|json``, ``tables/items.json.gz``, and figures as SVG and PNG.

    ``figures/scores`` shows the scores of all rows with their intervals, ``figures/curves`` the best average so far against the
    evaluated individuals. ``items.json.gz`` holds the scores of problems: seed → row → split → task → scores.

    Args:
        folder: of the comparison.
        table: its table.
        curves: label → the best average so far, Float ``[run, individual]``.

    Returns:
        The written files.
    """
    from cycleqd_jax.report.comparison_plots import plot_best_so_far, plot_scores  # Matplotlib takes a second to import
    from cycleqd_jax.report.plots import render

    tables, written = folder / "tables", []
    for suffix, text in (("md", f"# {table.title}\n\n{table.markdown()}"), ("tex", table.latex()), ("csv", table.csv())):
        written.append(tables / f"comparison.{suffix}")
        write_bytes(written[-1], text.encode())
    best = {name: [[None if math.isnan(x) else x for x in run] for run in curve.tolist()] for name, curve in curves.items()}
    written.append(tables / "comparison.json")
    write_json(written[-1], {**table.facts(), "curves": best})
    items = {str(seed): problems for seed, problems in zip(table.seeds, table.problems, strict=True)}
    written.append(tables / "items.json.gz")
    write_bytes(written[-1], gzip.compress(json.dumps(items, allow_nan=False).encode(), mtime=0))
    for name, figure in (("scores", plot_scores(table)), ("curves", plot_best_so_far(curves, len(table.columns) - 1))):
        for kind in ("svg", "png"):
            written.append(folder / "figures" / f"{name}.{kind}")
            write_bytes(written[-1], render(figure, kind))
    return written
