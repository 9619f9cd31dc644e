"""The individuals of a finished search with which a search of other tasks begins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.evaluation import GenomeEvaluator
from cycleqd_jax.individual import Individual
from cycleqd_jax.search.digests import tree_digests
from cycleqd_jax.search.evaluations import evaluate_individuals
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.transcripts import Transcripts
from cycleqd_jax.types import Genome, Lineage, Searcher, stack_trees

__all__ = ["Carried", "unknown_lineage"]


def unknown_lineage(count: int) -> Lineage:
    """The lineage of ``count`` children where it is not needed: searchers with archives do not use it."""
    none = jnp.full((count, 2), -1, jnp.int32)
    return Lineage(none, none[:, 0], jnp.zeros((count, 2), jnp.uint32), jnp.zeros((count, 2), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Carried:
    """Individuals of a finished search, as a search of other tasks records them. Their scores are those of common tasks.

    Children without scores are ancestors only: they are recorded and enter no archive.

    Attributes:
        generations: the number of generations that the children are of.
        batch_size: children per generation.
        experts: the experts that both searches have, ascending ids.
        children: yields the children, ascending ids without gaps, with their genomes. Their records have the digests.
        evaluator: scores genomes on the tasks that only the new search has; None where there are none.
    """

    generations: int
    batch_size: int
    experts: Sequence[Individual]
    children: Callable[[], Iterator[tuple[Individual, Genome]]]
    evaluator: GenomeEvaluator | None

    def record_experts(self, genomes: Genome, journal: Journal, transcripts: Transcripts | None) -> None:
        """Evaluates the experts on the new tasks, and records them.

        Args:
            genomes: the genomes of all experts of the search, leading axis.
            journal: the journal of the search.
            transcripts: the transcripts of the search, or None.

        Raises:
            FailuresError: an expert could not be evaluated because of a sandbox, the memory or the deadline.
        """
        digests = tree_digests(genomes)
        experts = [dataclasses.replace(expert, digest=digests[expert.id]) for expert in self.experts]
        chosen = jax.tree.map(lambda leaf: leaf[np.asarray([expert.id for expert in experts])], genomes)
        self._record(chosen, experts, journal, transcripts, lambda identity: None)

    def tell(
        self,
        searcher: Searcher,
        state: Any,
        experts: Genome,
        tasks: Sequence[str],
        journal: Journal,
        transcripts: Transcripts | None,
        report: Callable[[int], None],
        max_failures: int | None = None,
    ) -> Any:
        """Evaluates the children that have scores on the new tasks, records all of them, and passes them to the searcher.

        Args:
            searcher: a searcher with archives.
            state: its first state.
            experts: genomes of the experts, leading axis.
            tasks: the tasks of the search, in the order of the scores.
            journal: the journal of the search.
            transcripts: the transcripts of the search, or None.
            report: called with the id of every child, ascending.
            max_failures: see :func:`~cycleqd_jax.search.evolve`. Children that are only recorded do not count.

        Returns:
            The state after the last generation of the children.

        Raises:
            FailuresError: ``max_failures`` evaluated children in a row could not be scored because of a sandbox, the memory or
                the deadline.
        """
        ancestors: list[Individual] = []
        scored: list[Individual] = []
        genomes: dict[int, Genome] = {}
        for child, genome in self.children():
            if child.scores is None:
                ancestors.append(child)
            else:
                scored.append(child)
                genomes[child.id] = genome
        left = iter([*ancestors, None])
        following = next(left)

        def record_ancestors(before: float) -> None:
            """Records the ancestors with smaller ids, so that the journal has the parents of every individual."""
            nonlocal following
            while following is not None and following.id < before:
                if journal.get(following.id) is None:
                    journal.append(following)
                report(following.id)
                following = next(left)

        def on_recorded(identity: int) -> None:
            report(identity)
            record_ancestors(next_scored[identity])

        ids = [child.id for child in scored]
        next_scored = dict(zip(ids, [*ids[1:], math.inf], strict=True))
        record_ancestors(min(ids, default=math.inf))
        if scored:
            stacked, ignored = stack_trees([genomes[child.id] for child in scored]), {one.id for one in ancestors}
            self._record(stacked, scored, journal, transcripts, on_recorded, max_failures, ignored)
        journal.sort()
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), experts)
        everyone = sorted([*genomes, *(one.id for one in ancestors)])
        for start in range(0, len(everyone), self.batch_size):
            ids = everyone[start : start + self.batch_size]
            scores = jnp.asarray([journal.scores(identity, tasks) for identity in ids], jnp.float32)
            items = jnp.asarray(journal.items(ids, tasks))
            batch = stack_trees([genomes.get(identity, nothing) for identity in ids])
            state = searcher.tell(state, batch, scores, unknown_lineage(len(ids)), items)
        return state

    def _record(
        self,
        genomes: Genome,
        individuals: Sequence[Individual],
        journal: Journal,
        transcripts: Transcripts | None,
        on_recorded: Callable[[int], None],
        max_failures: int | None = None,
        ignored: Collection[int] = (),
    ) -> None:
        if self.evaluator is not None:
            evaluate_individuals(
                self.evaluator,
                genomes,
                individuals,
                journal,
                transcripts,
                on_recorded,
                [],
                max_failures,
                0,
                ignored=ignored,
            )
            return
        for one in individuals:
            if journal.get(one.id) is None:
                journal.append(one)
            on_recorded(one.id)
