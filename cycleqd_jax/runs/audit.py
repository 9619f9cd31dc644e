"""Whether the files of a run folder agree: journal, grid, checkpoints, archives, tables and exported models."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from cycleqd_jax import report
from cycleqd_jax.config import RunConfig, load_config
from cycleqd_jax.files import digest
from cycleqd_jax.models.files import hub
from cycleqd_jax.report.read import load_items, load_results, load_selection
from cycleqd_jax.runs.folder import folder_digest
from cycleqd_jax.runs.origin import Origin, differences, open_origin
from cycleqd_jax.runs.replay import replay, total_individuals
from cycleqd_jax.runs.searchers import grid_of
from cycleqd_jax.runs.wanted import recorded_folders
from cycleqd_jax.schema import check_schema
from cycleqd_jax.search import Journal, StoredState, checkpoint_steps, read_checkpoint, tree_digest
from cycleqd_jax.search.checkpoint import SCHEMA
from cycleqd_jax.types import InputError

__all__ = ["Audit", "run_digest", "verify_run"]

ROUNDING = 1e-9
"""The largest difference between a stored mean and a computed one. A sum in another order is rounded in another way."""


@dataclasses.dataclass
class Audit:
    """What :func:`verify_run` has found.

    Attributes:
        checked: what was checked.
        notes: what is no disagreement, but worth knowing.
        problems: the disagreements: what was expected, what is there, in which file, and what to do.
    """

    checked: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def expect(self, agrees: bool, problem: str) -> None:
        """Adds a problem where something does not agree."""
        if not agrees:
            self.problems.append(problem)


def verify_run(folder: str | Path) -> Audit:
    """Checks that the files of a run folder agree. The run may go on meanwhile.

    The journal is replayed, and its archives are compared with every checkpoint. The genomes in the checkpoints are compared
    with the digests in the journal.

    Raises:
        InputError: the folder is no run folder.
    """
    path, audit = report.open_run(folder).path, Audit()
    steps = checkpoint_steps(path / "checkpoints")  # before the journal, which may grow meanwhile
    try:
        config = load_config(path / "config.yaml")
        journal = Journal(path / "history.jsonl", read_only=True)
    except InputError as error:
        audit.problems.append(str(error))
        return audit
    if journal.torn:
        audit.notes.append(
            f"note: {journal.path} ends with an incomplete line, which a process writes or a crash has left; the next start "
            "removes it"
        )
    origin = _check_origin(path, config, journal, audit)
    _check_journal(config, journal, audit, 0 if origin is None else origin.generations)
    if not audit.problems:  # nothing else can be compared with a damaged journal
        _check_grid(path, config, journal, audit)
        _check_checkpoints(path, config, journal, steps, audit)
    _check_tables(path, journal, audit)
    _check_exports(path, len(journal), audit)
    _check_models(path, config, audit)
    return audit


def run_digest(folder: str | Path) -> str:
    """One SHA-256 of a run: its individuals without their costs, its archives, and the state in the newest checkpoint.

    Runs of equal configs on equal machines have equal digests, however often they were killed and resumed. Commands near
    their time limit are an exception: their verdict depends on the load of the machine.

    Raises:
        InputError: the folder is no run folder, or its journal or newest checkpoint is damaged.
    """
    path = report.open_run(folder).path
    steps = checkpoint_steps(path / "checkpoints")
    config, journal = load_config(path / "config.yaml"), Journal(path / "history.jsonl", read_only=True)
    left_out = ("seconds", "tokens", "checksum")  # earlier versions wrote no checksums
    individuals = [{k: v for k, v in json.loads(journal[i].to_json()).items() if k not in left_out} for i in journal.ids()]
    complete = all(journal.get(k) is not None for k in range(len(config.expert_names)))
    archives = tree_digest(replay(config, journal).state, digits=64) if complete else None
    state = None
    if steps:
        stored = read_checkpoint(path / "checkpoints", steps[-1])
        state = [steps[-1], tree_digest({"state": stored.state, "key": stored.key_data}, digits=64)]
    return digest({"individuals": individuals, "archives": archives, "state": state})


# Journal and grid


def _check_origin(path: Path, config: RunConfig, journal: Journal, audit: Audit) -> Origin | None:
    """Compares the individuals of another run, with which this one begins, with the copy of its journal."""
    try:
        origin = open_origin(config, path)
    except (InputError, OSError) as error:
        audit.problems.append(str(error))
        return None
    if origin is None:
        return None
    audit.checked.append(f"the individuals of {config.origin}")
    audit.problems += differences(origin, journal)
    return origin


def _check_journal(config: RunConfig, journal: Journal, audit: Audit, carried: int) -> None:
    ids, total = journal.ids(), total_individuals(config, journal)
    audit.checked.append(f"the journal ({len(ids)} individuals)")
    audit.expect(
        len(ids) <= total,
        f"expected at most {total} individuals, as config.yaml says, got {len(ids)} in {journal.path}; restore one of them",
    )
    count, size = len(config.expert_names), config.search.batch_size
    whole = _last_complete(ids, count, size)
    missing = sorted(set(range(whole)) - set(ids))
    pending = bool(ids) and ids[-1] < count + carried * size  # individuals of the other run may follow
    if missing and missing[0] >= count and pending:
        audit.notes.append(
            f"note: {len(missing)} individuals of {config.origin} are not in {journal.path} yet; the run evaluates them again"
        )
        missing = []
    audit.expect(
        not missing,
        f"expected every individual before the last generation, got none of {missing[:5]} in {journal.path}; restore the file",
    )
    for identity in ids:
        for problem in _problems_of(journal[identity], config, journal, carried, pending):
            audit.problems.append(f"{problem} of individual {identity} in {journal.path}; restore the file")
    old = sum(journal[identity].digest is None for identity in ids)
    if old:
        audit.notes.append(f"note: {old} individuals in {journal.path} have no digest of their genome, which is not checked")


def _last_complete(ids: Sequence[int], count: int, size: int) -> int:
    """How many ids must be there without a gap: those before the generation of the last one."""
    if not ids:
        return 0
    return 0 if ids[-1] < count else count + (ids[-1] - count) // size * size


def _problems_of(one: Any, config: RunConfig, journal: Journal, carried: int, pending: bool) -> Iterator[str]:
    """What is wrong with an individual, each as ``expected X, got Y``.

    Children of generations before ``carried`` are those of another run. While some of them are ``pending``, parents may be
    missing.
    """
    names, count, size = config.task_names, len(config.expert_names), config.search.batch_size
    if one.id < count:
        if (one.expert, one.generation) != (config.expert_names[one.id], -1):
            yield f"expected expert {config.expert_names[one.id]!r} in generation -1, got {one.expert!r} in {one.generation}"
    else:
        generation = (one.id - count) // size
        if one.expert is not None or one.generation != generation:
            yield f"expected a child of generation {generation}, got expert {one.expert!r} in generation {one.generation}"
        before = generation if one.asked is None else one.asked[0]  # generations that were inserted when it was made
        task = names[before % len(names)]
        if config.search.method == "cycleqd" and generation >= carried and one.active != task:
            yield f"expected the active task {task!r}, got {one.active!r}"
        for parent in one.parents:
            if parent >= count + before * size or (parent >= 0 and not pending and journal.get(parent) is None):
                yield f"expected parents of earlier generations, got parent {parent}"
    if one.scores is None:
        stopped = one.evaluated is not None and one.id >= count and config.search.racing is not None
        if one.error is None and not stopped and (one.id < count or one.generation >= carried):
            yield "expected scores or an error, got neither"
        for task, places in (one.evaluated or {}).items():
            size = len(journal[0].items.get(task, ())) if journal.get(0) is not None else 0
            if len(one.items.get(task, ())) != len(places) or [*places] != sorted({*places} & {*range(size)}):
                yield f"expected a score for each of ascending positions below {size} of {task}, got others"
        return
    if one.evaluated is not None:
        yield "expected no positions of problems beside scores, which are of all problems, got some"
    if one.scores.keys() != set(names):
        yield f"expected scores of {', '.join(names)}, got scores of {', '.join(one.scores)}"
        return
    for task in names:
        if one.items.get(task):
            mean = statistics.fmean(one.items[task])
            if not math.isclose(one.scores[task], mean, rel_tol=0, abs_tol=ROUNDING):
                yield f"expected the score {mean} of {task}, the mean of its problems, got {one.scores[task]}"


def _check_grid(path: Path, config: RunConfig, journal: Journal, audit: Audit) -> None:
    file, names = path / "grid.json", config.task_names
    count = len(config.expert_names)
    if any(journal.get(k) is None for k in range(count)):
        return
    if not file.exists():
        audit.notes.append(f"note: {file} is not there; cycleqd evolve writes it")
        return
    scores = np.asarray([journal.scores(k, names) for k in range(count)], np.float32)
    try:
        found = json.loads(file.read_text("utf-8"))
        if isinstance(found, dict) and check_schema(found, file) > 0:
            del found["schema"]
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__} {error}"
    audit.checked.append("the grid")
    audit.expect(
        found == json.loads(json.dumps(grid_of(config, scores))),
        f"expected the grid that the scores of the experts give, got another one in {file}; remove it, and run cycleqd evolve",
    )


# Checkpoints and archives


def _check_checkpoints(path: Path, config: RunConfig, journal: Journal, steps: Sequence[int], audit: Audit) -> None:
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
    ours = dict(_leaves(flax.serialization.to_state_dict(found.state)))
    theirs = dict(_leaves(stored.state))
    skipped = () if found.exact else ("genotypes", "genomes")
    for name in sorted(ours.keys() | theirs.keys()):
        if set(name.split("/")) & set(skipped):
            continue
        if name not in ours or name not in theirs or not _equal(ours[name], theirs[name]):
            yield f"expected the archives and the state that the journal gives, got another {name}"
            return
    yield from _genome_problems(stored.state, journal)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(node, Mapping):
        for name, item in node.items():
            yield from _leaves(flax.serialization.to_state_dict(item), f"{path}/{name}" if path else str(name))
    elif node is not None:
        yield path, np.asarray(node)


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


# Tables, exported models and inputs


def _check_tables(path: Path, journal: Journal, audit: Audit) -> None:
    again = "remove it, and run cycleqd evaluate"
    try:
        results, items, selection = load_results(path), load_items(path), load_selection(path)
    except InputError as error:
        audit.problems.append(str(error))
        return
    if results is not None:
        file = path / "tables" / "results.json"
        audit.checked.append("the tables")
        for method, splits in items.items():
            for split, tasks in splits.items():
                shown = results["methods"].get(method, {}).get(split, {})
                wrong = [t for t, scores in tasks.items() if not _is_mean(shown.get(t), scores)]
                audit.expect(
                    not wrong,
                    f"expected the means of items.json for {method} on {split}, got others of {wrong} in {file}; {again}",
                )
        named = [
            results.get("best_elite"),
            results.get("selected", {}).get("id"),
            *results.get("aggregate", {}).get("elites", []),
        ]
        unknown = [identity for identity in named if identity is not None and journal.get(identity) is None]
        audit.expect(not unknown, f"expected individuals of the journal, got {unknown[:5]} in {file}; {again}")
    if selection is not None:
        file = path / "tables" / "selection.json"
        audit.checked.append("the selection")
        alive = [one for one in selection["candidates"] if one["scores"] is not None]
        wrong = [
            one["ids"] for one in alive for t, scores in one["items"].items() if not _is_mean(one["scores"].get(t), scores)
        ]
        audit.expect(not wrong, f"expected the means of items, got others for the candidates {wrong[:3]} in {file}; {again}")
        unknown = [i for one in selection["candidates"] for i in one["ids"] if journal.get(i) is None]
        audit.expect(not unknown, f"expected individuals of the journal, got {unknown[:5]} in {file}; {again}")
        chosen = [one for one in alive if {"kind": one["kind"], "ids": one["ids"]} == selection["chosen"]]
        best = max((one["average"] for one in alive), default=math.nan)
        audit.expect(
            bool(chosen) and chosen[0]["average"] >= best - ROUNDING,
            f"expected the best candidate to be chosen, got {selection['chosen']} in {file}; {again}",
        )


def _is_mean(score: float | None, items: Sequence[float]) -> bool:
    return score is not None and bool(items) and math.isclose(score, statistics.fmean(items), rel_tol=0, abs_tol=ROUNDING)


def _check_exports(path: Path, individuals: int, audit: Audit) -> None:
    known = set()
    for file in sorted((path / "exports").glob("*.json")):
        try:
            record = json.loads(file.read_text("utf-8"))
            folder, expected = path / str(record["folder"]), str(record["digest"])
        except (ValueError, KeyError, TypeError) as error:
            audit.problems.append(
                f"expected folder and digest of an exported model, got {type(error).__name__} {error} in {file}; remove it, "
                "and export the model again"
            )
            continue
        known.add(folder)
        if not folder.exists():
            audit.notes.append(f"note: {folder} was exported, and is not there any more")
            continue
        before = record.get("individuals", individuals)  # earlier versions did not record it
        if before != individuals and folder.parent == path:  # those in exports/ may be of any individual
            audit.notes.append(
                f"note: {folder} was exported when the journal had {before} individuals, and it has {individuals} now; run "
                "cycleqd export to choose among all of them"
            )
        found = folder_digest(folder)
        audit.checked.append(f"{folder.name}/")
        audit.expect(
            found == expected, f"expected the exported model with digest {expected}, got {found} in {folder}; export it again"
        )
    for name in ("model", "best_elite"):
        if (path / name).exists() and path / name not in known:
            audit.notes.append(f"note: {path / name} was exported by a version that recorded no digest, and is not checked")


def _check_models(path: Path, config: RunConfig, audit: Audit) -> None:
    """Base and experts, where they are on this machine."""
    given = [config.model.base, config.model.tokenizer, *config.given_experts.values()]
    remote = [str(name) for name in given if name is not None and not os.path.exists(name) and hub.is_repository(name)]
    if not (path / "inputs.json").exists():
        audit.notes.append(f"note: {path / 'inputs.json'} is not there, so base and experts are not checked")
    elif remote:
        audit.notes.append(f"note: {', '.join(remote)} are repositories of the hub, which are not downloaded to be checked")
    else:
        try:
            recorded_folders(dataclasses.replace(config, output=str(path)))
            audit.checked.append("base and experts")
        except (InputError, OSError) as error:
            audit.problems.append(str(error))
