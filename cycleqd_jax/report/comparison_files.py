"""The files of a comparison: its tables and figures."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.files import write_bytes, write_json
from cycleqd_jax.report.comparison import ComparisonTable, comparison_table
from cycleqd_jax.report.comparison_costs import write_comparison_costs
from cycleqd_jax.report.labels import SEARCH_METHODS
from cycleqd_jax.report.method_runs import MethodRuns, best_so_far
from cycleqd_jax.types import InputError
from cycleqd_jax.yaml_files import load_yaml

__all__ = ["draw_comparison", "write_comparison"]


_KINDS: Mapping[str, Any] = {
    "title": str,
    "methods": list,
    "seeds": list,
    "reference": str | None,
    "rows": list | None,
    "paper": dict | None,
    "setting": str | None,
    "budgets": dict | None,
}
"""The keys of ``table`` in ``comparison.yaml``, and what their values are."""


def draw_comparison(folder: Path) -> ComparisonTable:
    """Makes the table of a comparison from its finished runs, and writes all its tables and figures.

    Args:
        folder: the folder of the comparison. ``table`` in its ``comparison.yaml`` says what the table has: ``methods`` (each
            with ``name``, ``search`` and ``label``), ``seeds``, and arguments of
            :func:`~cycleqd_jax.report.comparison.comparison_table`.

    Raises:
        InputError: the file is damaged; or a run is not finished, or has a damaged file.
    """
    file = Path(folder) / "comparison.yaml"
    try:
        runs, found = _read_table(file)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"expected a comparison in {file}, got {type(error).__name__} {error}; run `cycleqd compare` again"
        ) from error
    table, curves = comparison_table(runs, **found), {one.name: best_so_far(one) for one in runs}
    first = [one for history in runs[0].histories.values() if history is not None for one in history.individuals]
    experts = 1 + max((one.id for one in first if one.expert is not None), default=-1)  # also those without a task
    write_comparison(file.parent, table, curves, experts)
    write_comparison_costs(file.parent, table, runs)
    return table


def _read_table(file: Path) -> tuple[list[MethodRuns], dict[str, Any]]:
    """The methods and the other arguments of the table; raises one of many errors where they are damaged."""
    found = dict(load_yaml(file)["table"])
    for key, value in found.items():
        if not isinstance(value, _KINDS[key]):
            raise TypeError(f"{value!r} as {key}")
    methods, seeds, _ = found.pop("methods"), found.pop("seeds"), found["title"]
    if not methods or not seeds:
        raise ValueError(f"{len(methods)} methods and {len(seeds)} seeds")
    for one in methods:
        if not isinstance(one["name"], str) or one["search"] not in SEARCH_METHODS or not isinstance(one["label"], str | None):
            raise TypeError(f"{one!r} as a method")
    for row, figures in (found.get("paper") or {}).items():
        if not all(math.isfinite(figure) for figure in figures.values()):
            raise ValueError(f"figures that are not finite for {row}")
    places = {one["name"]: {seed: file.parent / f"seed-{seed}" / one["name"] for seed in seeds} for one in methods}
    return [MethodRuns(**one, folders=places[one["name"]]) for one in methods], found


def write_comparison(folder: Path, table: ComparisonTable, curves: Mapping[str, np.ndarray], experts: int) -> list[Path]:
    """Writes ``tables/comparison.md|tex|csv|json``, ``tables/items.json.gz``, and figures as SVG and PNG.

    ``figures/scores`` shows the scores of all rows with their intervals, ``figures/curves`` the best average so far against the
    evaluated individuals. ``items.json.gz`` holds the scores of problems: seed → row → split → task → scores.

    Args:
        folder: the folder of the comparison.
        table: its table.
        curves: method → the best average so far, Float ``[run, individual]``.
        experts: number of experts, with which every run begins.

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
    shown = {table.labels.get(name, name): curve for name, curve in curves.items()}
    for name, figure in (("scores", plot_scores(table)), ("curves", plot_best_so_far(shown, experts))):
        for kind in ("svg", "png"):
            written.append(folder / "figures" / f"{name}.{kind}")
            write_bytes(written[-1], render(figure, kind))
    return written
