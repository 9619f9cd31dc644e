"""The run of other tasks with whose individuals a run begins.

The new run has the genome space of the old one with further experts. Its journal has the children of the old run as those of
its first generations, with the same keys and parents. So every genome is made again from the journal and the experts.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.algorithms.cycleqd import CycleQDState
from cycleqd_jax.algorithms.plain_qd import PlainQDState
from cycleqd_jax.algorithms.selection import extra_scores
from cycleqd_jax.config import RunConfig, SandboxConfig, load_config, read_yaml, to_dict
from cycleqd_jax.evaluation import GenomeEvaluator
from cycleqd_jax.files import load_json, make_folder, write_bytes, write_json
from cycleqd_jax.individual import Individual
from cycleqd_jax.runs.devices.groups import Space
from cycleqd_jax.runs.extension.restriction import Restriction
from cycleqd_jax.runs.folder.migrations import read_inputs
from cycleqd_jax.runs.folder.replay import rebuilt, replay, total_individuals
from cycleqd_jax.schema import SCHEMA, check_schema
from cycleqd_jax.search import Carried, Journal, tree_digest
from cycleqd_jax.types import Genome, InputError, TokenCounts
from cycleqd_jax.version import __version__

__all__ = ["Origin", "compare_origin", "differences", "open_origin", "read_finished", "take_origin"]

_KEPT = ("config.yaml", "inputs.json", "history.jsonl")
"""The files of the old run that are copied into the folder ``origin`` of the new one."""

_SAME = (
    "genome",
    "seed",
    "search.method",
    "search.batch_size",
    "model.dtype",
    "model.tokenizer",
    "model.vocab_size",
    "engine.max_len",
    "engine.overflow",
    "engine.kv_cache_dtype",
    *(f"sandbox.{one.name}" for one in dataclasses.fields(SandboxConfig) if one.name != "workers"),
)
"""Keys that decide about genomes, ids and scores: they are those of the old run."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """A finished run with whose individuals another one begins.

    Attributes:
        folder: with its config, its inputs and its journal.
        config: the config of the old run.
        journal: the journal of the old run.
        new: the config of the new run.
    """

    folder: Path
    config: RunConfig
    journal: Journal
    new: RunConfig

    @property
    def generations(self) -> int:
        """The number of complete generations of the old run; a budget may have cut the last one short."""
        children = len(self.journal) - len(self.config.expert_names)
        return children // self.config.search.batch_size

    @property
    def left_out(self) -> int:
        """The number of children in a generation that is not complete."""
        return (len(self.journal) - len(self.config.expert_names)) % self.config.search.batch_size

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """The tasks that both runs have."""
        return tuple(name for name in self.new.task_names if name in self.config.task_names)

    @property
    def new_tasks(self) -> tuple[str, ...]:
        """The tasks that only the new run has."""
        return tuple(name for name in self.new.task_names if name not in self.config.task_names)

    @property
    def new_experts(self) -> tuple[str, ...]:
        """The names of the experts that only the new run has."""
        return tuple(name for name in self.new.expert_names if name not in self.config.expert_names)

    @functools.cached_property
    def elites(self) -> frozenset[int]:
        """The ids of the children in the archives of the old run."""
        state = replay(self.config, self.journal, self.generations).state
        assert isinstance(state, CycleQDState | PlainQDState)
        repertoire = state.archives.repertoires if isinstance(state, CycleQDState) else state.repertoire
        held = np.asarray(repertoire.fitnesses[..., 0] > -np.inf)
        found = np.asarray(extra_scores(repertoire)["id"])[held]
        return frozenset(found[found >= len(self.config.expert_names)].tolist())

    def new_id(self, identity: int) -> int:
        """The id in the new run of an individual of the old one; -1 stays."""
        experts = len(self.config.expert_names)
        if identity < 0:
            return identity
        if identity < experts:
            return self.new.expert_names.index(self.config.expert_names[identity])
        return identity - experts + len(self.new.expert_names)

    def record(self, identity: int) -> Individual:
        """An individual of the old run as the new run records it, without a digest; see :class:`Carried`."""
        old = self.journal[identity]
        is_scored = old.scores is not None and (old.expert is not None or identity in self.elites)
        first, second = (self.new_id(parent) for parent in old.parents)
        return dataclasses.replace(
            old,
            id=self.new_id(identity),
            parents=(first, second),
            digest=None,
            scores={task: old.scores[task] for task in self.common_tasks} if is_scored and old.scores is not None else None,
            items={task: old.items[task] for task in self.common_tasks if task in old.items} if is_scored else {},
            evaluated=None,
            seconds={},
            tokens=dataclasses.asdict(TokenCounts()),
        )

    def experts(self) -> list[Individual]:
        """The experts that both runs have, ascending ids."""
        return sorted((self.record(k) for k in range(len(self.config.expert_names))), key=lambda one: one.id)

    def children(self, space: Space) -> Iterator[tuple[Individual, Genome]]:
        """Yields the children with their digests and their genomes; see :class:`Carried`.

        Args:
            space: the genome space of the new run.

        Raises:
            InputError: a genome is not the one that the old run recorded.
        """
        experts, size = len(self.config.expert_names), self.config.search.batch_size
        ids = range(experts + self.generations * size)
        names = self.new.expert_names
        restrict = Restriction(space, [names.index(name) for name in self.config.expert_names], self.journal)
        for identity, genome in rebuilt(space, self.journal, names, ids, restrict):
            if identity >= experts:
                yield dataclasses.replace(self.record(identity), digest=tree_digest(genome)), genome

    def carried(self, space: Space, evaluator: GenomeEvaluator | None) -> Carried:
        """What a search needs to begin with these individuals.

        Args:
            space: the genome space of the new run.
            evaluator: scores genomes on the tasks that only the new run has; None where there are none.

        Raises:
            InputError: the new run has no journal yet, and a genome is not the one that the old run recorded.
        """
        if not (self.new.folder / "history.jsonl").exists():
            collections.deque(self.children(space), maxlen=0)  # before anything is evaluated or recorded
        children = functools.partial(self.children, space)
        return Carried(self.generations, self.config.search.batch_size, self.experts(), children, evaluator)


def read_finished(folder: Path) -> tuple[RunConfig, Journal]:
    """Reads a run that another run may begin with.

    Args:
        folder: its folder.

    Raises:
        InputError: it is not a run folder, its search is not finished or has no archives, or it is of another version.
    """
    file = folder / "config.yaml"
    if not file.is_file() or not (folder / "history.jsonl").is_file():
        raise InputError(f"expected the folder of a finished run with config.yaml and history.jsonl, got {folder}; correct it")
    tree = read_yaml(file, "the config of a run")
    schema = check_schema(tree, file)
    config = load_config(file)
    version = (tree.get("versions") or {}).get("cycleqd_jax")
    if schema != SCHEMA or version != __version__:
        raise InputError(
            f"expected a run of cycleqd_jax {__version__} and schema {SCHEMA}, whose scores compare with new ones, got version "
            f"{version} and schema {schema} in {file}; use the version of that run"
        )
    if config.search.method not in ("cycleqd", "qd"):
        raise InputError(
            f"expected a run with search.method cycleqd or qd, whose archives are carried over, got {config.search.method} in "
            f"{file}; give another run"
        )
    journal = Journal(folder / "history.jsonl", read_only=True)
    total = total_individuals(config, journal)
    if len(journal) != total or journal.torn:
        raise InputError(
            f"expected a finished search of {total} individuals, got {len(journal)} in {journal.path}; finish it first, with "
            "cycleqd evolve"
        )
    return config, journal


def open_origin(new: RunConfig, folder: Path) -> Origin | None:
    """The run with whose individuals a run begins; None where it begins with the experts alone.

    Args:
        new: the config of the new run.
        folder: its folder. Once it has a journal, the old run is read from its folder ``origin``.

    Raises:
        InputError: the old run can't be used, differs from the config in what decides about genomes and scores, or its copy was
            changed.
    """
    if new.origin is None:
        return None
    place = folder / "origin" if (folder / "history.jsonl").exists() else Path(new.origin)
    if place.name == "origin" and place.parent == folder:
        _check_copy(place)
    config, journal = read_finished(place)
    origin = Origin(place, config, journal, new)
    _check_same(origin)
    return origin


def _check_copy(place: Path) -> None:
    file = place / "origin.json"
    try:
        tree = load_json(file)
        check_schema(tree, file)
        expected = {name: str(tree["files"][name]) for name in _KEPT}
        found = {name: _sha256(place / name) for name in _KEPT}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"expected the digests of a run in {file}, got {type(error).__name__} {error}; restore it") from error
    for name in _KEPT:
        if found[name] != expected[name]:
            raise InputError(
                f"expected {name} with digest {expected[name]:.16}, as when this run began, got {found[name]:.16} in {place}; "
                "restore the file"
            )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_same(origin: Origin) -> None:
    """Raises where the configs differ in what decides about genomes and scores."""
    old, new = to_dict(origin.config), to_dict(origin.new)
    pairs = [(key, _at(old, key), _at(new, key)) for key in _SAME]
    tasks = {task["name"]: task for task in old["tasks"]}
    pairs += [(f"tasks.{one['name']}", tasks[one["name"]], one) for one in new["tasks"] if one["name"] in tasks]
    for key, before, now in pairs:
        if before != now:
            raise InputError(
                f"expected {key} {before}, as in the run in {origin.folder} with whose individuals this one begins, got {now}; "
                "use the old value"
            )
    missing = [name for name in origin.config.expert_names if name not in origin.new.expert_names]
    if missing:
        raise InputError(
            f"expected all experts of the run in {origin.folder}, got none for {missing[0]!r}; add it to model.experts or "
            "model.others"
        )
    if not origin.common_tasks:
        raise InputError(f"expected a task of the run in {origin.folder}, got none of {', '.join(tasks)}; keep one of them")
    if origin.new.search.generations <= origin.generations:
        raise InputError(
            f"expected search.generations above the {origin.generations} of the run in {origin.folder}, got "
            f"{origin.new.search.generations}; increase it"
        )
    carried = len(origin.new.expert_names) + origin.generations * origin.config.search.batch_size
    budget = origin.new.search.budget
    if budget is not None and budget <= carried:
        raise InputError(
            f"expected search.budget above {carried}, the experts and the children of the run in {origin.folder}, got "
            f"{budget}; increase it"
        )


def _at(tree: Mapping[str, Any], key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), tree)


def compare_origin(origin: Origin, inputs: Mapping[str, str]) -> None:
    """Compares the models and problems that both runs have.

    Args:
        origin: the old run.
        inputs: digests of the new run's models and problems, by name.

    Raises:
        InputError: the base, an expert, the tokenizer or the train problems of a task are others.
    """
    file = origin.folder / "inputs.json"
    if not file.is_file():
        raise InputError(f"expected the digests of the run's models in {file}, got no such file; restore it")
    before = read_inputs(file)
    wanted = {"base": before.get("prepared_base", before.get("base"))}
    wanted |= {name: before.get(name) for name in (f"expert/{one}" for one in origin.config.expert_names)}
    wanted |= {name: before.get(name) for name in ("tokenizer", *(f"{task}/train" for task in origin.common_tasks))}
    for name, value in wanted.items():
        if inputs.get(name) != value:
            raise InputError(
                f"expected {name} with digest {value}, as in the run in {origin.folder} that is extended, got "
                f"{inputs.get(name)}; restore it"
            )


def differences(origin: Origin, journal: Journal) -> Iterator[str]:
    """Yields what differs between the individuals of the old run and those that the journal of the new one has of it.

    Args:
        origin: the old run.
        journal: the journal of the new run; individuals that it does not have yet are left out.
    """
    experts = len(origin.config.expert_names)
    for identity in range(experts + origin.generations * origin.config.search.batch_size):
        expected = origin.record(identity)
        found = journal.get(expected.id)
        if found is None:
            continue
        for name in ("generation", "expert", "active", "parents", "omega", "key"):
            if getattr(found, name) != getattr(expected, name):
                yield (
                    f"expected {name} {getattr(expected, name)} of individual {found.id}, as in {origin.folder}, got "
                    f"{getattr(found, name)} in {journal.path}; restore the file"
                )
        if expected.scores is None:
            agrees = found.scores is None and found.error == expected.error
        else:
            agrees = found.scores is None or all(
                (found.scores.get(task), [*found.items.get(task, ())]) == (score, [*expected.items.get(task, ())])
                for task, score in expected.scores.items()
            )
        if not agrees:
            yield (
                f"expected the scores of individual {found.id} on {', '.join(origin.common_tasks)} as in {origin.folder}, got "
                f"others in {journal.path}; restore the file"
            )


def take_origin(new: RunConfig, folder: Path, inputs: Mapping[str, str], log: Callable[[str], None]) -> Origin | None:
    """Opens the old run when the search begins; its files are copied into the folder of the new one before that has a journal.

    Args:
        new: the config of the new run.
        folder: its folder.
        inputs: digests of its models and problems, by name.
        log: called with a line where children are left out.

    Raises:
        InputError: see :func:`open_origin` and :func:`compare_origin`.
        OSError: the disk refuses.
    """
    origin = open_origin(new, folder)
    if origin is None:
        return None
    compare_origin(origin, inputs)
    if not (folder / "history.jsonl").exists():
        _copy(origin, folder / "origin")
    if origin.left_out:
        log(f"the last {origin.left_out} children of the run in {origin.folder} are left out: their generation is incomplete")
    return origin


def _copy(origin: Origin, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    make_folder(place)
    for name in _KEPT:
        write_bytes(place / name, (origin.folder / name).read_bytes())
    files = {name: _sha256(place / name) for name in _KEPT}
    write_json(place / "origin.json", {"schema": SCHEMA, "run": str(origin.new.origin), "files": files})
