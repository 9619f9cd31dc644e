"""The config of a run that extends a finished one: by a task with its expert, or by leaving a task out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.config import RunConfig, load_config, to_dict
from cycleqd_jax.runs.extension.origin import open_origin, read_finished
from cycleqd_jax.runs.folder.models import recorded_folders
from cycleqd_jax.runs.folder.run_folder import check_folder
from cycleqd_jax.runs.run import Run
from cycleqd_jax.types import InputError, Progress

__all__ = ["extend"]


def extend(
    folder: str | Path,
    output: str | Path,
    *,
    task: str | None = None,
    expert: str | None = None,
    remove: str | None = None,
    generations: int | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> RunConfig:
    """Makes the config of a run that begins with the individuals of a finished one.

    The new run has a folder of its own, and the old one stays as it is. An expert that is not given is fine-tuned first, as the
    old config says. Running the config (:class:`~cycleqd_jax.runs.Run`) re-evaluates the elites of the old archives on the new
    task only, and continues the search. Once the new run has a journal, the finished run is read from the copy in its folder.
    So the same call continues although the old folder has changed or was removed.

    Args:
        folder: the folder of the finished run.
        output: the folder of the new run.
        task: the name of a new task; its other keys are given by overrides such as ``tasks.<name>.kind=mbpp``.
        expert: the expert of the new task, as in ``model.experts``; None fine-tunes it from the base.
        remove: the name of a task that the new run does not have. Its expert stays in the genomes, as one of ``model.others``.
        generations: further generations; None is as many as the old run had.
        overrides: the overrides of the new config.
        progress: called while an expert is trained.
        log: called with single lines while an expert is trained.

    Raises:
        InputError: the run is not finished, is of another version, or has models that are not there any more; the task is there
            already, or the task to be removed is not; or a key of the config can't be used, or differs from the old run in what
            decides about genomes and scores.
    """
    begun = _begun(Path(folder), Path(output))
    origin = str(folder) if begun is None else str(begun.origin)
    place = Path(folder) if begun is None else Path(output) / "origin"
    old, journal = read_finished(place)
    if task is None and remove is None:
        raise InputError("expected a task to add or a task to remove, got neither; give --task or --remove")
    if expert is not None and task is None:
        raise InputError(f"expected a new task with the expert {expert}, got none; give --task")
    if task in old.expert_names:
        raise InputError(
            f"expected a name that is none of {', '.join(old.expert_names)}, got --task {task}; give another name, and the "
            "kind as tasks.<name>.kind"
        )
    if remove is not None and remove not in old.task_names:
        raise InputError(f"expected a task of the run ({', '.join(old.task_names)}), got --remove {remove}; correct it")
    if Path(output).resolve() == Path(folder).resolve():
        raise InputError(f"expected another folder than that of the run, which stays as it is, got {output}; give another one")
    done = (len(journal) - len(old.expert_names)) // old.search.batch_size
    further = done if generations is None else generations
    if further < 1:
        raise InputError(f"expected at least one further generation, got {further}; correct --generations")
    tree = _with_models(dataclasses.replace(old, output=str(place)))
    tree |= {"name": f"{old.name}-extended", "output": str(output), "origin": origin}
    tree["search"] |= {"generations": done + further, "budget": None, "budget_items": None, "racing": None}
    tree["tasks"] = [one for one in tree["tasks"] if one["name"] != remove]
    if remove is not None:
        tree["model"]["others"] = {**(tree["model"]["others"] or {}), remove: tree["model"]["experts"].pop(remove)}
    if tree["search"]["bounds"] is not None:
        tree["search"]["bounds"].pop(remove, None)
    if task is not None:
        tree["tasks"].append({"name": task})
        known = None if begun is None else begun.given_experts.get(task)
        tree["model"]["experts"][task] = expert or known or tree["model"]["base"]  # the base until the expert is trained
    config = load_config(tree, overrides)
    check_folder(config)
    open_origin(config, config.folder)
    if task is not None and expert is None and known is None:
        tree["model"]["experts"][task] = _train(tree, task, overrides, progress, log)
    return load_config(tree, overrides)


def _begun(folder: Path, output: Path) -> RunConfig | None:
    """The config of the new run where it has a journal already, and with it a copy of the finished run; otherwise None."""
    file = output / "config.yaml"
    if not file.is_file() or not (output / "history.jsonl").exists():
        return None
    config = load_config(file)
    is_same = config.origin is not None and Path(config.origin).resolve() == folder.resolve()
    return config if is_same else None


def _with_models(old: RunConfig) -> dict[str, Any]:
    """The old config with explicit paths for all models, trained ones included."""
    folders, tree = recorded_folders(old), to_dict(old)
    model = tree["model"]
    given = old.model.base is not None and old.model.prepare is None
    experts = {name: old.given_experts.get(name) or str(folders.expert(name)) for name in old.expert_names}
    model["base"] = old.model.base if given else str(folders.base)
    model["experts"] = {name: experts[name] for name in old.task_names}
    model["prepare"] = None
    tree["baselines"] = []  # they are fine-tuned together with the experts
    return tree


def _train(
    tree: dict[str, Any],
    task: str,
    overrides: Sequence[str],
    progress: Progress | None,
    log: Callable[[str], None] | None,
) -> str:
    """Fine-tunes the expert of a task from the base; returns its folder."""
    model = {**tree["model"], "experts": None, "others": None}
    config = load_config({**tree, "model": model, "origin": None}, overrides)
    with Run(config, read_only=True, progress=progress, log=log) as run:
        return str(run.train_expert(task))
