"""Commands that read a run folder and write nothing into it: ``cycleqd lineage``, ``status`` and ``verify``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from cycleqd_jax.files import write_text
from cycleqd_jax.report import open_run
from cycleqd_jax.report.lineage import lineage_json, lineage_svg, lineage_text
from cycleqd_jax.report.status import read_status, status_json, status_text

__all__ = ["show_lineage", "show_status", "verify"]

WATCH_S = 2.0
"""Seconds between two updates of ``--watch``."""


def show_lineage(folder: Path, child: int, *, as_json: bool = False, svg: Path | None = None) -> None:
    """Prints the ancestors of an individual, or writes a drawing of them.

    Args:
        folder: the run folder.
        child: the id of the individual.
        as_json: print one JSON object instead of a tree.
        svg: write a drawing to this file instead.

    Raises:
        InputError: the folder is not a run folder, there is no such individual, or the journal is damaged.
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


def show_status(folder: Path, *, as_json: bool = False, watch: bool = False) -> None:
    """Prints the state of a run.

    Args:
        folder: the run folder.
        as_json: print one JSON object.
        watch: print it again until no process uses the folder.

    Raises:
        InputError: the folder is not a run folder, or it is damaged.
    """
    while True:
        status = read_status(folder)
        text = json.dumps(status_json(status), indent=None if watch else 2, allow_nan=False, ensure_ascii=False)
        clear = "\x1b[H\x1b[2J" if watch and not as_json and sys.stdout.isatty() else ""
        print(clear + (text if as_json else status_text(status)), flush=True)
        if not watch or not status.running:
            return
        time.sleep(WATCH_S)


def verify(folder: Path, *, digest: bool = False) -> int:
    """Prints what disagrees in a run folder.

    Args:
        folder: the run folder.
        digest: print one hash of archives and state on stdout, and everything else on stderr.

    Returns:
        The exit code: 1 where something disagrees.

    Raises:
        InputError: the folder is not a run folder, or the digest of a damaged journal is requested.
    """
    from cycleqd_jax.runs.audit import run_digest, verify_run  # the other commands need neither JAX nor models

    found = verify_run(folder)
    out = sys.stderr if digest else sys.stdout
    for line in (*found.notes, *found.problems):
        print(line, file=out)
    if not found.problems:
        print(f"{folder}: {', '.join(found.checked)} agree", file=out)
    if digest:
        print(run_digest(folder))
    return 1 if found.problems else 0
