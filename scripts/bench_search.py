"""Measures the time and the memory of a long search, generation by generation, and the sizes of its files.

    python scripts/bench_search.py [--tasks 3] [--generations 1200] [--size 64] [--every 10] [--json FILE] [--figure FILE]

The problem is a toy: matrices of ``size`` × ``size``, and scores that are hashes of a genome, which cost nothing. So what is
measured is the search itself: selection, crossover, mutation, insertion into the archives, a durable line in the journal for
every child, and a checkpoint every ``every`` generations. The batch size is 1, as in the paper.

Printed are the median time of a generation in each tenth of the search, the memory of the process at its end, the sizes of the
journal and of a checkpoint, and the time to open the finished folder again, from a checkpoint and from the journal alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.search import Checkpoints, Journal, evolve, tree_digest
from cycleqd_jax.types import Outcome, Score

ITEMS = 32
"""Problems of each task."""


class HashedScores:
    """Scores that depend on the bits of a genome, as shares of solved problems."""

    size = 1

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tasks

    def __call__(self, groups: Any, on_result: Any) -> None:
        """See :class:`~cycleqd_jax.evaluation.GenomeEvaluator`."""
        for i, (genome,) in enumerate(groups):
            number = int(tree_digest(genome), 16)
            outcomes = {
                task: [Outcome(Score(float(n < (number >> 8 * k) % (ITEMS + 1))), (), 1, 1) for n in range(ITEMS)]
                for k, task in enumerate(self.tasks)
            }
            on_result(i, [Evaluation(outcomes, None, {"evaluate": 0.0})])


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the command; returns what it prints as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--generations", type=int, default=1200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a drawing of time and memory, such as search.svg")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.tasks, args.generations, args.size, args.every)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2))
    if args.figure is not None:
        draw(found, args.figure)
    print(text(found))
    return found


def measure(folder: Path, count: int, generations: int, size: int, every: int) -> dict[str, Any]:
    """Runs a search and opens its folder again."""
    tasks = [f"task{k}" for k in range(count)]
    rng = np.random.default_rng(0)
    models = [{"w": jnp.asarray(rng.normal(size=(2, size, size)), jnp.float32)} for _ in range(count + 1)]
    space = ExpertSpace.from_experts(models[0], models[1:])
    experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.expert(k) for k in range(count)])
    times, memory = [], []

    def progress(stage: str, done: int, total: int, figures: Any) -> None:
        times.append(time.perf_counter())
        memory.append(resident())

    def search(checkpoints: bool = True) -> float:
        start = time.perf_counter()
        kept = Checkpoints(folder / "checkpoints", every=every) if checkpoints else None
        evolve(
            CycleQD(space),
            experts,
            HashedScores(tasks),
            tasks=tasks,
            key=jax.random.key(0),
            generations=generations,
            batch_size=1,
            journal=Journal(folder / "history.jsonl"),
            checkpoints=kept,
            progress=progress,
        )
        if kept is not None:
            kept.close()
        return time.perf_counter() - start

    seconds = search()
    gaps = np.diff(times[count - 1 :]).tolist()
    used = memory[count:]
    bounds = [round(len(gaps) * i / 10) for i in range(11)]
    parts = list(itertools.pairwise(bounds))
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    sizes = [sum(one.stat().st_size for one in step.rglob("*") if one.is_file()) for step in steps]
    journal = (folder / "history.jsonl").stat().st_size
    found = {
        "tasks": count,
        "generations": generations,
        "size": size,
        "every": every,
        "seconds": seconds,
        "milliseconds": [1e3 * statistics.median(gaps[a:b]) for a, b in parts],
        "mean_milliseconds": [1e3 * statistics.fmean(gaps[a:b]) for a, b in parts],
        "megabytes": [used[b - 1] for _, b in parts],
        "journal_bytes": journal,
        "journal_bytes_each": journal / (count + generations),
        "checkpoint_bytes": max(sizes),
        "checkpoints": len(sizes),
        "genome_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(space.expert(0))),
    }
    found["resume_seconds"] = search()
    shutil.rmtree(folder / "checkpoints")
    found["replay_seconds"] = search(checkpoints=False)
    return found


def text(found: dict[str, Any]) -> str:
    """The figures as lines."""
    names = ("milliseconds", "mean_milliseconds", "megabytes")
    ms, mean, mb = (" ".join(f"{value:.1f}" for value in found[name]) for name in names)
    return f"""{found["generations"]} generations, K = {found["tasks"]}: {found["seconds"]:.0f} s
  median ms a generation, by tenths: {ms}
  mean ms, with checkpoints:         {mean}
  MB of the process, by tenths:      {mb}
  journal {found["journal_bytes"] / 1e6:.2f} MB, {found["journal_bytes_each"]:.0f} bytes an individual
  checkpoint {found["checkpoint_bytes"] / 1e6:.2f} MB, {found["checkpoints"]} kept; a genome has {found["genome_bytes"]} bytes
  opened again: {found["resume_seconds"]:.1f} s from a checkpoint, {found["replay_seconds"]:.1f} s from the journal"""


def draw(found: dict[str, Any], file: Path) -> None:
    """Draws time and memory over the generations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [found["generations"] * (i + 0.5) / 10 for i in range(10)]
    left.plot(x, found["milliseconds"], "o-")
    left.set(xlabel="generation", ylabel="median ms a generation", ylim=(0, None))
    right.plot([found["generations"] * (i + 1) / 10 for i in range(10)], found["megabytes"], "o-", color="tab:green")
    right.set(xlabel="generation", ylabel="MB of the process", ylim=(0, None))
    figure.savefig(file)


if __name__ == "__main__":
    main()
