"""Whether the files of a run folder agree: journal, grid, checkpoints, archives, tables and exported models."""

from __future__ import annotations

import json
from pathlib import Path

from cycleqd_jax import report
from cycleqd_jax.config import load_config
from cycleqd_jax.files import digest
from cycleqd_jax.runs.audit.checkpoints import check_checkpoints
from cycleqd_jax.runs.audit.found import Audit
from cycleqd_jax.runs.audit.journal import check_grid, check_journal, check_origin
from cycleqd_jax.runs.audit.results import check_exports, check_models, check_tables
from cycleqd_jax.runs.folder.replay import replay
from cycleqd_jax.search import Journal, checkpoint_steps, read_checkpoint, tree_digest
from cycleqd_jax.types import InputError

__all__ = ["Audit", "run_digest", "verify_run"]


def verify_run(folder: str | Path) -> Audit:
    """Checks that the files of a run folder agree. The run may go on meanwhile.

    The journal is replayed, and its archives are compared with every checkpoint. The genomes in the checkpoints are compared
    with the digests in the journal.

    Raises:
        InputError: the folder is not a run folder.
    """
    path, audit = report.open_run(folder).path, Audit()
    steps = checkpoint_steps(path / "checkpoints")  # before the journal, which may grow meanwhile
    try:
        config = load_config(path / "config.yaml")
        journal = Journal(path / "history.jsonl", read_only=True)
    except InputError as error:
        audit.problems.append(str(error))
        return audit
    if journal.torn:
        audit.notes.append(
            f"note: {journal.path} ends with an incomplete line, which a process writes or a crash has left; the next start "
            "removes it"
        )
    carried = check_origin(path, config, journal, audit)
    if carried is not None:
        check_journal(config, journal, audit, carried)
    if not audit.problems:  # nothing else can be compared with a damaged journal
        check_grid(path, config, journal, audit)
        check_checkpoints(path, config, journal, steps, audit)
    check_tables(path, journal, audit)
    check_exports(path, len(journal), audit)
    check_models(path, config, audit)
    return audit


def run_digest(folder: str | Path) -> str:
    """One SHA-256 of a run: its individuals without their costs, its archives, and the state in the newest checkpoint.

    Runs of equal configs on equal machines have equal digests, however often they were killed and resumed. Commands near
    their time limit are an exception: their verdict depends on the load of the machine.

    Raises:
        InputError: the folder is not a run folder, or its journal or newest checkpoint is damaged.
    """
    path = report.open_run(folder).path
    steps = checkpoint_steps(path / "checkpoints")
    config, journal = load_config(path / "config.yaml"), Journal(path / "history.jsonl", read_only=True)
    left_out = ("seconds", "tokens", "checksum")  # earlier versions wrote no checksums
    individuals = [{k: v for k, v in json.loads(journal[i].to_json()).items() if k not in left_out} for i in journal.ids()]
    complete = all(journal.get(k) is not None for k in range(len(config.expert_names)))
    archives = tree_digest(replay(config, journal).state, digits=64) if complete else None
    state = None
    if steps:
        stored = read_checkpoint(path / "checkpoints", steps[-1])
        state = [steps[-1], tree_digest({"state": stored.state, "key": stored.key_data}, digits=64)]
    return digest({"individuals": individuals, "archives": archives, "state": state})
