"""A toy search as a process that can be killed: ``python killed_search.py FOLDER GENERATIONS SECONDS``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.search import Checkpoints, Journal, evolve, tree_digest
from cycleqd_jax.types import Outcome, Score

TASKS = ("coding", "db", "os")


class SlowScores:
    """Scores that depend on the bits of a genome, after a pause."""

    size = 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, groups, on_result):
        for i, (genome,) in enumerate(groups):
            time.sleep(self.seconds)
            number = int(tree_digest(genome), 16)
            values = {task: (number >> 8 * k) % 9 / 8 for k, task in enumerate(TASKS)}
            outcomes = {task: [Outcome(Score(value), (), 1, 1)] for task, value in values.items()}
            on_result(i, [Evaluation(outcomes, None, {})])


def run(folder: Path, generations: int, seconds: float) -> str:
    """Runs the search, or continues it; returns a digest of its last state."""
    rng = np.random.default_rng(0)
    base, *experts = [{"w": jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)} for _ in range(4)]
    space = ExpertSpace.from_experts(base, experts)
    checkpoints = Checkpoints(folder / "checkpoints", every=2)
    state = evolve(
        CycleQD(space, bins=5),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.expert(k) for k in range(3)]),
        SlowScores(seconds),
        tasks=TASKS,
        key=jax.random.key(0),
        generations=generations,
        batch_size=2,
        journal=Journal(folder / "history.jsonl"),
        checkpoints=checkpoints,
        log=print,
    )
    checkpoints.close()
    return tree_digest(state)


if __name__ == "__main__":
    print("started", flush=True)
    print(run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
