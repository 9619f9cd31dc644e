"""A comparison: one run for every method and seed at an equal budget, which share what is equal, and one table."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import yaml

from cycleqd_jax import report
from cycleqd_jax.config import SEGMENTATION, RunConfig, read_yaml, to_dict
from cycleqd_jax.files import check_writable, is_locked, locked, make_folder, write_text
from cycleqd_jax.report.comparison import ComparisonTable
from cycleqd_jax.report.stage import span
from cycleqd_jax.runs.comparison.methods import (
    SHARED_ROWS,
    Methods,
    check_methods,
    common_tree,
    method_config,
    read_methods,
    shared_rows,
)
from cycleqd_jax.runs.folder.run_folder import FREE, check_folder, flat, value_at
from cycleqd_jax.runs.inputs.digests import folder_digest
from cycleqd_jax.runs.inputs.images import images_digest
from cycleqd_jax.runs.results.rows import found_rows
from cycleqd_jax.runs.run import Run
from cycleqd_jax.types import InputError, Progress

__all__ = ["compare"]

_PLACES = ("output", "seed", "search.generations", *(FREE - set(SHARED_ROWS)))
"""Keys of the config that may change when a comparison continues."""

POLL_S = 5.0
"""Seconds between two polls of the runs of other processes."""

_Key = tuple[int, str]  # seed and method


def compare(
    config: RunConfig,
    methods: str | Path | Sequence[str],
    *,
    seeds: Sequence[int],
    budget: int | None = None,
    budget_items: int | None = None,
    output: str | Path | None = None,
    reference: str | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> ComparisonTable:
    """Runs several methods at an equal budget with several seeds, and compares the models that they find.

    Every method and seed is a run of its own in ``output/seed-S/METHOD``. Finished runs are kept, and a run that was killed
    continues. So the same call resumes a comparison, and a call with more seeds or methods computes only the missing runs. The
    runs of a seed have the same models and problems. The experts, the base, the baselines and the merges are evaluated in the
    first of them only. Where experts and files are given, all seeds share what does not depend on the seed.

    Several processes can work at one comparison, on one machine or on several with a shared file system whose ``flock`` holds
    for all of them: each call takes the next run that no other process has locked. It returns when all runs are finished.

    Tables and figures are written into ``output`` when all runs are finished; see :mod:`cycleqd_jax.report.comparison_files`.
    They show the methods and seeds of the call, and replace those of an earlier call.

    Example:
        >>> import cycleqd_jax as cq
        >>> config = cq.load_config("configs/quickstart.yaml")  # doctest: +SKIP
        >>> table = cq.compare(config, ["cycleqd", "cmaes"], seeds=[0, 1], budget=60)  # doctest: +SKIP
        >>> print(table.text())  # doctest: +SKIP

    Args:
        config: the config of all runs.
        methods: path of a file of methods, or names of search methods.
        seeds: the seeds, which replace the config's.
        budget: the most individuals that each run evaluates, the experts included. By default the config's ``search.budget``.
        budget_items: the most problems that the individuals of a run are scored on. By default ``search.budget_items``.
        output: the folder of the comparison; by default that of the config with ``-compare`` at its end.
        reference: the row that the others are compared with. By default that of the file of methods, or else the model of the
            first method that was selected on validation problems, or else its first row.
        progress: called by long stages; by default a progress bar.
        log: called with single lines.

    Returns:
        The table.

    Raises:
        InputError: methods, seeds, budgets or config are wrong, or the folder holds another comparison. Everything that can be
            known before is found before anything is trained or evaluated.
        InfraError: a sandbox is broken; the same call continues.
        FailuresError: too many individuals in a row could not be evaluated; the same call continues.
    """
    given = read_methods(methods)
    folder = Path(output or f"{config.folder}-compare")
    _check_seeds(seeds)
    common = common_tree(config, given, budget, budget_items)
    configs = {
        (seed, method.name): method_config(common, method, seed, folder / f"seed-{seed}" / method.name)
        for seed in seeds
        for method in given.methods
    }
    first = {method.name: configs[seeds[0], method.name] for method in given.methods}
    table = _table(given, first, seeds, reference or given.reference)
    check_writable(folder, "choose another --output")
    stated = _stated(common, given, config)
    _record(folder, stated)
    for one in configs.values():
        check_folder(one)
    check_methods(first)
    make_folder(folder)

    def write() -> None:
        record = _record(folder, stated)  # another process may have written another one
        text = yaml.safe_dump({**record, "table": table}, sort_keys=False, allow_unicode=True)
        write_text(folder / "comparison.yaml", text)

    with locked(folder / ".lock", wait=True):
        write()
    with report.ProgressBar() if progress is None or log is None else contextlib.nullcontext() as bar:
        _run_all(configs, progress or bar or _unused, log or (bar.log if bar else _unused))
    with locked(folder / ".lock", wait=True):
        write()
        return report.draw_comparison(folder)


def _unused(*_: Any) -> None: ...


def _run_all(configs: Mapping[_Key, RunConfig], progress: Progress, log: Callable[[str], None]) -> None:
    """Runs what is neither finished nor under way in another process, and waits for what is under way."""
    finished = {key for key, one in configs.items() if _is_finished(one)}
    own: set[_Key] = set()
    start, waits = time.monotonic(), False
    while len(finished) < len(configs):
        with _claimed(configs, finished) as key:
            if key is not None:
                seed, name = key
                pending = len(configs) - len(finished)
                left = f", about {span((time.monotonic() - start) / len(own) * pending)} left" if own else ""
                log(f"comparison: seed {seed}, {name} (run {len(finished) + 1} of {len(configs)}{left})")
                _run(configs, key, finished, progress, log)
                own.add(key)
                waits = False
        if key is None and not waits:
            log("comparison: waiting for the runs of other processes")
            waits = True
        if key is None:
            time.sleep(POLL_S)
        ended = {key for key, one in configs.items() if key not in finished and _is_finished(one)}
        for key in ended - own:
            check_folder(configs[key])  # another process may have had another config
        finished |= ended


@contextlib.contextmanager
def _claimed(configs: Mapping[_Key, RunConfig], finished: Set[_Key]) -> Iterator[_Key | None]:
    """The next run for this process, whose lock it holds; None if other processes hold the locks of all runs that may start.

    The first run of a seed gives the rows that its other runs share, so these begin when it is finished. Where models and
    problems do not depend on the seed, this is the first run of all.
    """

    def group(key: _Key) -> int | None:
        return None if _is_seedless(configs[key]) else key[0]

    begun = {group(key) for key in finished}
    seen: set[int | None] = set()
    for key in configs:
        if key in finished or not (group(key) in begun or group(key) not in seen):
            continue
        seen.add(group(key))
        folder = configs[key].folder.parent
        make_folder(folder)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder / f".{key[1]}.lock", wait=False))
            except InputError:  # another process works at it
                continue
            if not _is_finished(configs[key]):
                yield key
                return
            begun.add(group(key))  # another process has just finished it
    yield None


def _run(
    configs: Mapping[_Key, RunConfig], key: _Key, finished: Set[_Key], progress: Progress, log: Callable[[str], None]
) -> None:
    config = configs[key]
    places = {other: configs[other].folder for other in configs if other in finished}
    shared = [place for (seed, _), place in places.items() if seed == key[0] or _is_seedless(config)]
    shared.sort(key=lambda place: place.parent != config.folder.parent)  # runs of the same seed share more
    with Run(config, progress=progress, log=log, shared=next(iter(shared), None)) as run:
        if places:
            run.check_problems(next(iter(places.values())))
        run.train()
        run.evolve()
        run.evaluate()
    gc.collect()
    jax.clear_caches()  # a process may not hold the programs of many runs


def _is_seedless(config: RunConfig) -> bool:
    """Whether models and problems are given, so that they are the same for every seed."""
    return config.model.experts is not None and all(task.train is not None for task in config.tasks)


def _is_finished(config: RunConfig) -> bool:
    """Whether a run has its results, with the rows that the comparison asks for."""
    folder, here = config.folder, to_dict(config)
    if not (folder / "tables" / "results.json").exists() or not (folder / "history.jsonl").exists():
        return False
    there = read_yaml(folder / "config.yaml", "the config of a run")
    return all(there.get(key) == here[key] for key in SHARED_ROWS)


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds:
        raise InputError("expected at least one seed, got none; give --seeds 0 1 2")
    for seed in seeds:
        if seed < 0:
            raise InputError(f"expected seeds of at least 0, got {seed} in --seeds; correct it")
        if list(seeds).count(seed) > 1:
            raise InputError(f"expected every seed once, got {seed} {list(seeds).count(seed)} times in --seeds; remove one")


def _table(methods: Methods, configs: Mapping[str, RunConfig], seeds: Sequence[int], reference: str | None) -> dict[str, Any]:
    """What the table of the comparison has; see :func:`~cycleqd_jax.report.comparison_files.draw_comparison`.

    Args:
        methods: the methods.
        configs: the configs of one seed, by method.
        seeds: the seeds.
        reference: the row that the others are compared with.

    Raises:
        InputError: there is no row of the reference's name.
    """
    config = next(iter(configs.values()))
    shared, paper = shared_rows(config), methods.paper
    rows = [*shared, *(row for name, one in configs.items() for row in found_rows(one, name))]
    if reference is not None and reference not in rows:
        raise InputError(
            f"expected the reference to be a row of the table ({', '.join(rows)}), got {reference!r}; correct --reference"
        )
    if paper is not None and (paper.setting != config.name or {*paper.tasks} != {*config.task_names}):
        paper = None
    return {
        "title": methods.title,
        "seeds": list(seeds),
        "methods": [
            {"name": method.name, "search": configs[method.name].search.method, "label": method.label}
            for method in methods.methods
        ],
        "reference": reference,
        "rows": shared,
        "budgets": {"budget": config.search.budget, "budget_items": config.search.budget_items},
        "paper": None if paper is None else {row: dict(figures) for row, figures in paper.rows.items()},
        "setting": None if paper is None else paper.setting,
    }


def _stated(common: Mapping[str, Any], methods: Methods, config: RunConfig) -> dict[str, Any]:
    """What a call states about its comparison: the config, the methods, and digests of given files."""
    return {
        "config": dict(common),
        "methods": {
            method.name: dict(method.overrides) | ({"search.method": method.search} if method.search else {})
            for method in methods.methods
        },
        "inputs": _digests(config),
    }


def _record(folder: Path, here: dict[str, Any]) -> dict[str, Any]:
    """What ``comparison.yaml`` holds besides the table: what :func:`_stated` returns, and the methods of earlier calls.

    A comparison of which no run has scores, and at which no process works, may be replaced by another.

    Raises:
        InputError: the folder holds something else, or a comparison of another config, of other files, or with another method
            of a name.
    """
    file = folder / "comparison.yaml"
    if not file.exists():
        if folder.exists() and (found := sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))):
            raise InputError(
                f"expected a comparison or an empty place for the output {folder}, got a folder with {found[0]}; choose "
                "another --output"
            )
        return here
    there = read_yaml(file, "a comparison")
    try:
        before = flat(there["config"])
        named: dict[str, Any] = dict(there["methods"])
        digests: dict[str, Any] = dict(there["inputs"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"expected config, methods and inputs in {file}, got {type(error).__name__} {error}; restore the file, or choose "
            "another --output"
        ) from error
    if not any(folder.glob("seed-*/*/history.jsonl")) and not any(is_locked(path) for path in folder.glob("seed-*/.*.lock")):
        return here
    now = flat(here["config"])
    pairs = [(key, value_at(before, key), value_at(now, key)) for key in sorted(before.keys() | now.keys())]
    pairs = [pair for pair in pairs if not any(pair[0] == name or pair[0].startswith(f"{name}.") for name in _PLACES)]
    pairs += [(f"the method {name}", named.get(name, one), one) for name, one in here["methods"].items()]
    pairs += [(f"the digest of {name}", digests.get(name, one), one) for name, one in here["inputs"].items()]
    for what, old, new in pairs:
        if old != new:
            raise InputError(
                f"expected {what} to be {old!r}, as in the comparison in {folder}, got {new!r}; choose another --output, or "
                "continue with the old value"
            )
    return {**here, "methods": {**named, **here["methods"]}}


def _digests(config: RunConfig) -> dict[str, str]:
    """Digests of the files, image folders and model folders that a config names and this machine has, by key."""
    given: dict[str, str | None] = {"model.base": config.model.base, "model.tokenizer": config.model.tokenizer}
    given |= {f"model.experts.{name}": path for name, path in config.given_experts.items()}
    for task in config.tasks:
        given |= {f"tasks.{task.name}.{key}": getattr(task, key) for key in ("train", "test", "finetune")}
    cache = Path(config.cache)
    images = {f"tasks.{task.name}.train" for task in config.tasks if task.kind == SEGMENTATION}
    return {
        key: images_digest(path) if key in images else folder_digest(path, cache)
        for key, path in given.items()
        if path is not None and os.path.exists(path)
    }
