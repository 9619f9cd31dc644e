"""The loop of a search: ask, evaluate, record, tell; and the same again after a crash."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.evaluation.workers import Judge, Record
from cycleqd_jax.search.checkpoint import Checkpoints
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.types import Genome, InputError, Lineage, PRNGKeyArray, Progress, Searcher, no_progress

__all__ = ["evolve"]


def _row(tree: Genome, j: int) -> Genome:
    return jax.tree.map(lambda leaf: leaf[j], tree)


def _check_lineage(record: dict[str, Any], expected: dict[str, Any], journal: Journal) -> None:
    for name in ("generation", "active", "parents", "key", "omega"):
        if record.get(name) != expected[name]:
            raise InputError(
                f"the journal {journal.path} says {name} = {record.get(name)} of individual {expected['id']}, this run makes "
                f"it {expected[name]}: the folder belongs to another config, other experts or another version."
            )


def evolve(
    searcher: Searcher,
    experts: Genome,
    judge: Judge,
    *,
    tasks: Sequence[str],
    key: PRNGKeyArray,
    generations: int,
    batch_size: int,
    journal: Journal,
    checkpoints: Checkpoints | None = None,
    started: Callable[[Any], None] = lambda state: None,
    progress: Progress = no_progress,
) -> Any:
    """Runs a search to its end, from wherever its journal and checkpoints say it is.

    Every individual is written to the journal as soon as it and those before it are scored; when the search is interrupted,
    what was scored out of turn is written too. After a crash the newest checkpoint is read, and what the journal has beyond it
    is told again without being evaluated: a run that was killed at any instant and resumed ends bit-identical to one that
    never was.

    Args:
        searcher: which search.
        experts: genomes of the experts, leading axis K; evaluated first, with ids 0 … K−1.
        judge: from genomes to scores. An InfraError ends the search, resumable.
        tasks: names of the tasks, in the order of the scores.
        key: of the run; generation t asks with ``fold_in(key, t)``.
        generations: T.
        batch_size: children per generation.
        journal: of the run.
        checkpoints: of the run, if wanted.
        started: told the searcher's first state, once the experts are in.
        progress: told after every individual, in any thread of the judge's.

    Returns:
        The searcher's last state.

    Raises:
        InputError: when journal or checkpoint belong to another run, or an expert can't be evaluated.
    """
    count = jax.tree.leaves(experts)[0].shape[0]
    total = count + generations * batch_size
    best = -np.inf

    told = 0 if checkpoints is None else checkpoints.latest() or 0
    if told and len(journal) < count + told * batch_size:
        raise InputError(
            f"the journal {journal.path} has {len(journal)} individuals, fewer than its checkpoint of generation {told}: "
            "restore the journal, or remove the run folder's checkpoints to search again."
        )

    def report(identity: int) -> None:
        nonlocal best
        scores = journal.scores(identity, tasks)
        best = float(np.fmax(best, np.mean(scores)))
        progress("evolve", identity + 1, total, {"best average": best})

    heads: list[dict[str, Any]] = []
    for k in range(count):
        name = tasks[k] if k < len(tasks) else f"expert {k}"
        heads.append(
            {"id": k, "generation": -1, "expert": name, "active": None, "parents": [-1, -1], "omega": None, "key": None}
        )
        record = journal.get(k)
        if record is not None and record["expert"] != name:
            raise InputError(
                f"the journal {journal.path} has individual {k} as expert {record['expert']!r}, this run as {name!r}: the "
                "folder belongs to another config."
            )

    def check(k: int) -> None:
        if math.isnan(journal.scores(k, tasks)[0]):
            raise InputError(f"expert {heads[k]['expert']!r} can't be evaluated: {journal.get(k)['error']}")  # type: ignore[index]
        report(k)

    _judge(judge, experts, heads, journal, check)
    state = searcher.init(experts, np.asarray([journal.scores(k, tasks) for k in range(count)], np.float32))

    started(state)

    first = 0
    if told:
        assert checkpoints is not None
        first, state = checkpoints.restore(state, key)

    for t in range(first, generations):
        genomes, lineage, state = searcher.ask(state, jax.random.fold_in(key, t), batch_size)
        heads = _heads(lineage, t, count + t * batch_size, tasks)
        for head in heads:
            record = journal.get(head["id"])
            if record is not None:
                _check_lineage(record, head, journal)
        _judge(judge, genomes, heads, journal, report)
        scores = [journal.scores(head["id"], tasks) for head in heads]
        state = searcher.tell(state, genomes, jnp.asarray(scores, jnp.float32), lineage)
        if checkpoints is not None and ((t + 1) % checkpoints.every == 0 or t + 1 == generations):
            checkpoints.save(t + 1, state, key)
    return state


def _judge(
    judge: Judge, genomes: Genome, heads: Sequence[dict[str, Any]], journal: Journal, report: Callable[[int], None]
) -> None:
    """Judges the individuals that are not in the journal and writes them there; reports the ids of all, in order.

    Groups are the same whatever the journal has: what is judged together may differ in its last bits from what is judged apart.
    """
    groups = [range(start, min(start + judge.size, len(heads))) for start in range(0, len(heads), judge.size)]
    groups = [group for group in groups if any(journal.get(heads[j]["id"]) is None for j in group)]
    records: dict[int, Record] = {}
    reported = 0

    def write(j: int) -> None:
        if journal.get(heads[j]["id"]) is None:
            journal.append({**heads[j], **records[j]})

    def advance() -> None:
        nonlocal reported
        while reported < len(heads) and (reported in records or journal.get(heads[reported]["id"]) is not None):
            write(reported)
            report(heads[reported]["id"])
            reported += 1

    def found(i: int, of_group: list[Record]) -> None:
        records.update(zip(groups[i], of_group, strict=True))
        advance()

    try:
        advance()
        judge([[_row(genomes, j) for j in group] for group in groups], found)
    except BaseException:
        for j in sorted(records):
            write(j)
        raise
    journal.sort()


def _heads(lineage: Lineage, generation: int, first_id: int, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """What the journal says of each child before it is evaluated."""
    host = jax.tree.map(np.asarray, lineage)
    return [
        {
            "id": first_id + j,
            "generation": generation,
            "expert": None,
            "active": tasks[int(host.active[j])] if host.active[j] >= 0 else None,
            "parents": host.parents[j].tolist(),
            "omega": host.omega[j].tolist(),
            "key": host.key[j].tolist(),
        }
        for j in range(len(host.active))
    ]
