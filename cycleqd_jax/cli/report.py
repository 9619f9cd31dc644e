"""``cycleqd report``: figures, tables and the page of run folders; tables and figures of comparisons."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cycleqd_jax import report

__all__ = ["write_reports"]


def write_reports(folders: Sequence[Path]) -> None:
    """Writes the report of every run folder, and prints one table for all that have results.

    A comparison gets its tables and figures again, and its table is printed.

    Args:
        folders: run folders, or folders of comparisons.

    Raises:
        InputError: a folder is not a run folder, or it is damaged.
    """
    runs = [folder for folder in folders if not (folder / "comparison.yaml").exists()]
    for folder in folders:
        if folder not in runs:
            print(report.draw_comparison(folder).text(color=sys.stdout.isatty()))
            print(f"tables and figures: {folder}/tables, {folder}/figures")
            continue
        for path in report.write_report(folder):
            print(path)
    finished = [folder for folder in runs if (folder / "tables" / "results.json").exists()]
    if finished:
        print(report.results_table(finished).text(color=sys.stdout.isatty()))
