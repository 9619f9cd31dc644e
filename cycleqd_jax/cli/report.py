"""``cycleqd report``: figures, tables and the page of run folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cycleqd_jax import report

__all__ = ["write_reports"]


def write_reports(folders: Sequence[Path]) -> None:
    """Writes the report of every run folder, and prints one table for all that have results.

    Args:
        folders: the run folders.

    Raises:
        InputError: a folder is no run folder, or it is damaged.
    """
    for folder in folders:
        for path in report.write_report(folder):
            print(path)
    finished = [folder for folder in folders if (folder / "tables" / "results.json").exists()]
    if finished:
        print(report.results_table(finished).text(color=sys.stdout.isatty()))
