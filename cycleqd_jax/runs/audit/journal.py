"""The journal of a run: its individuals, those of the run that it began with, and the grid of the experts."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import load_json
from cycleqd_jax.runs.audit.found import ROUNDING, Audit
from cycleqd_jax.runs.extension.origin import differences, open_origin
from cycleqd_jax.runs.folder.replay import total_individuals
from cycleqd_jax.runs.searchers import grid_of
from cycleqd_jax.schema import check_schema
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

__all__ = ["check_grid", "check_journal", "check_origin"]


def check_origin(path: Path, config: RunConfig, journal: Journal, audit: Audit) -> int | None:
    """Compares the individuals of another run, with which this one begins, with the copy of its journal.

    Returns:
        The number of generations that are those of the other run; None where its copy can't be read.
    """
    try:
        origin = open_origin(config, path)
    except (InputError, OSError) as error:
        audit.problems.append(str(error))
        return None
    if origin is None:
        return 0
    audit.checked.append(f"the individuals of {config.origin}")
    audit.problems += differences(origin, journal)
    return origin.generations


def check_journal(config: RunConfig, journal: Journal, audit: Audit, carried: int) -> None:
    """Checks every individual of the journal, and their order."""
    ids, total = journal.ids(), total_individuals(config, journal)
    audit.checked.append(f"the journal ({len(ids)} individuals)")
    audit.expect(
        len(ids) <= total,
        f"expected at most {total} individuals, as config.yaml says, got {len(ids)} in {journal.path}; restore one of them",
    )
    count, size = len(config.expert_names), config.search.batch_size
    whole = _last_complete(ids, count, size)
    missing = sorted(set(range(whole)) - set(ids))
    pending = bool(ids) and ids[-1] < count + carried * size  # individuals of the other run may follow
    if missing and missing[0] >= count and pending:
        audit.notes.append(
            f"note: {len(missing)} individuals of {config.origin} are not in {journal.path} yet; the run evaluates them again"
        )
        missing = []
    audit.expect(
        not missing,
        f"expected every individual before the last generation, got none of {missing[:5]} in {journal.path}; restore the file",
    )
    for identity in ids:
        for problem in _problems_of(journal[identity], config, journal, carried, pending):
            audit.problems.append(f"{problem} of individual {identity} in {journal.path}; restore the file")
    old = sum(journal[identity].digest is None for identity in ids)
    if old:
        audit.notes.append(f"note: {old} individuals in {journal.path} have no digest of their genome, which is not checked")


def _last_complete(ids: Sequence[int], count: int, size: int) -> int:
    """How many ids must be there without a gap: those before the generation of the last one."""
    if not ids:
        return 0
    return 0 if ids[-1] < count else count + (ids[-1] - count) // size * size


def _problems_of(one: Any, config: RunConfig, journal: Journal, carried: int, pending: bool) -> Iterator[str]:
    """What is wrong with an individual, each as ``expected X, got Y``.

    Children of generations before ``carried`` are those of another run. While some of them are ``pending``, parents may be
    missing.
    """
    names, count, size = config.task_names, len(config.expert_names), config.search.batch_size
    if one.id < count:
        if (one.expert, one.generation) != (config.expert_names[one.id], -1):
            yield f"expected expert {config.expert_names[one.id]!r} in generation -1, got {one.expert!r} in {one.generation}"
    else:
        generation = (one.id - count) // size
        if one.expert is not None or one.generation != generation:
            yield f"expected a child of generation {generation}, got expert {one.expert!r} in generation {one.generation}"
        before = generation if one.asked is None else one.asked[0]  # generations that were inserted when it was made
        task = names[before % len(names)]
        if config.search.method == "cycleqd" and generation >= carried and one.active != task:
            yield f"expected the active task {task!r}, got {one.active!r}"
        for parent in one.parents:
            if parent >= count + before * size or (parent >= 0 and not pending and journal.get(parent) is None):
                yield f"expected parents of earlier generations, got parent {parent}"
    if one.scores is None:
        stopped = one.evaluated is not None and one.id >= count and config.search.racing is not None
        if one.error is None and not stopped and (one.id < count or one.generation >= carried):
            yield "expected scores or an error, got neither"
        for task, places in (one.evaluated or {}).items():
            size = len(journal[0].items.get(task, ())) if journal.get(0) is not None else 0
            if len(one.items.get(task, ())) != len(places) or [*places] != sorted({*places} & {*range(size)}):
                yield f"expected a score for each of ascending positions below {size} of {task}, got others"
        return
    if one.evaluated is not None:
        yield "expected no positions of problems beside scores, which are of all problems, got some"
    if one.scores.keys() != set(names):
        yield f"expected scores of {', '.join(names)}, got scores of {', '.join(one.scores)}"
        return
    for task in names:
        if one.items.get(task):
            mean = statistics.fmean(one.items[task])
            if not math.isclose(one.scores[task], mean, rel_tol=0, abs_tol=ROUNDING):
                yield f"expected the score {mean} of {task}, the mean of its problems, got {one.scores[task]}"


def check_grid(path: Path, config: RunConfig, journal: Journal, audit: Audit) -> None:
    """Compares the grid with the scores of the experts."""
    file, names = path / "grid.json", config.task_names
    count = len(config.expert_names)
    if any(journal.get(k) is None for k in range(count)):
        return
    if not file.exists():
        audit.notes.append(f"note: {file} is not there; cycleqd evolve writes it")
        return
    scores = np.asarray([journal.scores(k, names) for k in range(count)], np.float32)
    try:
        found = load_json(file)
        if isinstance(found, dict) and check_schema(found, file) > 0:
            del found["schema"]
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__} {error}"
    audit.checked.append("the grid")
    audit.expect(
        found == json.loads(json.dumps(grid_of(config, scores))),
        f"expected the grid that the scores of the experts give, got another one in {file}; remove it, and run cycleqd evolve",
    )
