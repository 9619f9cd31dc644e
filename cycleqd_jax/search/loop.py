"""The search loop: ask, evaluate, record, tell; resumable after a crash at any instant."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.evaluation import GenomeEvaluator, WorkerPool
from cycleqd_jax.individual import Individual, expected_individuals
from cycleqd_jax.search.carried import Carried
from cycleqd_jax.search.checkpoint import Checkpoints, DamagedCheckpointError
from cycleqd_jax.search.common import DigestCheck, Reporter, check_recorded, children_of, drafts_of
from cycleqd_jax.search.digests import tree_digests
from cycleqd_jax.search.evaluations import evaluate_individuals
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.races import Racing, generation_ids
from cycleqd_jax.search.transcripts import Transcripts
from cycleqd_jax.types import Genome, InputError, PRNGKeyArray, Progress, Searcher, no_progress

__all__ = ["evaluate_experts", "evolve", "individuals_within"]


def evolve(
    searcher: Searcher,
    experts: Genome,
    evaluator: GenomeEvaluator,
    *,
    tasks: Sequence[str],
    names: Sequence[str] | None = None,
    key: PRNGKeyArray,
    generations: int,
    batch_size: int,
    journal: Journal,
    checkpoints: Checkpoints | None = None,
    transcripts: Transcripts | None = None,
    budget: int | None = None,
    max_failures: int | None = None,
    carried: Carried | None = None,
    racing: Racing | None = None,
    on_start: Callable[[Any], None] = lambda state: None,
    progress: Progress = no_progress,
    log: Callable[[str], None] | None = None,
) -> Any:
    """Runs a search to its end, from the state that its journal and checkpoints hold.

    Individuals are written to the journal in the order of their ids, each as soon as it and all before it are evaluated. When
    the search is interrupted, the results that are complete are written too, out of order. After a KeyboardInterrupt the state
    after the last complete generation is written as a checkpoint. To resume, the newest checkpoint is
    restored, and later individuals of the journal are passed to ``tell`` without being evaluated again. A run that was killed
    at any instant and resumed ends bit-identical to one that never was.

    With a budget the last generation has fewer children where not all of them fit.

    Args:
        searcher: the algorithm.
        experts: genomes of the experts, leading axis; evaluated first, with ids from 0. Expert k is that of task k; more may
            follow.
        evaluator: evaluates the genomes. An InfraError that it raises ends the search, which can be resumed. A
            :class:`~cycleqd_jax.evaluation.GuardedWorker` returns a quarantined evaluation instead.
        tasks: names of the tasks, in the order of the scores.
        names: names of the experts, those of the tasks first; None where there are no others.
        key: PRNG key of the run; generation t asks with ``fold_in(key, t)``.
        generations: number of generations; fewer if the budget ends the search.
        batch_size: children per generation.
        journal: the journal of the run.
        checkpoints: the checkpoints of the run, or None.
        transcripts: the transcripts of the run, or None. Each is written before its individual is recorded. A child gets the
            transcripts of its relatives as drafts (:func:`~cycleqd_jax.search.common.relatives_of`).
        budget: maximum number of evaluated individuals, experts and quarantined ones included; None is no limit. See
            :func:`individuals_within`.
        max_failures: number of children in a row with transient failures (a sandbox, memory, a deadline), after which the
            search stops; None is no limit. One cause is likely then, so the row is taken out of the journal, and a resumed
            search evaluates it again. Only children that a checkpoint covers stay, and those of earlier generations where a
            later child of this one has scores. As many children in a row whose logits are not finite stop it too. They neither
            count nor end a row of transient failures, and stay in the journal unless they lie between the failures of a row
            that is taken out. Failures that the journal has do not stop a search.
        carried: the individuals of another search with which this one begins, instead of its first generations; or None.
        racing: how children are evaluated in stages, until they are unlikely to enter an archive. It needs a
            :class:`~cycleqd_jax.evaluation.WorkerPool` as the evaluator. None evaluates all children on all problems.
        on_start: called with the searcher's first state, after the experts are evaluated.
        progress: called after every individual, in any of the evaluator's threads.
        log: called with a warning where the genome of a recorded individual has other bits here, or where a damaged checkpoint
            is removed, without which the search continues; None makes both an error.

    Returns:
        The searcher's last state.

    Raises:
        InputError: the budget does not suffice for the experts and one generation, which is found before any evaluation;
            journal or checkpoint belong to another run, or an expert's logits are not finite; or ``racing`` does not go with
            the evaluator, the searcher or the number of problems.
        FailuresError: ``max_failures`` children in a row had transient failures; or an expert had one, and is not recorded.
    """
    count = jax.tree.leaves(experts)[0].shape[0]
    if racing is not None and not isinstance(evaluator, WorkerPool):
        raise InputError(
            f"expected a WorkerPool with racing, whose workers evaluate in stages, got {type(evaluator).__name__}; leave one "
            "out"
        )
    if budget is not None and budget < count + batch_size:
        raise InputError(
            f"expected a budget of at least {count + batch_size} individuals, {count} experts and a generation of {batch_size}"
            f", got {budget}; increase search.budget or search.budget_items"
        )
    total = count + generations * batch_size
    total = total if budget is None else min(total, budget)
    restored = 0 if checkpoints is None else checkpoints.latest() or 0
    needed = min(count + restored * batch_size, total)
    plan = (journal, count, batch_size, total, None if racing is None else racing.items)
    if restored and racing is not None and len(done := [*itertools.islice(generation_ids(*plan), restored)]) == restored:
        needed = done[-1].stop  # the last generation may have fewer children
    if restored:
        _check_covered(journal, restored, needed)
    expected = None
    if racing is not None and racing.items is not None:
        expected = functools.partial(expected_individuals, racing.items, experts=count, batch_size=batch_size)
    report = Reporter(journal, tasks, total, progress, expected)
    names = tasks if names is None else names
    if carried is not None:
        carried.record_experts(experts, journal, transcripts)
    state = evaluate_experts(searcher, experts, evaluator, tasks, names, journal, transcripts, report)
    on_start(state)
    first, state = _restore(checkpoints, state, key, log)
    if carried is not None and first < carried.generations:
        state = carried.tell(searcher, state, experts, tasks, journal, transcripts, report, max_failures)
        first = carried.generations
        if checkpoints is not None:
            checkpoints.save(first, state, key)
    check = DigestCheck(journal, log)
    for k, digest in enumerate(tree_digests(experts)):
        check(k, digest)
    complete = first, state
    try:
        for t, ids in itertools.islice(enumerate(generation_ids(*plan)), first, None):
            genomes, lineage, state = searcher.ask(state, jax.random.fold_in(key, t), len(ids))
            children = children_of(genomes, lineage, t, ids.start, names)
            for child in children:
                check_recorded(child, journal, check)
            relatives = [drafts_of(child, names, journal, transcripts) for child in children]
            covered = count + (0 if checkpoints is None else checkpoints.newest()) * batch_size
            stages = [] if racing is None else racing.stages(children, journal, tasks, count, state, key)
            evaluate_individuals(
                evaluator, genomes, children, journal, transcripts, report, relatives, max_failures, covered, stages=stages
            )
            scores = [journal.scores(child.id, tasks) for child in children]
            items = journal.items([child.id for child in children], tasks)
            state = searcher.tell(state, genomes, jnp.asarray(scores, jnp.float32), lineage, jnp.asarray(items))
            if checkpoints is not None:
                checkpoints.check()
                if (t + 1) % checkpoints.every == 0 or ids.stop == total:
                    checkpoints.save(t + 1, state, key)
            complete = t + 1, state
        if checkpoints is not None:
            checkpoints.wait()
            if racing is not None and (checkpoints.latest() or 0) < complete[0]:
                checkpoints.save(*complete, key)  # the budget of problems has ended the search
                checkpoints.wait()
        report.end()
    except KeyboardInterrupt:
        if checkpoints is not None and complete[0] > 0:
            with contextlib.suppress(Exception):  # a full disk, or a checkpoint that was interrupted: the journal suffices
                checkpoints.save(*complete, key)
                checkpoints.wait()
        raise
    return state


def _check_covered(journal: Journal, restored: int, needed: int) -> None:
    """Raises where the journal lacks an individual that a checkpoint covers: no search evaluates it again.

    Args:
        journal: the journal of the search.
        restored: the generation of the checkpoint.
        needed: the individuals with ids below this are in the state of the checkpoint.
    """
    advice = f"in {journal.path}; restore the journal, or remove the checkpoints to search again"
    if len(journal) < needed:
        raise InputError(
            f"expected at least {needed} individuals for the checkpoint of generation {restored}, got {len(journal)} {advice}"
        )
    missing = [identity for identity in range(needed) if identity not in journal]
    if missing:
        raise InputError(
            f"expected every individual before {needed} for the checkpoint of generation {restored}, got none of "
            f"{missing[:5]} {advice}"
        )


def _restore(
    checkpoints: Checkpoints | None, first: Any, key: PRNGKeyArray, log: Callable[[str], None] | None
) -> tuple[int, Any]:
    """The step and the state of the newest checkpoint that is not damaged; without one, 0 and the searcher's first state.

    Damaged checkpoints are removed, because the journal has all that they had.
    """
    while checkpoints is not None and (step := checkpoints.latest()) is not None:
        try:
            return checkpoints.restore(first, key)
        except DamagedCheckpointError as error:
            if log is None:
                raise
            log(f"warning: the checkpoint of generation {step} is damaged, is removed, and the journal is replayed: {error}")
            checkpoints.remove(step)
    return 0, first


def individuals_within(individuals: int | None, items: int | None, each: int) -> int | None:
    """The number of individuals that both budgets allow; None if there is no budget.

    Args:
        individuals: the most evaluated individuals, the experts included; None is no limit.
        items: the most evaluated items (problems), the experts' included; None is no limit.
        each: the items that every individual is scored on.
    """
    limits = [limit for limit in (individuals, None if items is None else items // each) if limit is not None]
    return min(limits, default=None)


def evaluate_experts(
    searcher: Searcher,
    genomes: Genome,
    evaluator: GenomeEvaluator,
    tasks: Sequence[str],
    names: Sequence[str],
    journal: Journal,
    transcripts: Transcripts | None,
    report: Callable[[int], None],
) -> Any:
    """Evaluates the experts that the journal lacks; returns the searcher's first state.

    Args:
        searcher: the algorithm.
        genomes: the genomes of the experts, leading axis.
        evaluator: evaluates the genomes.
        tasks: names of the tasks, in the order of the scores.
        names: names of the experts, those of the tasks first.
        journal: the journal of the run.
        transcripts: the transcripts of the run, or None.
        report: called with the id of every expert.

    Raises:
        InputError: the journal has other experts, or an expert's logits are not finite.
        FailuresError: an expert had a transient failure, and is not recorded.
    """
    count = jax.tree.leaves(genomes)[0].shape[0]
    experts = [
        Individual(
            id=k,
            generation=-1,
            expert=names[k],
            active=None,
            parents=(-1, -1),
            omega=None,
            key=None,
            digest=one,
        )
        for k, one in enumerate(tree_digests(genomes))
    ]
    for expert in experts:
        recorded = journal.get(expert.id)
        if recorded is not None and recorded.expert != expert.expert:
            raise InputError(
                f"expected individual {expert.id} to be expert {expert.expert!r}, got {recorded.expert!r} in {journal.path}; "
                "use the config of that run, or another folder"
            )

    def check(identity: int) -> None:
        recorded = journal.get(identity)
        if recorded is not None and math.isnan(journal.scores(identity, tasks)[0]):
            raise InputError(
                f"expected finite scores of expert {recorded.expert!r}, got: {recorded.error} in {journal.path}; correct the "
                "expert, and choose another folder"
            )
        report(identity)

    evaluate_individuals(evaluator, genomes, experts, journal, transcripts, check, [], None, count)
    scores = np.asarray([journal.scores(k, tasks) for k in range(count)], np.float32)
    return searcher.init(genomes, scores, journal.items(range(count), tasks))
