"""Commands that read a run folder and write nothing into it: ``cycleqd lineage``."""

from __future__ import annotations

import json
from pathlib import Path

from cycleqd_jax.files import write_text
from cycleqd_jax.report import open_run
from cycleqd_jax.report.lineage import lineage_json, lineage_svg, lineage_text

__all__ = ["show_lineage"]


def show_lineage(folder: Path, child: int, *, as_json: bool = False, svg: Path | None = None) -> None:
    """Prints the ancestors of an individual, or writes a drawing of them.

    Args:
        folder: the run folder.
        child: the id of the individual.
        as_json: print one JSON object instead of a tree.
        svg: write a drawing to this file instead.

    Raises:
        InputError: the folder is no run folder, there is no such individual, or the journal is damaged.
    """
    run = open_run(folder)
    records = run.lineage(child)
    if svg is not None:
        write_text(svg, lineage_svg(records, run.tasks))
        print(svg)
    elif as_json:
        found = {"run": str(folder), "tasks": list(run.tasks), "individual": child, "ancestors": lineage_json(records)}
        print(json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False))
    else:
        print(lineage_text(records, run.tasks))
