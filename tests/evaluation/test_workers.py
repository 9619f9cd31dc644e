"""Workers: results do not depend on their number, and an interrupt keeps the finished ones."""

from __future__ import annotations

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.evaluation import (
    Evaluation,
    EvaluationCancelled,
    Evaluator,
    LazyWorker,
    PopulationWorker,
    SerialWorker,
    WorkerPool,
)
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.types import Adapter, LowRank, Outcome, Score


def doubled(number):
    return Evaluation({"task": [Outcome(Score(2.0 * number), (), 1, 1)]}, None, {})


class FakeWorker:
    """Doubles numbers. It calls ``acts[number]`` first, with the event that says to stop."""

    def __init__(self, size=1, acts=None):
        self.size, self.acts, self.seen = size, acts or {}, []

    def __call__(self, genomes, stop):
        numbers = [int(genome) for genome in genomes]
        self.seen.append(numbers)
        for number in numbers:
            self.acts.get(number, lambda stop: None)(stop)
        return [doubled(number) for number in numbers]


def results_of(pool, groups):
    results = {}

    def on_result(i, evaluations):
        assert i not in results
        results[i] = evaluations

    pool([[np.asarray(genome) if isinstance(genome, int) else genome for genome in group] for group in groups], on_result)
    return results


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_group_has_one_result(count, size):
    workers = [FakeWorker(size) for _ in range(count)]
    pool = WorkerPool(workers)
    assert pool.size == size
    groups = [list(range(i, i + size)) for i in range(0, 8, size)]
    assert results_of(pool, groups) == {i: [doubled(number) for number in group] for i, group in enumerate(groups)}
    assert sorted(group for worker in workers for group in worker.seen) == groups
    assert results_of(pool, []) == {}


def test_workers_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    acts = dict.fromkeys(range(3), lambda stop: meeting.wait())
    assert len(results_of(WorkerPool([FakeWorker(acts=acts) for _ in range(3)]), [[0], [1], [2]])) == 3


def until_stopped(stop):
    if not stop.wait(10):
        pytest.fail("stop was not set")
    raise EvaluationCancelled


def test_when_one_worker_fails_the_others_stop_and_finished_results_stay():
    def fails(stop):
        time.sleep(0.05)
        raise RuntimeError("the sandbox is broken")

    pool = WorkerPool([FakeWorker(acts={0: until_stopped, 1: fails}) for _ in range(3)])
    results = {}
    with pytest.raises(RuntimeError, match="the sandbox is broken"):
        pool([[np.asarray(number)] for number in range(4)], results.__setitem__)
    assert {2, 3} == results.keys()


def test_a_lazy_worker_is_constructed_once_at_its_first_call():
    made = []

    def make():
        made.append(FakeWorker(2))
        return made[-1]

    pool = WorkerPool([LazyWorker(2, make)])
    assert (pool.size, made) == (2, [])
    assert results_of(pool, [[1, 2], [3]]) == {0: [doubled(1), doubled(2)], 1: [doubled(3)]}
    assert [worker.seen for worker in made] == [[[1, 2], [3]]]


def test_weights_are_unloaded_before_the_next_are_expressed():
    happened = []

    class Watched(Evaluator):
        def __init__(self):
            pass

        def unload(self):
            happened.append("unload")

        def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
            happened.append(f"evaluate, donated: {donate}")
            return doubled(int(params["w"]))

    def express(genome):
        happened.append("express")
        return {"w": jnp.asarray(genome)}

    assert results_of(WorkerPool([SerialWorker(express, Watched())]), [[1], [3]]).keys() == {0, 1}
    assert happened == ["unload", "express", "evaluate, donated: True"] * 2


def test_the_split_of_a_worker_is_that_of_its_evaluations(low_rank):
    _, _, space = low_rank
    splits = []

    class Watched(Evaluator):
        def __init__(self):
            self.unload = lambda: None

        def population(self, params, count, split="train", *, donate=False, stop=None, relatives=()):
            splits.append(split)
            return [doubled(1)] * count

    workers = [SerialWorker(space.express, Watched(), "validation"), SerialWorker(space.express, Watched())]
    workers += [PopulationWorker(space.express_mixed, Watched(), 1, "validation")]
    for worker in workers:
        worker([space.expert(0)], threading.Event())
    assert splits == ["validation", "train", "validation"]


# ------------------------------------------------------------------------------------------------- populations


class FakePopulationEvaluator(Evaluator):
    """Computes the scores of populations from their weights."""

    def __init__(self):
        self.counts, self.unloads = [], 0

    def unload(self):
        self.unloads += 1

    def population(self, params, count, split="train", *, donate=False, stop=None, relatives=()):
        self.counts.append(count)
        w = params["w"]
        layers = range(w.w.shape[0])
        found = []
        for i in range(count):
            whole = [np.asarray(w.w[j] + (w.u[j] * w.coefficients[j, i][None]) @ w.vt[j], np.float64) for j in layers]
            values = {name: [float(np.round(np.abs(whole[0]).sum(), 3)) % 1] for name in ("coding", "db", "os")}
            outcomes = {name: [Outcome(Score(value), (), 1, 1) for value in some] for name, some in values.items()}
            found.append(Evaluation(outcomes, None, {"evaluate": 0.6}))
        return found


@pytest.fixture(scope="module")
def low_rank():
    rng = np.random.default_rng(1)

    def matrix(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    base = {"w": matrix(2, 6, 5), "norm": matrix(5)}
    adapters = [Adapter({"w": LowRank(matrix(2, 6, 2), matrix(2, 2, 5))}) for _ in range(3)]
    return base, adapters, ExpertSpace.from_experts(base, adapters)


def test_a_group_is_evaluated_as_one_population(low_rank):
    _, _, space = low_rank
    genomes = [space.mutate(jax.random.key(i), space.expert(i % 3), i % 3) for i in range(5)]
    evaluator = FakePopulationEvaluator()
    pool = WorkerPool([PopulationWorker(space.express_mixed, evaluator, 2)])
    assert pool.size == 2
    results = results_of(pool, [genomes[:2], genomes[2:4], genomes[4:]])
    assert evaluator.counts == [2, 2, 1]
    assert evaluator.unloads == 3
    found = [evaluation for i in range(3) for evaluation in results[i]]
    for genome, evaluation in zip(genomes, found, strict=True):
        whole = np.asarray(space.express(genome)["w"][0], np.float64)
        assert evaluation.scores["db"] == pytest.approx(np.abs(whole).sum() % 1, abs=2e-3)
        assert evaluation.error is None
    assert [evaluation.seconds["evaluate"] for evaluation in found] == [0.3] * 4 + [0.6]  # divided by the size of the group


def test_smaller_groups_compile_nothing(low_rank, compilations):
    _, _, space = low_rank
    worker = PopulationWorker(space.express_mixed, FakePopulationEvaluator(), 3)
    genomes = [space.expert(k) for k in range(3)]
    worker(genomes, threading.Event())
    assert compilations(lambda: worker(genomes[:1], threading.Event()) and None) == 0
    stop = threading.Event()
    stop.set()
    with pytest.raises(EvaluationCancelled):
        worker(genomes, stop)


def test_experts_of_a_population_equal_merged_adapters(low_rank):
    base, adapters, space = low_rank
    (evaluation,) = PopulationWorker(space.express_mixed, FakePopulationEvaluator(), 1)([space.expert(1)], threading.Event())
    want = np.abs(np.asarray(apply_adapter(base, adapters[1])["w"][0], np.float64)).sum() % 1
    assert evaluation.scores["os"] == pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize("sizes", [(), (1, 2)])
def test_a_pool_of_unequal_workers(sizes):
    with pytest.raises(ValueError, match=r"expected one or more workers of equal size, got the sizes"):
        WorkerPool([LazyWorker(size, FakeWorker) for size in sizes])
