"""A search whose evaluations take a moment, for workers of a real cluster; run as a script it is the driver of the search.

usage: searching.py FOLDER (ADDRESS | here) [numbers]
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import Evaluation, SerialWorker, WorkerPool
from cycleqd_jax.evaluation.ray import Hosted, Patience, RayCluster, RayPool
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.search import Checkpoints, Journal, evolve, tree_digest
from cycleqd_jax.types import Outcome, Score

TASKS = ("coding", "db", "os")
GENERATIONS, BATCH, SECONDS, DEADLINE = 40, 6, 0.5, 15.0  # long enough for workers to load meanwhile


def search_space() -> ExpertSpace:
    rng = np.random.default_rng(0)
    models = [{"w": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)} for _ in range(4)]
    return ExpertSpace.from_experts(models[0], models[1:])


@dataclasses.dataclass
class Judge:
    """Computes scores from the weights. While it does, ``busy/<pid>`` exists."""

    folder: Path | None
    seconds: float

    def unload(self) -> None:
        pass

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()) -> Evaluation:
        weights = np.asarray(params["w"], np.float64)
        if self.folder is not None:
            mark = self.folder / "busy" / str(os.getpid())
            mark.touch()
        time.sleep(self.seconds)
        if self.folder is not None:
            mark.unlink()
        values = [float(np.round(1 / (1 + np.exp(-weights[k].sum())), 4)) for k in range(len(TASKS))]
        outcomes = {name: [Outcome(Score(value), (), 1, 1)] for name, value in zip(TASKS, values, strict=True)}
        return Evaluation(outcomes, None, {"evaluate": self.seconds})

    def population(self, params, count, split="train", *, donate=False, stop=None, relatives=()):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SearchProgram:
    folder: Path

    def start(self, log) -> Hosted:
        return Hosted({"train": SerialWorker(search_space().express, Judge(self.folder, SECONDS))}, {"device": "cpu"})


def search(folder: Path, evaluator) -> None:
    """Searches to the end, and writes the digest of the last state."""
    space = search_space()
    checkpoints = Checkpoints(folder / "checkpoints", every=2)
    state = evolve(
        CycleQD(space, bins=5),
        jax.tree.map(lambda *x: jnp.stack(x), *(space.expert(k) for k in range(len(TASKS)))),
        evaluator,
        tasks=TASKS,
        key=jax.random.key(0),
        generations=GENERATIONS,
        batch_size=BATCH,
        journal=Journal(folder / "history.jsonl"),
        checkpoints=checkpoints,
    )
    checkpoints.close()
    write_json(folder / "done.json", tree_digest(state))


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Doubles numbers. 1 kills its worker, 2 exhausts the memory; a program with ``fails`` does not start."""

    fails: bool = False

    def start(self, log) -> Hosted:
        if self.fails:
            raise MemoryError("expected 80 GB")
        log("loaded")
        return Hosted({"train": Doubling()}, {"device": "cpu"})


class Doubling:
    size = 1

    def __call__(self, genomes, stop, relatives=()):
        number = int(np.asarray(genomes[0]))
        if number == 1:
            os.kill(os.getpid(), 9)
        if number == 2:
            raise MemoryError("the memory of the worker")
        return [Evaluation({"task": [Outcome(Score(2.0 * number), (), 1, 1)]}, None, {})]


def main(folder: Path, address: str) -> None:
    (folder / "busy").mkdir(parents=True, exist_ok=True)
    if address == "here":
        search(folder, WorkerPool([SerialWorker(search_space().express, Judge(None, 0.0))]))
        return
    pool = RayPool(
        RayCluster(address, cpus=1, gpus=0),
        SearchProgram(folder),
        size=1,
        workers=4,
        patience=Patience(deadline=DEADLINE, start=120),
        grace=60.0,
        record=lambda found: write_json(folder / "workers.json", [one.to_json() for one in found]),
        log=lambda line: print(line, flush=True),
    )
    try:
        search(folder, pool.evaluator("train", quarantine=True))
    finally:
        pool.close()


def double(folder: Path, address: str) -> None:
    """Writes what becomes of workers that do not start, and of numbers that end their workers."""
    found: dict = {}

    def named(name: str, call) -> None:
        try:
            call()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGTERM, handler)
    cluster = RayCluster(address, cpus=1, gpus=0)
    found["handler kept"] = signal.getsignal(signal.SIGTERM) == handler

    def doubled(program: Numbers, *numbers: int) -> None:
        def on_result(i: int, evaluations: list[Evaluation]) -> None:
            one = evaluations[0]
            found[str(numbers[i])] = {"score": one.scores and one.scores["task"], "error": one.error}

        pool = RayPool(cluster, program, size=1, workers=1, patience=Patience(deaths=2), log=print)
        pool.evaluator("train", quarantine=True)([[np.asarray(number)] for number in numbers], on_result)

    named("MemoryError in start", lambda: doubled(Numbers(fails=True), 3))
    doubled(Numbers(), 3, 1, 4)
    doubled(Numbers(), 2)
    cluster.close()
    write_json(folder / "numbers.json", found)


if __name__ == "__main__":
    import searching  # workers import this module by its name

    (searching.double if sys.argv[3:] == ["numbers"] else searching.main)(Path(sys.argv[1]), sys.argv[2])
