"""Checks that concern several keys of a config; types and ranges of single keys are checked while it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cycleqd_jax.config.check_models import check_models, check_task_names
from cycleqd_jax.config.schema import SEGMENTATION, RunConfig
from cycleqd_jax.config.search import SearchConfig
from cycleqd_jax.types import MAX_CELLS, MIN_CMAES_POPULATION, InputError

__all__ = ["check_keys_together", "idle_groups", "unused_keys"]

_METHODS = {
    "groups": ("random", "cmaes", "nsga2"),
    "low": ("random", "nsga2"),
    "high": ("random", "nsga2"),
    "step": ("cmaes",),
    "population": ("nsga2", "dns"),
    "cells": ("cycleqd",),
    "neighbours": ("dns",),
    "descriptors": ("dns",),
    "selection": ("cycleqd", "qd"),
    "alpha_low": ("cycleqd", "qd"),
    "alpha_high": ("cycleqd", "qd"),
    "elite_span": ("cycleqd", "qd"),
    "racing": ("cycleqd", "qd"),
    "mu": ("cycleqd", "qd", "dns"),
    "sigma": ("cycleqd", "qd", "dns"),
}
"""The methods that use a key of ``search``; all methods use the others."""


RESERVED_NAMES = frozenset(
    [
        "active",
        "asked",
        "average",
        "cell",
        "chosen",
        "coefficients",
        "depth",
        "descriptors",
        "digest",
        "error",
        "evaluated",
        "expert",
        "generation",
        "id",
        "ids",
        "items",
        "key",
        "kind",
        "mixing",
        "omega",
        "parents",
        "quality",
        "scores",
        "seconds",
        "shares",
        "tokens",
    ]
)
"""What no task can be called: the fields that :class:`cycleqd_jax.report.RunFolder` puts beside the scores of tasks."""


def check_keys_together(config: RunConfig) -> None:
    """Checks that the keys of a config fit together.

    Raises:
        InputError: naming the keys and their values.
    """
    _check_names(config)
    _check_tasks(config)
    check_models(config)
    _check_devices(config)
    _check_ray(config)
    _check_genome(config)
    _check_search(config)
    _check_export(config)


def unused_keys(method: str) -> tuple[str, ...]:
    """The keys of ``search`` that a search method does not use, which must have their defaults."""
    return tuple(key for key, methods in _METHODS.items() if method not in methods)


def idle_groups(config: RunConfig, groups: int) -> str | None:
    """A line that names the groups of devices that never get a child; None if all get one.

    Args:
        config: the config of the run.
        groups: the number of groups along the population axis of the mesh.
    """
    batches = config.search.together(config.engine.population)
    if batches is None or groups <= batches:
        return None
    return (
        f"{groups - batches} of {groups} groups of devices are idle: search.batch_size is {config.search.batch_size}; make it "
        "larger, or mesh.population smaller"
    )


def _check_names(config: RunConfig) -> None:
    names = config.task_names
    if len(names) < 2:
        raise InputError(f"expected tasks to list at least two tasks, got {len(names)}; add a task")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"expected unique task names, got {name!r} {names.count(name)} times in tasks; rename one")
    for key, name in [("name", config.name), *((f"tasks.{i}.name", name) for i, name in enumerate(names))]:
        if not name or name != Path(name).name or name.startswith("."):
            raise InputError(f"expected {key} to be a plain file name, got {name!r}; rename it")
    for name in names:
        if name in RESERVED_NAMES:
            raise InputError(
                f"expected task names other than {name!r}, which is a column of the tables or a field of their records, got "
                f"{name!r}; rename it"
            )
    for key, given in (("baselines", config.baselines), ("merges", config.merges), ("loggers", config.loggers)):
        for name in given:
            if given.count(name) > 1:
                raise InputError(f"expected every name in {key} once, got {name!r} twice; remove one")
    if "slerp" in config.merges and len(names) != 2:
        raise InputError(f"expected two tasks with merges: slerp, which merges two experts, got {len(names)}; remove slerp")


def _check_tasks(config: RunConfig) -> None:
    for i, task in enumerate(config.tasks):
        if task.max_new_tokens >= config.engine.max_len:
            raise InputError(
                f"expected engine.max_len, which holds prompt and reply, to be above tasks.{i}.max_new_tokens "
                f"({task.max_new_tokens}), got {config.engine.max_len}; increase engine.max_len"
            )
        if task.test is not None and task.train is None:
            raise InputError(
                f"expected tasks.{i}.train beside tasks.{i}.test, got no train file for task {task.name!r}; give a train file"
            )
        if task.train is not None and task.train_size is None and task.validation_size is None:
            raise InputError(
                f"expected tasks.{i}.train_size or tasks.{i}.validation_size, which share the train problems, got null for "
                "both; give one of them"
            )
        if task.train_size is None and not task.finetune_on_train:
            raise InputError(
                f"expected tasks.{i}.train_size with finetune_on_train: false, got null for task {task.name!r}, which "
                "scores all train problems; give the number of problems that the search scores"
            )


def _check_devices(config: RunConfig) -> None:
    mesh, population = config.mesh, config.engine.population
    single = (mesh.fsdp, mesh.tensor) == (1, 1)
    if mesh.sizes.count(-1) > 1:
        raise InputError(
            f"expected at most one axis of mesh to be -1 (all devices left), got {mesh.sizes}; give the size of the others"
        )
    if config.genome.space == "dense" and not single:
        raise InputError(
            f"expected mesh.fsdp and mesh.tensor to be 1 with genome.space: dense, got {mesh.fsdp} and {mesh.tensor}; "
            "use the population axis"
        )
    if population == 1:
        return
    if population > config.search.batch_size:
        raise InputError(
            f"expected engine.population to be at most search.batch_size ({config.search.batch_size}), because only "
            f"individuals of one generation are decoded together, got {population}; decrease it"
        )
    advice = "set engine.population: 1"
    if config.genome.space != "expert":
        raise InputError(
            f"expected genome.space: expert with engine.population {population}, got {config.genome.space}; {advice}"
        )
    if not single:
        raise InputError(
            f"expected mesh.fsdp and mesh.tensor to be 1 (groups of one device) with engine.population {population}, got "
            f"{mesh.fsdp} and {mesh.tensor}; {advice}"
        )
    if config.model.experts is None:
        raise InputError(
            f"expected model.experts that are LoRA adapters with engine.population {population}, got experts that are "
            f"fine-tuned in this run; {advice}"
        )


def _check_ray(config: RunConfig) -> None:
    ray, mesh = config.ray, config.mesh
    if ray.address is None:
        return
    if config.genome.space == "dense":
        raise InputError(
            "expected genome.space: expert with ray.address, because genomes travel to the workers, got dense, whose genomes "
            "are as large as the model; use mesh.population"
        )
    if mesh.population != 1 or min(mesh.sizes) < 0:
        raise InputError(
            f"expected mesh.population 1 and the sizes of mesh.fsdp and mesh.tensor with ray.address, got {mesh.sizes}; set "
            "ray.workers, the number of groups of devices"
        )
    if config.search.deadline is not None and config.search.deadline >= ray.deadline:
        raise InputError(
            f"expected ray.deadline, which ends a worker, to be above search.deadline ({config.search.deadline:g}), got "
            f"{ray.deadline:g}; increase ray.deadline"
        )
    if config.search.deadline is not None and config.engine.population > 1 and 2 * config.search.deadline > ray.deadline:
        raise InputError(
            f"expected ray.deadline to be at least twice search.deadline ({config.search.deadline:g}) with engine.population "
            f"{config.engine.population}, because a group that fails is evaluated again one by one, got {ray.deadline:g}; "
            "increase ray.deadline"
        )


def _check_genome(config: RunConfig) -> None:
    genome = config.genome
    if genome.mutation == "gaussian" and genome.space != "dense":
        raise InputError(
            f"expected genome.space: dense with genome.mutation: gaussian, which leaves the span of the experts, got "
            f"{genome.space}; correct one of them"
        )
    if genome.mutation == "gaussian" and genome.strength is None:
        raise InputError(
            "expected genome.strength with genome.mutation: gaussian, got null; give σ in the units of the weights, such as "
            "0.001"
        )
    if genome.method == "randomized" and genome.rank is None:
        raise InputError("expected genome.rank with genome.method: randomized, got null; give a rank, such as 256")


def _check_search(config: RunConfig) -> None:
    search, names = config.search, config.task_names
    if search.bounds is not None:
        for name in names:
            bounds = search.bounds.get(name)
            if bounds is None or len(bounds) != 2 or not np.float32(bounds[0]) < np.float32(bounds[1]):
                raise InputError(
                    f"expected search.bounds to give [low, high] with low < high for the task {name!r}, got {bounds}; "
                    "correct the config"
                )
        check_task_names("search.bounds", search.bounds, names)
    if search.alpha_low > search.alpha_high and search.elite_span == "paper":
        raise InputError(
            f"expected search.alpha_low to be at most search.alpha_high ({search.alpha_high}), got {search.alpha_low}; "
            "correct one of them"
        )
    _check_method(config)
    cells = search.bins ** (len(names) if search.method == "qd" else len(names) - 1)
    if search.method in ("cycleqd", "qd") and search.cells is None and cells > MAX_CELLS:
        advice = ", or set search.cells" if search.method == "cycleqd" else ""
        raise InputError(
            f"expected at most {MAX_CELLS} cells per archive, got {cells} from search.bins {search.bins}; decrease it{advice}"
        )


def _check_racing(config: RunConfig) -> None:
    """Refuses what does not work with racing."""
    racing = config.search.racing
    if racing is None:
        return
    refused = {
        "search.steady": (config.search.steady, "children are raced against the archives before their generation"),
        "ray.address": (config.ray.address, "the workers of a cluster evaluate children on all problems"),
        "origin": (config.origin, "its individuals are not evaluated on the same problems"),
        f"tasks of the kind {SEGMENTATION}": (config.segments, "masks are predicted for all images together"),
    }
    for key, (value, why) in refused.items():
        if value:
            raise InputError(f"expected no {key} with search.racing, because {why}, got both; leave one of them out")
    for i, task in enumerate(config.tasks):
        if task.train_size is not None and racing.least > task.train_size:
            raise InputError(
                f"expected search.racing.least to be at most tasks.{i}.train_size ({task.train_size}), got {racing.least}; "
                "decrease it"
            )


def _check_export(config: RunConfig) -> None:
    method, search = config.export.method, config.search.method
    if search != "cycleqd" and method == "aggregate":
        raise InputError(
            f"expected export.method selected, best_elite or soup with search.method {search}, which has no archive of every "
            f"task to merge, got {method}; leave it out"
        )
    if method in ("selected", "soup"):
        other = "aggregate" if search == "cycleqd" else "best_elite"
        for i, task in enumerate(config.tasks):
            if task.validation_size == 0:
                raise InputError(
                    f"expected validation problems with export.method {method}, which chooses on them, got "
                    f"tasks.{i}.validation_size 0; increase it, or set export.method: {other}"
                )


def _either(names: Sequence[str]) -> str:
    """Such as ``"random, cmaes or nsga2"``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _check_method(config: RunConfig) -> None:
    search, experts = config.search, len(config.expert_names)
    for key in unused_keys(search.method):
        if getattr(search, key) != getattr(SearchConfig(), key):
            raise InputError(
                f"expected search.{key} with search.method {_either(_METHODS[key])} only, got {getattr(search, key)} with "
                f"{search.method}; leave it out"
            )
    if search.steady and (search.method not in ("cycleqd", "qd") or search.batch_size != 1):
        raise InputError(
            "expected search.method cycleqd or qd and search.batch_size 1 with search.steady, which inserts single children, "
            f"got {search.method} and {search.batch_size}; correct one of them"
        )
    if not search.low < search.high:
        raise InputError(f"expected search.low below search.high ({search.high}), got {search.low}; correct one of them")
    if search.method == "cmaes" and search.batch_size < MIN_CMAES_POPULATION:
        raise InputError(
            f"expected search.batch_size of at least {MIN_CMAES_POPULATION}, the smallest population of CMA-ES, got "
            f"{search.batch_size}; increase it"
        )
    if search.coefficients and config.genome.space != "expert":
        raise InputError(
            f"expected genome.space: expert with search.method {search.method}, which searches merging coefficients, got "
            f"{config.genome.space}; leave it out"
        )
    if 0 < search.members < experts:
        raise InputError(
            f"expected search.population of at least {experts}, the number of experts, got {search.members}; increase it"
        )
    _check_racing(config)
    least = search.least(experts)
    if search.budget is not None and search.budget < least:
        raise InputError(
            f"expected search.budget of at least {least}, which the experts and the first population need, got "
            f"{search.budget}; increase it{', or decrease search.population' if search.members else ''}"
        )
