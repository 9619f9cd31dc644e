"""The checkpoints of a run, against the archives and genomes that its journal gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from cycleqd_jax.config import RunConfig
from cycleqd_jax.runs.audit.found import Audit
from cycleqd_jax.runs.folder.replay import replay
from cycleqd_jax.search import Journal, StoredState, read_checkpoint, tree_digest
from cycleqd_jax.search.checkpoint import SCHEMA
from cycleqd_jax.search.digests import leaves_of
from cycleqd_jax.types import InputError

__all__ = ["check_checkpoints"]


def check_checkpoints(path: Path, config: RunConfig, journal: Journal, steps: Sequence[int], audit: Audit) -> None:
    """Compares every checkpoint with the archives that the journal gives."""
    folder = path / "checkpoints"
    if not steps:
        audit.notes.append(f"note: there are no checkpoints in {folder}; the next start replays the journal")
        return
    audit.checked += [f"{len(steps)} checkpoints", "the archives"]
    for step in steps:
        place = folder / str(step)
        try:
            stored = read_checkpoint(folder, step)
        except InputError as error:
            if place.exists():  # a run that goes on removes old ones
                audit.problems.append(str(error))
            continue
        for problem in _problems_in(stored, step, config, journal):
            audit.problems.append(
                f"{problem} in {place}; remove it, and the run continues from the checkpoint before it or from the journal"
            )


def _problems_in(stored: StoredState, step: int, config: RunConfig, journal: Journal) -> Iterator[str]:
    """What is wrong with a checkpoint, each as ``expected X, got Y``; one problem of the state is enough."""
    if stored.schema != SCHEMA:
        yield f"expected a checkpoint of schema {SCHEMA}, got schema {stored.schema}"
        return
    key = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    if not np.array_equal(stored.key_data, key):
        yield f"expected the PRNG key of seed {config.seed}, got another key"
    try:
        found = replay(config, journal, step)
    except InputError as error:
        yield f"expected a journal that can be replayed, got an error ({error})"
        return
    if found.generations < step:
        yield f"expected at most the {found.generations} generations of the journal, got a checkpoint of generation {step}"
        return
    ours, theirs = (
        {path.lstrip("/"): np.asarray(leaf) for path, leaf in leaves_of(state)}
        for state in (flax.serialization.to_state_dict(found.state), stored.state)
    )
    skipped = () if found.exact else ("genotypes", "genomes")
    for name in sorted(ours.keys() | theirs.keys()):
        if set(name.split("/")) & set(skipped):
            continue
        if name not in ours or name not in theirs or not _equal(ours[name], theirs[name]):
            yield f"expected the archives and the state that the journal gives, got another {name}"
            return
    yield from _genome_problems(stored.state, journal)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _genome_problems(state: Mapping[str, Any], journal: Journal) -> Iterator[str]:
    """The elites of all repertoires in a state whose genome is not the one that the journal recorded."""
    for repertoire in _repertoires(state):
        ids = np.asarray(repertoire["extra_scores"]["id"])
        held = np.asarray(repertoire["fitnesses"])[..., 0] > -np.inf
        for place in zip(*np.nonzero(held), strict=True):
            individual = journal.get(int(ids[place]))
            if individual is None or individual.digest is None:
                continue
            found = tree_digest(jax.tree.map(lambda leaf, place=place: np.asarray(leaf)[place], repertoire["genotypes"]))
            if found != individual.digest:
                yield f"expected the genome of individual {individual.id} with digest {individual.digest}, got {found}"
                return


def _repertoires(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if {"genotypes", "fitnesses", "extra_scores"} <= node.keys():
            yield node
            return
        for item in node.values():
            yield from _repertoires(item)
