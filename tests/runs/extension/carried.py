"""A small run, and runs that begin with its individuals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from cycleqd_jax.algorithms.selection import extra_scores
from cycleqd_jax.config import load_config, to_dict
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.runs.extension.origin import take_origin
from cycleqd_jax.runs.folder.replay import replay
from cycleqd_jax.runs.folder.run_folder import versions
from cycleqd_jax.runs.searchers import grid_of, make_searcher
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.search import Checkpoints, Journal, evolve, tree_digest
from cycleqd_jax.types import Outcome, Score

__all__ = [
    "ALL",
    "FIRST",
    "INPUTS",
    "NEW",
    "OLD",
    "Killed",
    "Scores",
    "as_for_users",
    "config_of",
    "elites_of",
    "extended",
    "models",
    "old",
    "search_in",
    "space_of",
]

OLD, NEW = ("mbpp", "dbbench", "os_interaction"), "humaneval"
FIRST, ALL = 5, 8
INPUTS = {"base": "b", **{f"expert/{name}": name for name in (*OLD, NEW)}, **{f"{name}/train": name for name in (*OLD, NEW)}}


class Killed(BaseException):
    """Stands for a killed process."""


class Scores:
    """Scores of some tasks that depend on the bits of a genome's part for the old experts; about one in nine is quarantined."""

    size = 1

    def __init__(self, tasks, dies_at=None):
        self.tasks, self.dies_at, self.calls = tasks, dies_at, 0

    def __call__(self, groups, on_result):
        for i, (genome,) in enumerate(groups):
            if self.calls == self.dies_at:
                raise Killed
            self.calls += 1
            number = int(tree_digest(genome), 16)
            if len(jax.tree.leaves(genome)[0]) and not self._is_expert(genome) and number % 9 == 0:
                on_result(i, [Evaluation({}, "the logits are not finite", {})])
                continue
            values = {task: (number >> 7 * k) % 5 / 4 for k, task in enumerate(self.tasks)}
            outcomes = {task: [Outcome(Score(value), (), 1, 1)] for task, value in values.items()}
            on_result(i, [Evaluation(outcomes, None, {"evaluate": 0.5})])

    @staticmethod
    def _is_expert(genome):
        return all(not np.asarray(d).any() for d in getattr(genome, "mutation", {"": np.ones(1)}).values())


def models(count):
    rng = np.random.default_rng(0)
    return [
        {
            "layers": {"w": jnp.asarray(0.5 * rng.normal(size=(2, 24, 18)), jnp.float32)},
            "norm": jnp.asarray(rng.normal(size=24), jnp.float32),
        }
        for _ in range(count)
    ]


def space_of(names, dense=False):
    """The space of experts, each of which is the same in every space."""
    base, *experts = models(5)
    chosen = [dict(zip((*OLD, NEW), experts, strict=True))[name] for name in names]
    return DenseSpace.from_experts(base, chosen) if dense else ExpertSpace.from_experts(base, chosen)


def config_of(names=OLD, generations=FIRST, **changes):
    given = {"base": "hub/base", "experts": {name: f"hub/{name}" for name in names}}
    search = {"generations": generations, "batch_size": 3, "bins": 4}
    tree = {"name": "x", "tasks": [{"name": t} for t in names], "model": given, "search": search}
    return load_config({**tree, **changes})


def search_in(folder, config, space, evaluator, carried=None, every=2, budget=None, max_failures=None):
    """Runs the search of a config in a folder, as a run does."""
    folder.mkdir(exist_ok=True)
    stored = {**to_dict(config), "schema": SCHEMA, "versions": versions()}
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    write_json(folder / "inputs.json", {"schema": SCHEMA, **INPUTS, "versions": {}})
    names = config.expert_names
    experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.expert(k) for k in range(len(names))])
    checkpoints, journal = Checkpoints(folder / "checkpoints", every=every), Journal(folder / "history.jsonl")

    def write_grid(state):
        scores = np.asarray([journal.scores(k, config.task_names) for k in range(len(names))], np.float32)
        write_json(folder / "grid.json", grid_of(config, scores))

    try:
        return evolve(
            make_searcher(config, space),
            experts,
            evaluator,
            tasks=config.task_names,
            names=names,
            key=jax.random.key(config.seed),
            generations=config.search.generations,
            batch_size=config.search.batch_size,
            journal=journal,
            checkpoints=checkpoints,
            budget=budget,
            max_failures=max_failures,
            carried=carried,
            on_start=write_grid,
        )
    finally:
        checkpoints.close()


as_for_users = pytest.mark.as_users
"""Genomes are compared bit by bit with those of arrays of other shapes. The emitters with which the default tests compile round
them otherwise, so programs have to be compiled as for users."""


@pytest.fixture(scope="session", params=["expert", pytest.param("dense", marks=pytest.mark.exhaustive)])
def old(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    dense = request.param == "dense"
    genome = {"genome": {"space": "dense"}} if dense else {}
    search_in(folder, config_of(**genome), space_of(OLD, dense), Scores(OLD))
    return folder, dense, genome


def extended(old, folder, tasks=(*OLD, NEW), others=(), evaluator=None, further=None, every=2, generations=ALL, most=None):
    """Extends a run, or continues to; returns config, state and evaluators."""
    origin_folder, dense, genome = old
    config = config_of(tasks, generations, **genome, origin=str(origin_folder), output=str(folder))
    if others:
        model = dataclasses.replace(config.model, others={name: f"hub/{name}" for name in others})
        config = dataclasses.replace(config, model=model)
    folder.mkdir(exist_ok=True)
    origin = take_origin(config, folder, INPUTS, lambda line: None)
    space = space_of(config.expert_names, dense)
    evaluator, further = evaluator or Scores(config.task_names), further or Scores(origin.new_tasks)
    carried = origin.carried(space, further if origin.new_tasks else None)
    state = search_in(folder, config, space, evaluator, carried, every, max_failures=most)
    return config, space, state, (evaluator, further)


def elites_of(folder):
    config, journal = load_config(folder / "config.yaml"), Journal(folder / "history.jsonl", read_only=True)
    archives = replay(config, journal).state.archives
    ids = np.asarray(extra_scores(archives.repertoires)["id"])[np.asarray(archives.occupied())]
    return {i for i in ids.tolist() if i >= len(config.expert_names)}
