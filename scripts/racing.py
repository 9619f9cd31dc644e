"""How many problems a search with racing needs to reach the test average of the same search without it.

    python scripts/racing.py CONFIG [--seeds S …] [--output DIR] [--json FILE] [key=value …]
    python scripts/racing.py --synthetic [--seeds S …]

For each seed the config is evolved twice: without racing, and with the section ``search.racing`` of the config or its defaults.
Both searches begin with the same experts. Their final populations differ, because racing evaluates other problems.

At each generation a search has a leader: of all individuals that were evaluated on all train problems, the one of the highest
average there. Each leader is scored once on the test problems. The target is the test average of the last leader without
racing. A search has reached it at the first generation whose leader has at least this average. It has needed the problems that
all individuals up to this generation were evaluated on, the experts included.

The table has, for each seed, the problems of both searches until the target, and their ratio. The interval of the ratio is a
t interval of its logarithm over the seeds; it needs two seeds at least. A search with racing that never reaches the target
counts with all of its problems, and the table marks it: the ratio is a lower bound then.

The result is printed as Markdown, and written as JSON to ``DIR/racing.json`` or FILE.

``--synthetic`` needs no models. Searches of 60 generations of 8 children run with racing on three tasks of 32 problems, whose
scores are computed from the weights of small matrices. Every child is scored on all problems beside the search. The table has,
by bins and confidence, how many children stopped, and how many of these would have entered an archive: alone, into the archives
before their generation. The share of problems is that of the search without racing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import cycleqd_jax as cq
from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import Evaluation, SerialWorker, WorkerPool
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.search import Journal, Racing, evolve
from cycleqd_jax.types import Outcome, Score


def leaders_of(journal: Journal, tasks: Sequence[str]) -> list[tuple[int, int]]:
    """The leader after each generation, and the number of problems that were evaluated until then; the experts come first."""
    found: dict[int, tuple[int, int]] = {}
    best, leader, problems = -1.0, 0, 0
    for identity in journal.ids():
        one = journal[identity]
        problems += one.problem_count
        average = -1.0 if one.scores is None else float(np.mean([one.scores[task] for task in tasks]))
        if average > best:
            best, leader = average, identity
        found[one.generation] = leader, problems
    return [found[generation] for generation in sorted(found)]


def reached(leaders: Sequence[tuple[int, int]], tests: Mapping[int, float], target: float) -> int | None:
    """The number of problems until a leader has the target on the test problems; None if none has."""
    return next((problems for leader, problems in leaders if tests[leader] >= target), None)


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """JSON-ready: the seeds, and the geometric mean of their ratios with its 95 % interval."""
    logs = np.log([one["ratio"] for one in seeds])
    mean, spread = float(logs.mean()), None
    if len(seeds) > 1:
        spread = float(stats.t.ppf(0.975, len(seeds) - 1) * logs.std(ddof=1) / math.sqrt(len(seeds)))
    return {
        "seeds": list(seeds),
        "ratio": math.exp(mean),
        "low": None if spread is None else math.exp(mean - spread),
        "high": None if spread is None else math.exp(mean + spread),
        "missed": sum(not one["reached"] for one in seeds),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The table, and the ratio over all seeds."""
    lines = [
        "| seed | target | problems without racing | with racing | ratio | children that stopped |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found["seeds"]:
        mark = "" if one["reached"] else " (not reached)"
        lines.append(
            f"| {one['seed']} | {100 * one['target']:.1f} | {one['without']} | {one['with']}{mark} | {one['ratio']:.2f} | "
            f"{one['stopped']} of {one['children']} |"
        )
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    missed = f"; {found['missed']} of {len(found['seeds'])} seeds did not reach the target" if found["missed"] else ""
    return "\n".join(
        [*lines, "", f"Problems until the target, with racing over without: {found['ratio']:.2f}{interval}{missed}."]
    )


def measured(arguments: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """What the two searches of a seed need."""
    config = cq.load_config(arguments.config, arguments.overrides)
    section = [] if config.search.racing is not None else ["search.racing={}"]
    found: dict[str, tuple[list[tuple[int, int]], dict[int, float], Journal]] = {}
    for name, changes in {"without": ["search.racing=null"], "with": section}.items():
        given = [*arguments.overrides, *changes, f"seed={seed}", f"output={folder / f'seed-{seed}' / name}"]
        config = cq.load_config(arguments.config, given)
        with cq.Run(config) as run:
            run.train()
            run.evolve()
            journal = Journal(config.folder / "history.jsonl", read_only=True)
            leaders = leaders_of(journal, config.task_names)
            tests = {}
            for leader in dict.fromkeys(leader for leader, _ in leaders):
                scores = run.evaluate_individual(leader).scores
                tests[leader] = -1.0 if scores is None else float(np.mean([*scores.values()]))
        found[name] = leaders, tests, journal
    leaders, tests, _ = found["without"]
    target = tests[leaders[-1][0]]
    without, raced = reached(leaders, tests, target), reached(*found["with"][:2], target)
    assert without is not None
    used = found["with"][0][-1][1] if raced is None else raced
    journal = found["with"][2]
    stopped = sum(journal[identity].evaluated is not None for identity in journal.ids())
    return {
        "seed": seed,
        "target": target,
        "without": without,
        "with": used,
        "ratio": used / without,
        "reached": raced is not None,
        "stopped": stopped,
        "children": len(journal) - len(config.expert_names),
    }


# Synthetic searches


TASKS, PROBLEMS, WIDTH = ("a", "b", "c"), 32, 24
GENERATIONS, CHILDREN = 60, 8


class Projections:
    """Problems of models that are three matrices: a problem is solved where a projection of the weights is above a threshold.

    The expert of a task solves 65 % of its problems. ``scores`` has the scores of every loaded model on all problems.
    """

    def __init__(self, base: np.ndarray, experts: np.ndarray, rng: np.random.Generator) -> None:
        self._base, self.scores = base, []
        self._planes, self._thresholds = [], []
        for expert in (experts - base).reshape(len(experts), -1):
            planes = rng.normal(size=(PROBLEMS, expert.size)) + expert[None] / np.linalg.norm(expert)  # as strong as the noise
            self._planes.append(planes)
            self._thresholds.append(np.quantile(planes @ expert, 0.35))

    def unload(self) -> None:
        """Nothing is held."""

    def shrink(self) -> bool:
        """Nothing can be shrunk."""
        return False

    def only(self, names: Any) -> Projections:
        """All tasks."""
        return self

    def sizes(self, split: Any) -> dict[str, int]:
        """The number of problems of every task."""
        return dict.fromkeys(TASKS, PROBLEMS)

    def load(self, params: Any, *, donate: bool = False) -> None:
        """Scores a model on all problems."""
        weights = (np.asarray(params["w"], np.float64) - self._base).ravel()
        solved = [planes @ weights > limit for planes, limit in zip(self._planes, self._thresholds, strict=True)]
        self.scores.append(np.asarray(solved, np.float64))

    def score(self, items: Any, split: Any = "train", **options: Any) -> dict[int, Evaluation]:
        """The scores of the model that was loaded last."""
        outcomes = {
            task: [Outcome(Score(self.scores[-1][TASKS.index(task), place]), (), 1, 1) for place in places]
            for task, places in items[0].items()
        }
        return {0: Evaluation(outcomes, None, {"evaluate": 0.0})}

    def population(self, params: Any, count: int, split: Any = "train", **options: Any) -> list[Evaluation]:
        """One model."""
        return [self(params)]

    def __call__(self, params: Any, split: Any = "train", **options: Any) -> Evaluation:
        """All problems of a model."""
        self.load(params)
        return self.score({0: dict.fromkeys(TASKS, range(PROBLEMS))})[0]


@dataclasses.dataclass(frozen=True)
class Remembering(Racing):
    """Racing that keeps the state before every generation."""

    states: list[Any] = dataclasses.field(default_factory=list)

    def stages(self, *args: Any) -> Any:
        """What the children of a generation are evaluated on."""
        self.states.append(args[4])
        return super().stages(*args)


def synthetic(seed: int, bins: int, confidence: float, generations: int = GENERATIONS) -> dict[str, int]:
    """What became of the children of one synthetic search, and how many that stopped would have entered an archive."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(3, WIDTH, 3))
    experts = base + 0.5 * rng.normal(size=(len(TASKS), *base.shape))
    space = ExpertSpace.from_experts(
        {"w": jnp.asarray(base, jnp.float32)}, [{"w": jnp.asarray(one, jnp.float32)} for one in experts]
    )
    evaluator, racing = Projections(base, experts, rng), Remembering(confidence=confidence)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "history.jsonl")
        evolve(
            CycleQD(space, bins=bins),
            jax.tree.map(lambda *x: jnp.stack(x), *(space.expert(k) for k in range(len(TASKS)))),
            WorkerPool([SerialWorker(space.express, evaluator)]),
            tasks=TASKS,
            key=jax.random.key(seed),
            generations=generations,
            batch_size=CHILDREN,
            journal=journal,
            racing=racing,
        )
        children = [journal[i] for i in journal.ids() if journal[i].expert is None]
    scores = np.asarray([evaluator.scores[one.id].mean(axis=1) for one in children], np.float32)
    enters = np.concatenate([racing.states[t].admits(scores[t * CHILDREN : (t + 1) * CHILDREN]) for t in range(generations)])
    stopped = np.asarray([one.evaluated is not None for one in children])
    return {
        "children": len(children),
        "stopped": int(stopped.sum()),
        "lost": int((stopped & enters).sum()),
        "enter": int(enters.sum()),
        "problems": sum(one.problem_count for one in children),
        "all": len(children) * len(TASKS) * PROBLEMS,
    }


def synthetic_table(seeds: Sequence[int]) -> str:
    """The children of synthetic searches by bins and confidence, over all seeds."""
    lines = [
        "| bins | confidence | children | would enter | stopped | of these would enter | problems, share |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for bins in (15, 5, 3):
        for confidence in (0.95, 0.8, 0.5):
            found = collections.Counter[str]()
            for seed in seeds:
                found.update(synthetic(seed, bins, confidence))
            lost = f"{found['lost']} ({found['lost'] / max(found['stopped'], 1):.1%})"
            lines.append(
                f"| {bins} | {confidence} | {found['children']} | {found['enter']} | {found['stopped']} | {lost} | "
                f"{found['problems'] / found['all']:.1%} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="YAML file of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of its keys")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds (0 to 4)")
    parser.add_argument("--output", type=Path, help="folder of the runs; by default runs/NAME-racing")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--synthetic", action="store_true", help="searches without models; no config")
    args = parser.parse_intermixed_args(arguments)  # overrides may follow options
    if args.synthetic:
        print(synthetic_table(args.seeds))
        return
    if args.config is None:
        parser.error("expected CONFIG or --synthetic, got neither; give one of them")
    folder = args.output or Path(f"runs/{cq.load_config(args.config, args.overrides).name}-racing")
    found = summary([measured(args, seed, folder) for seed in args.seeds])
    write_json(args.json or folder / "racing.json", found)
    print(markdown(found))


if __name__ == "__main__":
    main()
