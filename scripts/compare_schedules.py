"""Compares what a steady search and generations find with as many children, on a problem that costs nothing.

    python scripts/compare_schedules.py [--workers 8] [--children 400] [--seeds 20] [--json FILE]

The problem is a toy. A model is a stack of small matrices. Each task has target weights between the experts, and a child solves
those of the task's 32 problems whose threshold is above its distance to the target. An evaluation takes 1 to 5 seconds of a
simulated clock. So results arrive in another order than children were made, as on real workers. The seconds are independent of
the scores, or longer for better children, or longer for worse ones. A steady search gets the results of quick children first.

Generations have as many children as there are workers. For every seed the toy problem, the search and the times differ.
Printed are the QD score at the end (the sum of the qualities in all cells, mean over archives), the best average over tasks,
the average of the merge of equation 5, the share of the workers' time in evaluations, and the simulated seconds. Differences
are steady − generations of the same seed, with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms import CycleQD, aggregate
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.search import Journal, evolve, evolve_steadily
from cycleqd_jax.statistics import over_seeds
from cycleqd_jax.types import Outcome, Score

TASKS = ("a", "b", "c")
ITEMS, SIZE = 32, 8
TIMES = {"independent": 0.0, "better take longer": 1.0, "worse take longer": -1.0}
"""How the seconds of an evaluation depend on its average score."""


class Problem:
    """Target weights of every task, and the scores of models."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        base, *experts = ({"w": jnp.asarray(rng.normal(size=(2, SIZE, SIZE)), jnp.float32)} for _ in range(1 + len(TASKS)))
        self.space = ExpertSpace.from_experts(base, experts)
        genomes = [self.space.expert(k) for k in range(len(TASKS))]
        self.experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *genomes)
        changes = np.stack([np.asarray(expert["w"] - base["w"]) for expert in experts])
        # A task's target keeps its expert's change and adds a random part of the others'.
        parts = (
            rng.uniform(0.1, 0.5, size=(len(TASKS), len(TASKS), 2, SIZE, 1)) * (1 - np.eye(len(TASKS)))[..., None, None, None]
        )
        mixed = 0.8 * changes + (parts * changes[None]).sum(1)
        self._targets = jnp.asarray(np.asarray(base["w"]) + mixed, jnp.float32)
        self._scale = float(np.square(changes).sum((1, 2, 3)).mean())
        self._distances = jax.jit(self._distance)

    def _distance(self, genome: Any) -> Any:
        theta = self.space.express(genome)["w"]
        return jnp.square(theta[None] - self._targets).sum((1, 2, 3)) / self._scale

    def scores(self, genome: Any) -> list[int]:
        """The number of solved problems of every task."""
        thresholds = np.linspace(0.02, 1.5, ITEMS)
        return [int((thresholds > distance).sum()) for distance in np.asarray(self._distances(genome))]

    def average(self, genome: Any) -> float:
        """The mean share of solved problems."""
        return statistics.fmean(self.scores(genome)) / ITEMS


class SimulatedWorkers:
    """Workers with a clock of their own; see :class:`~cycleqd_jax.evaluation.StreamEvaluator`.

    Attributes:
        size: genomes that one worker evaluates at a time.
        clock: seconds that have passed.
        busy: seconds of all evaluations.
    """

    size = 1

    def __init__(self, problem: Problem, workers: int, kind: float, seed: int) -> None:
        self.clock, self.busy = 0.0, 0.0
        self._problem, self._workers, self._kind = problem, workers, kind
        self._rng = np.random.default_rng([seed, 1])  # another stream than the problem's

    def _evaluate(self, genome: Any) -> tuple[float, Evaluation]:
        solved = self._problem.scores(genome)
        share = statistics.fmean(solved) / ITEMS
        drawn = float(self._rng.uniform()) if not self._kind else share if self._kind > 0 else 1 - share
        outcomes = {
            task: [Outcome(Score(float(n < count)), (), 1, 1) for n in range(ITEMS)]
            for task, count in zip(TASKS, solved, strict=True)
        }
        seconds = 1 + 4 * drawn
        self.busy += seconds
        return seconds, Evaluation(outcomes, None, {"evaluate": seconds})

    def __call__(self, groups: Sequence[Sequence[Any]], on_result: Callable[[int, list[Evaluation]], None]) -> None:
        """Evaluates given genomes: each goes to the worker that is free first, and all have to end."""
        free = [self.clock] * self._workers
        for i, (genome,) in enumerate(groups):
            seconds, evaluation = self._evaluate(genome)
            heapq.heapreplace(free, free[0] + seconds)
            on_result(i, [evaluation])
        self.clock = max(free)

    def stream(self, source: Callable[[], Any], on_result: Callable[[int, list[Evaluation]], None]) -> None:
        """Asks for a genome whenever a worker is free, and inserts results in the order in which they end."""
        flying: list[tuple[float, int, Evaluation]] = []
        more = True
        while more or flying:
            while more and len(flying) < self._workers:
                asked = source()
                more = asked is not None
                if asked is not None:
                    serial, (genome,), _ = asked
                    seconds, evaluation = self._evaluate(genome)
                    heapq.heappush(flying, (self.clock + seconds, serial, evaluation))
            if flying:
                self.clock, serial, evaluation = heapq.heappop(flying)
                on_result(serial, [evaluation])


def search(problem: Problem, steady: bool, workers: int, children: int, kind: float, seed: int) -> dict[str, float]:
    """Figures of one search."""
    pool: Any = SimulatedWorkers(problem, workers, kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "tasks": TASKS,
            "key": jax.random.key(seed),
            "journal": Journal(Path(folder) / "history.jsonl"),
        }
        searcher = CycleQD(problem.space)
        if steady:
            state = evolve_steadily(searcher, problem.experts, pool, children=children, **options)
        else:
            batches = {"generations": children // workers, "batch_size": workers}
            state = evolve(searcher, problem.experts, pool, **batches, **options)
    best = jax.tree.map(lambda leaf: leaf[0], state.leading(1)[0])
    qualities = np.asarray(state.archives.repertoires.fitnesses, np.float64)
    return {
        "QD score": float(np.where(np.isfinite(qualities), qualities, 0).sum() / len(TASKS)),
        "best average": problem.average(best),
        "equation 5": problem.average(aggregate(state.archives)[0]),
        "busy": pool.busy / (pool.clock * workers),
        "seconds": pool.clock,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the command; returns what it prints as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--children", type=int, default=400, help="a multiple of the workers (400)")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error(f"expected --seeds of at least 2, got {args.seeds}; increase it")
    if args.workers < 1 or args.children < 1 or args.children % args.workers:
        parser.error(
            f"expected --children to be a multiple of --workers, both at least 1, got {args.children} and {args.workers}; "
            "correct one of them"
        )
    found: dict[str, Any] = {name: {"generations": [], "steady": []} for name in TIMES}
    for seed in range(args.seeds):
        problem = Problem(seed)
        for name, kind in TIMES.items():
            for schedule in found[name]:
                row = search(problem, schedule == "steady", args.workers, args.children, kind, seed)
                found[name][schedule].append(row)
    print(f"{args.workers} workers, {args.children} children, {args.seeds} seeds")
    for name, rows in found.items():
        print(f"\nSeconds of an evaluation: {name}\n\n| | generations | steady | steady − generations |\n|---|---:|---:|---:|")
        for figure in rows["steady"][0]:
            old, new = (np.asarray([row[figure] for row in rows[schedule]]) for schedule in ("generations", "steady"))
            gap = over_seeds(new - old)
            print(f"| {figure} | {old.mean():.3f} | {new.mean():.3f} | {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] |")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
