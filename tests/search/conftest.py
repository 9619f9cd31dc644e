"""A search without a model: a tiny ExpertSpace, and an evaluator that computes scores from the weights."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import Evaluation, Evaluator, SerialWorker, WorkerPool
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.search import Checkpoints, Journal, evolve
from cycleqd_jax.types import Outcome, Score

TASKS = ("coding", "db", "os")
COUNT = len(TASKS)


class Killed(BaseException):
    """Stands for a killed process: no code may catch it."""


@dataclasses.dataclass
class FakeEvaluator(Evaluator):
    """Computes scores from the weights; raises in evaluation number ``dies_at``, quarantines weights that are ``broken``."""

    dies_at: int | None = None
    broken: Any = lambda weights: False
    calls: int = 0

    def unload(self) -> None:
        pass

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()) -> Evaluation:
        if self.calls == self.dies_at:
            raise Killed
        self.calls += 1
        weights = np.asarray(params["w"], np.float64)
        if self.broken(weights):
            return Evaluation({}, "the logits are not finite", {"evaluate": 0.0})
        values = [float(np.round(1 / (1 + np.exp(-weights[k].sum())), 2)) for k in range(COUNT)]
        outcomes = {
            name: [Outcome(Score(value), (), 1, 1), Outcome(Score(1 - value / 2), (), 1, 1)]
            for name, value in zip(TASKS, values, strict=True)
        }
        return Evaluation(outcomes, None, {"evaluate": 0.001})


class Run:
    """A run folder and the search in it."""

    def __init__(self, space, folder):
        self.space, self.folder = space, folder
        self.folder.mkdir(exist_ok=True)

    @property
    def experts(self):
        return jax.tree.map(lambda *x: jnp.stack(x), *(self.space.expert(k) for k in range(self.space.num_experts)))

    def evolve(
        self,
        evaluator=None,
        *,
        every=None,
        generations=4,
        batch_size=2,
        seed=0,
        searcher=None,
        tasks=TASKS,
        evaluators=(),
        workers=None,
        **more,
    ):
        checkpoints = None if every is None else Checkpoints(self.folder / "checkpoints", every=every)
        try:
            return evolve(
                searcher or CycleQD(self.space, bins=5),
                self.experts,
                workers
                or WorkerPool([SerialWorker(self.space.express, one) for one in evaluators or [evaluator or FakeEvaluator()]]),
                tasks=tasks,
                key=jax.random.key(seed),
                generations=generations,
                batch_size=batch_size,
                journal=Journal(self.folder / "history.jsonl"),
                checkpoints=checkpoints,
                **more,
            )
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def lines(self):
        """The journal, without wall times."""
        if not (self.folder / "history.jsonl").exists():
            return []
        records = [json.loads(line) for line in (self.folder / "history.jsonl").read_text("utf-8").splitlines()]
        return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.fixture(scope="session")
def space():
    rng = np.random.default_rng(0)
    models = [
        {"w": jnp.asarray(rng.normal(size=(3, 4, 3)) * 0.5, jnp.float32), "norm": jnp.asarray(rng.normal(size=3), jnp.float32)}
        for _ in range(COUNT + 1)
    ]
    return ExpertSpace.from_experts(models[0], models[1:])


@pytest.fixture
def new_run(space, tmp_path):
    def new(name="run", space=space) -> Run:
        return Run(space, tmp_path / name)

    vars(new).update(Killed=Killed, Evaluator=FakeEvaluator, tasks=TASKS)
    return new
