"""Searches of a few seconds on small matrices, and run folders of them, without models and tasks."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from cycleqd_jax.config import load_config, to_dict
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import CoefficientSpace, DenseSpace, ExpertSpace
from cycleqd_jax.runs.searchers import grid_of, make_searcher
from cycleqd_jax.search import Checkpoints, Journal, evolve, evolve_steadily, tree_digest
from cycleqd_jax.types import Outcome, Score

from ..journals import lines_without_checksums

TASKS = ("mbpp", "dbbench", "os_interaction")


class FromGenome:
    """Scores that depend on the bits of a genome; about one in nine is quarantined."""

    size = 1

    def __init__(self):
        self.genomes = []

    def __call__(self, groups, on_result):
        for i, (genome,) in enumerate(groups):
            self.genomes.append(genome)
            on_result(i, [self.evaluation(int(tree_digest(genome), 16))])

    def stream(self, source, on_result):
        """Evaluates three at the same time; the second one of them ends first."""
        flying = []
        while True:
            while len(flying) < 3 and (job := source()) is not None:
                flying.append(job)
            if not flying:
                return
            number, (genome,), _ = flying.pop(len(flying) // 2)
            self.genomes.append(genome)
            on_result(number, [self.evaluation(int(tree_digest(genome), 16))])

    def evaluation(self, number: int) -> Evaluation:
        if len(self.genomes) > 3 and number % 9 == 0:
            return Evaluation({}, "the logits are not finite", {})
        values = {task: (number >> 8 * k) % 5 / 4 for k, task in enumerate(TASKS)}
        outcomes = {task: [Outcome(Score(value), (), 1, 1)] for task, value in values.items()}
        return Evaluation(outcomes, None, {})


def config_of(method: str = "cycleqd", **search):
    options = {"method": method, "generations": 4, "batch_size": 4 if method == "cmaes" else 3, **search}
    options |= {"bins": 4} if method in ("cycleqd", "qd") else {"population": 6} if method in ("dns", "nsga2") else {}
    options |= {} if method in ("cycleqd", "qd", "dns") else {"groups": 2}
    export = {} if method == "cycleqd" else {"method": "best_elite"}
    return load_config({"name": "x", "tasks": [{"name": t} for t in TASKS], "search": options, "export": export})


def space_of(config, size=(2, 24, 18), dense=None):
    rng = np.random.default_rng(0)
    models = [
        {
            "layers": {"w": jnp.asarray(0.5 * rng.normal(size=size), jnp.float32), "v": jnp.asarray(rng.normal(size=size[:2]))},
            "head": jnp.asarray(rng.normal(size=(17, 24)), jnp.float32),
        }
        for _ in range(4)
    ]
    if dense is not None:
        return DenseSpace.from_experts(models[0], models[1:], mutation=dense)
    if config.search.coefficients:
        return CoefficientSpace.from_experts(models[0], models[1:], groups=config.search.groups)
    return ExpertSpace.from_experts(models[0], models[1:])


def searched(tmp_path, config, space, every=None):
    """The journal of a search, its state, and the genomes in the order of their ids."""
    experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.expert(k) for k in range(3)])
    evaluator, journal = FromGenome(), Journal(tmp_path / "history.jsonl")
    checkpoints = None if every is None else Checkpoints(tmp_path / "checkpoints", every=every)
    options = {
        "tasks": TASKS,
        "key": jax.random.key(config.seed),
        "budget": config.search.budget,
        "journal": journal,
        "checkpoints": checkpoints,
        "on_start": lambda state: write_json(tmp_path / "grid.json", grid_of(config, scores_of(journal))),
    }
    searcher, generations = make_searcher(config, space), config.search.generations
    if config.search.steady:
        state = evolve_steadily(searcher, experts, evaluator, children=generations, **options)
    else:
        size = config.search.batch_size
        state = evolve(searcher, experts, evaluator, generations=generations, batch_size=size, **options)
    if checkpoints is not None:
        checkpoints.close()
    return journal, state, evaluator.genomes


def scores_of(journal):
    return np.asarray([journal.scores(k, TASKS) for k in range(3)], np.float32)


def write_run(folder, method="cycleqd", every=2, **search):
    """A run folder after the search and the evaluation, with made-up tables."""
    config = config_of(method, **search)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**to_dict(config), "versions": {}}))
    _journal, state, _ = searched(folder, config, space_of(config), every)
    best = int(state.leading(1)[2][0])
    items = {task: [0.0, 1.0, 1.0, 1.0] for task in TASKS}
    splits = {split: {task: 0.75 for task in (*TASKS, "average")} for split in ("train", "test")}
    write_json(folder / "tables" / "results.json", {"methods": {method: splits}, "tasks": TASKS, "best_elite": best})
    write_json(folder / "tables" / "items.json", {method: {split: items for split in splits}})
    scores = {task: 0.75 for task in TASKS}
    candidates = [{"kind": "elite", "ids": [best], "error": None, "scores": scores, "items": items, "average": 0.75}]
    chosen = {"kind": "elite", "ids": [best]}
    selection = {"problems": dict.fromkeys(TASKS, "0"), "candidates": candidates, "soup": [best], "chosen": chosen}
    write_json(folder / "tables" / "selection.json", selection)
    return folder


def edit(folder, change):
    """Changes the lines of a journal, which gets no checksums: as if an older version had written it."""
    path = folder / "history.jsonl"
    lines = lines_without_checksums(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
