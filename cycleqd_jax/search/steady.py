"""The asynchronous search loop: a child is passed to ``tell`` when it has scores, and the next one is asked for at once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.evaluation import Evaluation, Relatives, StreamEvaluator
from cycleqd_jax.individual import Individual
from cycleqd_jax.search.checkpoint import Checkpoints
from cycleqd_jax.search.common import (
    DigestCheck,
    Reporter,
    check_recorded,
    children_of,
    drafts_of,
    evaluated,
    row_of,
)
from cycleqd_jax.search.digests import tree_digests
from cycleqd_jax.search.failures import check_not_finite, check_row
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.loop import evaluate_experts
from cycleqd_jax.search.transcripts import Transcripts
from cycleqd_jax.types import Genome, InputError, Lineage, PRNGKeyArray, Progress, Searcher, no_progress

__all__ = ["evolve_steadily"]


class _Child(NamedTuple):
    """A child that was asked for and was not passed to ``tell`` yet."""

    record: Individual
    genomes: Genome
    lineage: Lineage


def evolve_steadily(
    searcher: Searcher,
    experts: Genome,
    evaluator: StreamEvaluator,
    *,
    tasks: Sequence[str],
    names: Sequence[str] | None = None,
    key: PRNGKeyArray,
    children: int,
    journal: Journal,
    checkpoints: Checkpoints | None = None,
    transcripts: Transcripts | None = None,
    budget: int | None = None,
    max_failures: int | None = None,
    on_start: Callable[[Any], None] = lambda state: None,
    progress: Progress = no_progress,
    log: Callable[[str], None] | None = None,
) -> Any:
    """Runs an asynchronous search to its end, from the state that its journal holds.

    Ids are given in the order in which children are passed to ``tell``, and the journal has that order, so it is one of
    generations of one child. A child may have been asked for before others with smaller ids had scores: ``asked`` of its record
    states when. Which children are made depends on the order in which evaluations end. The journal determines the state: to
    resume, its children are made and passed to ``tell`` again in its order. With one worker, the search is that of
    :func:`~cycleqd_jax.search.evolve` with one child per generation.

    Args:
        searcher: the algorithm; its ``ask`` must not change the state.
        experts: genomes of the experts, leading axis K; evaluated first, with ids 0 to K − 1.
        evaluator: evaluates the genomes, as many at the same time as it can.
        tasks: names of the tasks, in the order of the scores.
        names: see :func:`~cycleqd_jax.search.evolve`.
        key: PRNG key of the run; child number n that is asked for gets ``fold_in(key, n)``.
        children: number of children; fewer if the budget ends the search.
        journal: the journal of the run.
        checkpoints: the checkpoints of the run, or None. Only the last state is written.
        transcripts: see :func:`~cycleqd_jax.search.evolve`.
        budget: see :func:`~cycleqd_jax.search.evolve`.
        max_failures: see :func:`~cycleqd_jax.search.evolve`.
        on_start: see :func:`~cycleqd_jax.search.evolve`.
        progress: see :func:`~cycleqd_jax.search.evolve`.
        log: see :func:`~cycleqd_jax.search.evolve`.

    Returns:
        The searcher's last state.

    Raises:
        InputError: the budget is too small, the journal belongs to another run, or an expert's logits are not finite.
        FailuresError: see :func:`~cycleqd_jax.search.evolve`.
    """
    count = jax.tree.leaves(experts)[0].shape[0]
    if budget is not None and budget <= count:
        raise InputError(f"expected a budget above {count}, the number of experts, got {budget}; increase search.budget")
    total = count + children if budget is None else min(count + children, budget)
    report = Reporter(journal, tasks, total, progress)
    names = tasks if names is None else names
    state = evaluate_experts(searcher, experts, evaluator, tasks, names, journal, transcripts, report)
    on_start(state)
    check = DigestCheck(journal, log)
    for k, digest in enumerate(tree_digests(experts)):
        check(k, digest)
    inserted, made, flying = 0, 0, dict[int, _Child]()

    def ask(serial: int, state: Any) -> _Child:
        genomes, lineage, _ = searcher.ask(state, jax.random.fold_in(key, serial), 1)
        return _Child(children_of(genomes, lineage, inserted, count + inserted, names)[0], genomes, lineage)

    def tell(child: _Child) -> None:
        nonlocal state, inserted
        identity = count + inserted
        scores = jnp.asarray([journal.scores(identity, tasks)], jnp.float32)
        items = jnp.asarray(journal.items([identity], tasks))
        state = searcher.tell(state, child.genomes, scores, child.lineage, items)
        inserted += 1
        report(identity)

    for serials, identity in _recorded(journal, count):
        for serial in serials:
            flying[serial] = ask(serial, state)
        if identity is None:
            break
        serial = _asked(journal[identity], journal)[1]
        child = flying.pop(serial)
        check_recorded(replace(child.record, id=identity, generation=inserted), journal, check)
        tell(child)
        made = max(made, serial + 1)

    def source() -> tuple[int, Sequence[Genome], Relatives] | None:
        nonlocal made
        if count + inserted + len(flying) >= total:
            return None
        serial, made = made, made + 1
        child = ask(serial, state)
        flying[serial] = child._replace(record=replace(child.record, asked=(inserted, serial)))
        relatives = drafts_of(child.record, names, journal, transcripts)
        return serial, [row_of(child.genomes, 0)], [relatives] if relatives else ()

    def on_result(serial: int, evaluations: list[Evaluation]) -> None:
        child = flying.pop(serial)
        done = evaluated(replace(child.record, id=count + inserted, generation=inserted), evaluations[0])
        if transcripts is not None:
            transcripts.write(done.id, evaluations[0].transcript)
        if evaluations[0].transient:
            check_row(done, journal, max_failures, count)
        journal.append(done)
        tell(child)
        if done.error is not None and not evaluations[0].transient:
            check_not_finite(done, journal, max_failures)

    evaluator.stream(source, on_result)
    if checkpoints is not None:
        checkpoints.save(inserted, state, key)
        checkpoints.wait()
    return state


def _recorded(journal: Journal, count: int) -> list[tuple[list[int], int | None]]:
    """For every number of inserted children, what to ask for then, and the next id to insert; None where the journal ends."""
    ids = journal.ids()
    if ids != list(range(len(ids))):
        raise InputError(
            f"expected ids without a gap from a steady search, got {len(ids)} ids up to {ids[-1]} in {journal.path}; restore "
            "the file, or use the config of that run"
        )
    asked: dict[int, list[int]] = collections.defaultdict(list)
    known: set[int] = set()
    for identity in ids[count:]:
        after, serial = _asked(journal[identity], journal)
        if after > identity - count or serial in known:
            raise InputError(
                f"expected a child that was asked for once, before it was inserted, got asked {after}, {serial} of individual "
                f"{identity} in {journal.path}; restore the file"
            )
        asked[after].append(serial)
        known.add(serial)
    return [(asked[inserted], identity) for inserted, identity in enumerate([*ids[count:], None])]


def _asked(individual: Individual, journal: Journal) -> tuple[int, int]:
    if individual.asked is None:
        raise InputError(
            f"expected individuals of a steady search, got individual {individual.id} of generations in {journal.path}; use "
            "the config of that run, or another folder"
        )
    return individual.asked
