"""What all search loops share: records of individuals, and checks that a journal is that of the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.individual import Individual
from cycleqd_jax.search.digests import OLD_BASES, tree_digests
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.transcripts import Transcripts
from cycleqd_jax.types import Array, Genome, InputError, Int, Lineage, Progress, Transcript

__all__ = ["DigestCheck", "Reporter", "check_recorded", "children_of", "drafts_of", "evaluated", "relatives_of", "row_of"]


NEAR = 500
"""Children before another one that may be its relatives; the journal has the records of more than these in memory."""

NEAREST = 3
"""Relatives of a child that is given by its coefficients."""


class Reporter:
    """Reports an individual of the journal as progress, with the best average score of all up to it."""

    def __init__(
        self,
        journal: Journal,
        tasks: Sequence[str],
        total: int,
        progress: Progress,
        expected: Callable[[Sequence[int]], int] | None = None,
    ) -> None:
        """Args:
        journal: the journal of the search.
        tasks: the tasks, in the order of the scores.
        total: the most individuals.
        progress: called with every individual.
        expected: where a limit of problems may end the search before: the number of individuals, from the problems of the
            first n individuals together, for every n.
        """  # noqa: D205
        self._journal = journal
        self._tasks = tasks
        self._total = total
        self._progress = progress
        self._expected = expected
        self._best = -np.inf
        self._used = [0]
        self._shown = (0, 0)

    def __call__(self, identity: int) -> None:
        """Reports the individual of an id, which the journal has."""
        self._read(identity)
        expected = self._total if self._expected is None else min(self._total, self._expected(self._used))
        self._show(identity + 1, expected)

    def end(self) -> None:
        """Reports the last individual as the end of the search, where that has not been done."""
        count = len(self._journal)
        if self._shown != (count, count):
            self._read(count - 1)
            self._show(count, count)

    def _read(self, identity: int) -> None:
        """Reads the individuals up to one; a checkpoint may cover some, which are not reported."""
        for one in range(len(self._used) - 1, identity + 1):
            self._best = float(np.fmax(self._best, np.mean(self._journal.scores(one, self._tasks))))
            self._used.append(self._used[-1] + (self._journal[one].problem_count or self._journal[0].problem_count))

    def _show(self, done: int, total: int) -> None:
        self._shown = (done, total)
        self._progress("evolve", done, total, {"best average": self._best})


def children_of(genomes: Genome, lineage: Lineage, generation: int, first_id: int, names: Sequence[str]) -> list[Individual]:
    """The children of a generation, not yet evaluated; ``names`` are those of the experts."""
    host = jax.tree.map(np.asarray, lineage)
    digests = tree_digests(genomes)
    return [
        Individual(
            id=first_id + j,
            generation=generation,
            expert=None,
            active=names[int(host.active[j])] if host.active[j] >= 0 else None,
            parents=tuple(host.parents[j].tolist()),
            omega=tuple(host.omega[j].tolist()) if host.coefficients is None else None,
            key=tuple(host.key[j].tolist()),
            coefficients=None if host.coefficients is None else tuple(host.coefficients[j].tolist()),
            digest=digests[j],
        )
        for j in range(len(host.active))
    ]


def relatives_of(child: Individual, names: Sequence[str], journal: Journal) -> list[int]:
    """The ids of individuals whose replies are likely those of the child, the closest first.

    These are its parents, and the expert along whose directions it was mutated; or, of a child that is given by its
    coefficients, the individuals with the nearest coefficients among the experts and the latest children. An expert has
    coefficient 1 for itself. ``names`` are those of the experts.
    """
    if child.coefficients is None:
        return [*child.parents, *([] if child.active is None else [names.index(child.active)])]
    own = np.asarray(child.coefficients)
    count = own.shape[1]
    points = dict(enumerate(np.broadcast_to(np.eye(count)[:, None], (count, *own.shape))))
    for identity in range(max(count, child.id - NEAR), child.id):
        found = journal.get(identity)
        if found is not None and found.coefficients is not None and found.scores is not None:
            points[identity] = np.asarray(found.coefficients)
    return sorted(points, key=lambda identity: (float(np.square(points[identity] - own).sum()), identity))[:NEAREST]


def drafts_of(child: Individual, names: Sequence[str], journal: Journal, transcripts: Transcripts | None) -> list[Transcript]:
    """The transcripts of a child's relatives (:func:`relatives_of`); they are not looked for where children get no drafts."""
    if transcripts is None or not transcripts.drafts:
        return []
    return transcripts.of(relatives_of(child, names, journal))


def check_recorded(child: Individual, journal: Journal, check: DigestCheck) -> None:
    """Checks that a recorded child is the one that the searcher makes.

    Args:
        child: the child that the searcher makes.
        journal: the journal of the search. A child that it does not have is not compared.
        check: compares the digests of genomes.

    Raises:
        InputError: a field differs; the message names the first.
    """
    recorded = journal.get(child.id)
    for name in ("generation", "active", "parents", "key", "omega", "coefficients"):
        if recorded is not None and getattr(recorded, name) != getattr(child, name):
            raise InputError(
                f"expected {name} = {getattr(child, name)} of individual {child.id}, got {getattr(recorded, name)} in "
                f"{journal.path}; use the config, the experts and the version of that run, or another folder"
            )
    check(child.id, child.digest)


class DigestCheck:
    """Checks that recorded individuals have the genomes that this run makes; journals of older versions have no digests."""

    def __init__(self, journal: Journal, log: Callable[[str], None] | None) -> None:
        self._journal = journal
        self._log = log
        self._told = False

    def __call__(self, identity: int, digest: str | None) -> None:
        """Compares the digest of an individual; the first difference is logged, or is an error where there is no log."""
        recorded = self._journal.get(identity)
        if recorded is None or recorded.digest in (None, digest) or self._told:
            return
        if self._log is None:
            raise InputError(
                f"expected the genome of individual {identity} to have digest {digest}, got {recorded.digest} in "
                f"{self._journal.path}; use the experts, the version and the kind of machine of that run "
                f"({OLD_BASES}), or another folder"
            )
        self._told = True
        self._log(
            f"warning: the genome of individual {identity} has other bits here than in {self._journal.path}; another kind of "
            "machine or another version made them, and the recorded scores are of those"
        )


def evaluated(individual: Individual, evaluation: Evaluation) -> Individual:
    """The individual with its results; those of other tasks that it has stay unless the evaluation failed or was stopped."""
    seconds = {stage: round(value, 6) for stage, value in evaluation.seconds.items()}
    found = replace(individual, seconds=seconds, tokens=evaluation.tokens, error=evaluation.error)
    if evaluation.evaluated is not None:
        return replace(found, scores=None, items=evaluation.items, evaluated=evaluation.evaluated)
    if evaluation.scores is None:
        return replace(found, scores=None, items={})
    return replace(
        found, scores={**(individual.scores or {}), **evaluation.scores}, items={**individual.items, **evaluation.items}
    )


@jax.jit
def row_of(tree: Genome, j: int | Int[Array, ""]) -> Genome:
    """Genome j of a batch."""
    return jax.tree.map(lambda leaf: leaf[j], tree)
