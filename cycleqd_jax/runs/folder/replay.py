"""What a journal determines without any evaluation: the genome of every individual, and the state of the search."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms.common import rebuild_child
from cycleqd_jax.config import RunConfig
from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace, ExpertSpace
from cycleqd_jax.runs.devices.groups import Space
from cycleqd_jax.runs.searchers import make_searcher, racing_of
from cycleqd_jax.search import Journal, generation_ids, individuals_within, tree_digest
from cycleqd_jax.search.carried import unknown_lineage
from cycleqd_jax.search.digests import OLD_BASES
from cycleqd_jax.types import Genome, InputError, SearchState, stack_trees

__all__ = ["Replayed", "ancestors_of", "rebuild", "rebuilt", "replay", "total_individuals"]


def ancestors_of(journal: Journal, ids: Iterable[int]) -> list[int]:
    """The individuals and all their ancestors, ascending; parents come before their children.

    Raises:
        InputError: the journal lacks one of them, or names a parent that is not older than its child.
    """
    found: set[int] = set()
    pending = [(identity, None) for identity in ids]
    while pending:
        identity, child = pending.pop()
        individual = journal.get(identity)
        if individual is None:
            whose = "" if child is None else f", a parent of individual {child}"
            raise InputError(
                f"expected individual {identity}{whose}, got {len(journal)} others in {journal.path}; "
                + ("give the id of an evaluated individual" if child is None else "restore the file")
            )
        if child is not None and identity >= child:
            raise InputError(
                f"expected parents older than individual {child}, got parent {identity} in {journal.path}; restore the file"
            )
        if identity not in found:
            found.add(identity)
            pending += [(parent, identity) for parent in individual.parents if parent >= 0]
    return sorted(found)


def rebuild(space: Space, journal: Journal, names: tuple[str, ...], ids: Iterable[int]) -> dict[int, Genome]:
    """The genomes of individuals, from the experts and the journal alone.

    Args:
        space: the genome space of the run.
        journal: the journal of the run.
        names: the names of the experts, in the order of the space.
        ids: the individuals.

    Raises:
        InputError: see :func:`rebuilt`.
    """
    wanted = set(ids)
    return {identity: genome for identity, genome in rebuilt(space, journal, names, wanted) if identity in wanted}


def rebuilt(
    space: Space,
    journal: Journal,
    names: tuple[str, ...],
    ids: Iterable[int],
    digest_of: Callable[[Genome], str] = tree_digest,
) -> Iterator[tuple[int, Genome]]:
    """Yields the genomes of individuals and of all their ancestors, ascending, from the experts and the journal alone.

    A child with coefficients is given by them, and every other child is made again from its parents, its active task, ω and its
    key. Genomes are dropped when no descendant needs them any more.

    Args:
        space: the genome space of the run.
        journal: the journal of the run.
        names: the names of the experts, in the order of the space.
        ids: the individuals.
        digest_of: the digest of a genome that is compared with the recorded one.

    Raises:
        InputError: the journal lacks an individual or what it is made of; or a genome is not the one that was recorded.
    """
    order = ancestors_of(journal, ids)
    last_use = {parent: identity for identity in order for parent in journal[identity].parents}
    genomes: dict[int, Genome] = {}
    for identity in order:
        individual = journal[identity]
        if individual.expert is not None:
            genome = space.expert(names.index(individual.expert)) if individual.expert in names else None
        elif individual.coefficients is not None:
            genome = CoefficientGenome(jnp.asarray(individual.coefficients, jnp.float32))
        elif None in (individual.omega, individual.key, individual.active) or individual.active not in names:
            genome = None
        else:
            first, second = (genomes[parent] for parent in individual.parents)
            omega, key = jnp.asarray(individual.omega, jnp.float32), jnp.asarray(individual.key, jnp.uint32)
            genome = rebuild_child(space, first, second, omega, key, jnp.int32(names.index(individual.active)))
        if genome is None:
            raise InputError(
                f"expected parents, ω, key and active task of individual {identity} for the experts {', '.join(names)}, got "
                f"expert {individual.expert!r}, active {individual.active!r}, ω {individual.omega} in {journal.path}; restore "
                "the file"
            )
        found = digest_of(genome)
        if individual.digest not in (None, found):
            raise InputError(
                f"expected the genome of individual {identity} to have digest {individual.digest}, as in {journal.path}, got "
                f"{found}; use the experts, the version and the kind of machine of that run ({OLD_BASES})"
            )
        genomes[identity] = genome
        yield identity, genome
        for one in {identity, *individual.parents} & genomes.keys():
            if last_use.get(one, identity) == identity:
                del genomes[one]


@dataclasses.dataclass(frozen=True)
class Replayed:
    """The state of a search as its journal determines it.

    Attributes:
        state: after the last generation that is complete; its ids and scores are those of the search. Where the search keeps
            genomes of children with parents, this state keeps their ids in their place.
        generations: the number of complete generations.
        exact: whether the whole state is that of the search, genomes too.
    """

    state: SearchState
    generations: int
    exact: bool


def replay(config: RunConfig, journal: Journal, generations: int | None = None) -> Replayed:
    """Tells a searcher all scores of a journal; needs no model.

    Args:
        config: the config of the run.
        journal: the journal of the run.
        generations: how many generations; None is all that are complete.

    Raises:
        InputError: the journal does not have the scores of all experts, or is not that of the config.
    """
    names, options = config.task_names, config.search
    count = len(config.expert_names)
    if any(journal.get(k) is None for k in range(count)):
        raise InputError(f"expected the scores of {count} experts, got others in {journal.path}; start the search first")
    space = _small_space(config)
    searcher = make_searcher(config, space)
    experts = stack_trees([space.expert(k) for k in range(count)]) if options.coefficients else _numbers(range(count))
    scores = np.asarray([journal.scores(k, names) for k in range(count)], np.float32)
    state = searcher.init(experts, scores, journal.items(range(count), names))
    key, done = jax.random.key(config.seed), 0
    for ids in itertools.islice(_generation_ids(config, journal), generations):
        missing = [i for i in ids if i not in journal]
        if missing and config.origin is None and journal.last_id >= ids.stop:  # those of another run are recorded out of order
            raise InputError(
                f"expected every individual before the last generation, got none of {missing[:5]} in {journal.path}; restore "
                "the file"
            )
        if missing:
            break
        if options.coefficients:
            genomes, lineage, state = searcher.ask(state, jax.random.fold_in(key, done), len(ids))
        else:
            genomes, lineage = _numbers(ids), unknown_lineage(len(ids))
        rows = jnp.asarray([journal.scores(i, names) for i in ids], jnp.float32)
        state = searcher.tell(state, genomes, rows, lineage, jnp.asarray(journal.items(ids, names)))
        done += 1
    return Replayed(state, done, options.coefficients)


def total_individuals(config: RunConfig, journal: Journal) -> int:
    """How many individuals a run evaluates, the experts included.

    With racing and a budget of problems it depends on the children that stop. While the search goes on, these are the
    individuals until the end of the generation that the journal lacks.
    """
    racing = racing_of(config)
    if racing is None or racing.items is None:
        return _most_individuals(config, journal)
    return max((ids.stop for ids in _generation_ids(config, journal)), default=len(config.expert_names))


def _generation_ids(config: RunConfig, journal: Journal) -> Iterator[range]:
    """The ids of the children of every generation."""
    racing, most = racing_of(config), _most_individuals(config, journal)
    items = None if racing is None else racing.items
    return generation_ids(journal, len(config.expert_names), config.search.batch_size, most, items)


def _most_individuals(config: RunConfig, journal: Journal) -> int:
    """The most individuals of a run; with racing, a budget of problems does not limit their number."""
    options, first = config.search, journal.get(0)
    total = len(config.expert_names) + options.generations * options.batch_size
    each = 0 if first is None else first.problem_count
    items = options.budget_items if each and options.racing is None else None
    budget = individuals_within(options.budget, items, max(each, 1))
    return total if budget is None else min(total, budget)


def _small_space(config: RunConfig) -> Space:
    """A genome space of as many experts, of matrices that are as small as the config allows."""
    base = {"layers": {"w": jnp.zeros((config.search.groups, 1, 1))}}
    experts = [jax.tree.map(lambda leaf, k=k: leaf + k + 1, base) for k in range(len(config.expert_names))]
    if config.search.coefficients:
        return CoefficientSpace.from_experts(base, experts, groups=config.search.groups)
    return ExpertSpace.from_experts(base, experts)


def _numbers(ids: Iterable[int]) -> Genome:
    """Ids in the place of genomes."""
    return {"id": jnp.asarray(list(ids), jnp.int32)}
