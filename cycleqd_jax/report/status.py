"""The state of a run, read from its folder alone. Reading takes no lock, so the run may go on meanwhile."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.files import is_locked, without_nan
from cycleqd_jax.individual import Individual, expected_individuals
from cycleqd_jax.report.folder import RunFolder
from cycleqd_jax.report.history import load_grid, load_history, load_individuals
from cycleqd_jax.report.metrics import compute_metrics
from cycleqd_jax.report.read import load_engine, load_results, load_selection, load_workers
from cycleqd_jax.report.stage import span
from cycleqd_jax.types import InputError

__all__ = ["Status", "read_status", "status_json", "status_text"]

RECENT = 50
"""The pace is computed from at most this many individuals."""

SHOWN = 5
"""Quarantined individuals in the text."""


@dataclasses.dataclass(frozen=True)
class Status:
    """The state of a run: its stage, progress, archives and failures.

    Attributes:
        folder: the run folder.
        method: the search method.
        stage: the first stage that is not finished: ``train``, ``evolve``, ``select``, ``evaluate``, ``export`` or ``report``;
            ``finished`` where none is left.
        running: whether a process uses the folder.
        generation: the newest generation of an evaluated individual; -1 for experts or none.
        generations: how many there will be.
        individuals: how many have been evaluated, the experts included.
        total: how many there will be.
        archives: ``coverage``, ``qd_score`` and ``best`` (quality) of every archive by task; empty before all experts have been
            evaluated.
        best: ``id`` and ``average`` of the best individual; None while there is none.
        quarantined: ``id``, ``generation`` and ``error`` of every quarantined individual.
        halved: ``configured`` and ``slots`` where the memory has run out and the slots were halved; else None.
        slots_key: the key of the config that gives the slots: ``engine.slots``, or ``masks.batch_size`` of a run of images.
        workers: the records of the workers on a cluster (``workers.json``), those of the newest start with a cluster; empty
            where no start had one.
        per_hour: individuals per hour, from the seconds of the last ones and the number of device groups, or of workers that
            evaluate while a process is running it; NaN while unknown.
        seconds_left: the seconds that the search still needs at this pace; NaN while unknown.
        idle_seconds: seconds since the journal has changed; NaN without a journal.
    """

    folder: Path
    method: str
    stage: str
    running: bool
    generation: int
    generations: int
    individuals: int
    total: int
    archives: Mapping[str, Mapping[str, float]]
    best: Mapping[str, float] | None
    quarantined: Sequence[Mapping[str, Any]]
    halved: Mapping[str, int] | None
    slots_key: str
    workers: Sequence[Mapping[str, Any]]
    per_hour: float
    seconds_left: float
    idle_seconds: float


def read_status(folder: str | Path) -> Status:
    """Reads the state of a run.

    Raises:
        InputError: the folder is not a run folder, or its config, journal or grid is damaged.
    """
    run = RunFolder(folder)
    path, config = run.path, run.config
    tasks, experts, generations, size, population = _sizes(config, path)
    running = is_locked(path / ".lock")  # before the files are read: a run that ends in between is not lost
    has_grid = load_grid(path) is not None
    history = load_history(path)
    individuals = load_individuals(path, tasks)[0] if history is None else history.individuals
    total = _total(config, experts, generations, size, individuals)
    archives: dict[str, dict[str, float]] = {}
    if has_grid and history is not None and individuals:
        metrics = compute_metrics(history)
        for k, task in enumerate(history.grid.tasks):
            found = {name: float(getattr(metrics, name)[-1, k]) for name in ("coverage", "qd_score", "best")}
            archives[task] = found
    alive = [one for one in individuals if one.scores is not None]
    averages = [float(np.mean([one.scores[task] for task in tasks])) for one in alive if one.scores is not None]
    leader = int(np.argmax(averages)) if averages else -1
    seconds = [sum(one.seconds.values()) for one in individuals[-RECENT:] if one.seconds]
    workers = newest_start(load_workers(path))
    if running:
        population = sum(one["state"] in ("idle", "busy") for one in workers) or population
    pace = population / float(np.mean(seconds)) if seconds and sum(seconds) > 0 else math.nan
    journal = path / "history.jsonl"
    return Status(
        folder=path,
        method=str(config.get("search", {}).get("method", "cycleqd")),
        stage=_stage(path, config, len(individuals), total),
        running=running,
        generation=max((one.generation for one in individuals), default=-1),
        generations=generations,
        individuals=len(individuals),
        total=total,
        archives=archives,
        best=None if leader < 0 else {"id": alive[leader].id, "average": averages[leader]},
        quarantined=[
            {"id": one.id, "generation": one.generation, "error": one.error} for one in individuals if one.error is not None
        ],
        halved=load_engine(path),
        slots_key="masks.batch_size" if config["tasks"][0].get("kind") == "segmentation" else "engine.slots",
        workers=workers,
        per_hour=3600 * pace,
        seconds_left=max(total - len(individuals), 0) / pace,
        idle_seconds=max(time.time() - journal.stat().st_mtime, 0.0) if journal.exists() else math.nan,
    )


def newest_start(workers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those records of workers that belong to the newest start of the run."""
    return [one for one in workers if one["start"] == workers[-1]["start"]]


def _sizes(config: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], int, int, int, int]:
    """Tasks, number of experts, generations, children per generation, and children that are evaluated at the same time."""
    try:
        search = config["search"]
        tasks = tuple(str(task["name"]) for task in config["tasks"])
        experts = len(tasks) + len(config.get("model", {}).get("others") or {})
        size, generations = int(search["batch_size"]), int(search["generations"])
        groups = int(config.get("mesh", {}).get("population", 1))
        together = int(config.get("engine", {}).get("population", 1))
        if not tasks or size < 1 or generations < 0:
            raise ValueError(f"{len(tasks)} tasks, batch_size {size} and {generations} generations")
        for name in ("budget", "budget_items"):
            if search.get(name) is not None and not (type(search[name]) is int and search[name] > 0):
                raise ValueError(f"{name} {search[name]!r}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"expected tasks and search of a run in {path / 'config.yaml'}, got {type(error).__name__} {error}; restore the "
            "file from the run that wrote it"
        ) from error
    most = groups if search.get("steady") else max(math.ceil(size / max(together, 1)), 1)
    return tasks, experts, generations, size, min(groups, most) if groups > 0 else 1


def _total(config: Mapping[str, Any], experts: int, generations: int, size: int, individuals: Sequence[Individual]) -> int:
    """How many individuals the run evaluates; with racing and a budget of problems, if no further child stops."""
    search = config["search"]
    limits = [experts + generations * size]
    limits += [search["budget"]] if search.get("budget") is not None else []
    if search.get("budget_items") is not None and individuals and individuals[0].items:
        each = individuals[0].problem_count
        if search.get("racing") is None:
            limits.append(search["budget_items"] // each)
        else:
            used = [0, *itertools.accumulate(one.problem_count or each for one in individuals)]
            limits.append(expected_individuals(search["budget_items"], used, experts, size))
    return min(limits)


def _stage(path: Path, config: Mapping[str, Any], done: int, total: int) -> str:
    """The first stage that is not finished."""
    if done == 0:
        return "train"
    if done < total:
        return "evolve"
    selects = all(task.get("validation_size", 1) != 0 for task in config["tasks"])
    if load_results(path) is None:
        return "select" if selects and load_selection(path) is None else "evaluate"
    if not (path / "model" / "config.json").exists():
        return "export"
    return "finished" if (path / "report.html").exists() else "report"


def status_json(status: Status) -> dict[str, Any]:
    """The fields of a status for JSON; NaN becomes None."""
    return without_nan(dataclasses.asdict(status) | {"folder": str(status.folder)})


def status_text(status: Status) -> str:
    """A status as a few lines of text."""
    process = "a process is running it" if status.running else "no process is running it"
    state = "finished" if status.stage == "finished" else f"stage {status.stage}, {process}"
    done = max(status.generation + 1, 0)
    lines = [f"{status.folder}: {status.method}, {state}"]
    lines.append(
        f"  search        generation {done} of {status.generations}, {status.individuals} of {status.total} individuals"
    )
    if not math.isnan(status.per_hour):
        left = f", about {span(status.seconds_left)} left" if status.individuals < status.total else ""
        lines.append(f"  pace          {status.per_hour:.1f} individuals per hour{left}")
    if not math.isnan(status.idle_seconds):
        lines.append(f"  last result   {span(status.idle_seconds)} ago")
    if status.best is not None:
        lines.append(f"  best average  {status.best['average']:.3f} (individual {status.best['id']})")
    if status.archives:
        width = max(map(len, status.archives))
        lines.append(f"  {'archive':{width}}  coverage  QD score   best")
        for task, one in status.archives.items():
            best = "–" if math.isnan(one["best"]) else f"{one['best']:.3f}"
            lines.append(f"  {task:{width}}  {100 * one['coverage']:6.1f} %  {one['qd_score']:8.3f}  {best:>5}")
    if status.halved is not None:
        halved = f"{status.halved['configured']} → {status.halved['slots']}"
        lines.append(f"  memory        ran out; {status.slots_key} {halved}")
    if status.workers:
        lines.append(f"  workers       {_counts(status.workers)}")
        for one in status.workers:
            lines.append(f"    {one['id']} on {one['host'] or '–'}: {_worker_text(one)}")
    lines.append(f"  quarantined   {len(status.quarantined)} individuals")
    for one in status.quarantined[-SHOWN:]:
        lines.append(f"    {one['id']} (generation {one['generation']}): {one['error']}")
    return "\n".join(lines)


def _counts(workers: Sequence[Mapping[str, Any]]) -> str:
    """Such as ``"3 busy, 1 starting, 1 ended"``."""
    states = [one["state"] for one in workers]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _worker_text(one: Mapping[str, Any]) -> str:
    pace = "" if one["per_hour"] is None else f", {one['per_hour']:.1f} individuals per busy hour"
    lost = f", {one['lost']} evaluations lost" if one["lost"] else ""
    reason = f": {one['error']}" if one["error"] else ""
    return f"{one['state']}, {one['evaluated']} individuals{pace}{lost}{reason}"
