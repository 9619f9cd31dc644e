"""The loop of a search: ask, evaluate, record, tell; and the same again after a crash."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.search.checkpoint import Checkpoints
from cycleqd_jax.search.evaluate import Judge
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

    Every individual is written to the journal as soon as it is scored. After a crash the newest checkpoint is read, and what
    the journal has beyond it is told again without being evaluated: a run that was killed at any instant and resumed ends
    bit-identical to one that never was.

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
        progress: told after every individual.

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
    for k in _judged(judge, experts, heads, journal):
        if math.isnan(journal.scores(k, tasks)[0]):
            raise InputError(f"expert {heads[k]['expert']!r} can't be evaluated: {journal.get(k)['error']}")  # type: ignore[index]
        report(k)
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
        for identity in _judged(judge, genomes, heads, journal):
            report(identity)
        scores = [journal.scores(head["id"], tasks) for head in heads]
        state = searcher.tell(state, genomes, jnp.asarray(scores, jnp.float32), lineage)
        if checkpoints is not None and ((t + 1) % checkpoints.every == 0 or t + 1 == generations):
            checkpoints.save(t + 1, state, key)
    return state


def _judged(judge: Judge, genomes: Genome, heads: Sequence[dict[str, Any]], journal: Journal) -> Iterator[int]:
    """Ids of the individuals, each once it is in the journal; judges those that are not.

    Groups are the same whatever the journal has: what is judged together may differ in its last bits from what is judged apart.
    """
    for start in range(0, len(heads), judge.size):
        group = range(start, min(start + judge.size, len(heads)))
        known = [journal.get(heads[j]["id"]) is not None for j in group]
        if all(known):
            yield from (heads[j]["id"] for j in group)
            continue
        for j, record in zip(group, judge([_row(genomes, j) for j in group]), strict=True):
            if journal.get(heads[j]["id"]) is None:
                journal.append({**heads[j], **record})
            yield heads[j]["id"]


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
