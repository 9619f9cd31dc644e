"""The evaluation of individuals, which are recorded in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from cycleqd_jax.evaluation import Evaluation, GenomeEvaluator
from cycleqd_jax.individual import Individual
from cycleqd_jax.search.common import evaluated, row_of
from cycleqd_jax.search.failures import check_not_finite, check_row, raise_unscored
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.transcripts import Transcripts
from cycleqd_jax.types import FailuresError, Genome, NextItems, Transcript

__all__ = ["evaluate_individuals"]


def evaluate_individuals(
    evaluator: GenomeEvaluator,
    genomes: Genome,
    individuals: Sequence[Individual],
    journal: Journal,
    transcripts: Transcripts | None,
    on_recorded: Callable[[int], None],
    relatives: Sequence[Sequence[Transcript]],
    max_failures: int | None,
    covered: int,
    *,
    stages: Sequence[NextItems] = (),
    ignored: Collection[int] = (),
) -> None:
    """Evaluates the individuals that the journal lacks and records them.

    The groups do not depend on what the journal has, because the last bits of results may depend on the group.

    Args:
        evaluator: evaluates the genomes.
        genomes: the genomes of the individuals, with a leading axis.
        individuals: with ascending ids, not evaluated yet. Scores that they have of other tasks are kept.
        journal: the journal of the search.
        transcripts: the transcripts of the search, or None.
        on_recorded: gets the ids of all individuals, in order.
        relatives: transcripts for each individual, or empty.
        max_failures: see :func:`~cycleqd_jax.search.evolve`.
        covered: the newest checkpoint needs the individuals with ids below this.
        stages: for each individual, which problems it is evaluated on next; empty where all are evaluated on all problems.
        ignored: ids of others that this search does not evaluate; see :func:`~cycleqd_jax.search.failures.check_row`.

    Raises:
        FailuresError: see :func:`~cycleqd_jax.search.evolve`.
    """
    groups = [range(i, min(i + evaluator.size, len(individuals))) for i in range(0, len(individuals), evaluator.size)]
    groups = [group for group in groups if any(individuals[j].id not in journal for j in group)]
    results: dict[int, Individual] = {}
    transient: set[int] = set()
    done = 0  # how many are recorded without a gap
    stopped = False

    def is_new(j: int) -> bool:
        return individuals[j].id not in journal

    def check_failure(individual: Individual) -> None:
        if individual.expert is not None:
            raise_unscored(individual, journal)
            return
        # Scores of this generation are kept, and belong to the generations before it.
        scored = any(results[j].error is None for j in results if j > done) or journal.last_id > individual.id
        check_row(individual, journal, max_failures, max(covered, individuals[0].id if scored else 0), ignored)

    def record_in_order() -> None:
        nonlocal done
        while done < len(individuals) and (done in results or not is_new(done)):
            if is_new(done):
                if done in transient:
                    check_failure(results[done])
                journal.append(results[done])
            on_recorded(individuals[done].id)
            done += 1
            last = results.get(done - 1)
            if last is not None and last.error is not None and last.expert is None and done - 1 not in transient:
                check_not_finite(last, journal, max_failures, ignored)

    def on_result(i: int, evaluations: list[Evaluation]) -> None:
        nonlocal stopped
        if stopped:  # another worker ends while the search stops
            return
        for j, one in zip(groups[i], evaluations, strict=True):
            if transcripts is not None:
                transcripts.write(individuals[j].id, one.transcript)
            results[j] = evaluated(individuals[j], one)
            if one.transient:
                transient.add(j)
        try:
            record_in_order()
        except FailuresError:
            stopped = True
            raise

    try:
        record_in_order()
        options: dict[str, Any] = {"relatives": [[relatives[j] for j in group] for group in groups]} if any(relatives) else {}
        options |= {"stages": [[stages[j] for j in group] for group in groups]} if stages else {}
        evaluator([[row_of(genomes, j) for j in group] for group in groups], on_result, **options)
    except BaseException as error:
        # Transient failures are evaluated again when the search is resumed.
        failed = {j for j in results if results[j].error is not None} if isinstance(error, FailuresError) else transient
        for j in filter(is_new, sorted(results.keys() - failed)):
            journal.append(results[j])
        raise
    journal.sort()
