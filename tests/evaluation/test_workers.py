"""Several lanes: the same records whatever their number, and what an interrupt leaves."""

from __future__ import annotations

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.evaluation import Abandoned, Evaluation, OneByOne, OverOneBase, SideBySide
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.search import Journal
from cycleqd_jax.types import Adapter, LowRank, Outcome, Score


class Lane:
    """Doubles numbers; ``acts[number]`` is called before, with the flag that says to stop."""

    def __init__(self, size=1, acts=None):
        self.size, self.acts, self.seen = size, acts or {}, []

    def __call__(self, genomes, stop):
        self.seen.append(list(genomes))
        for genome in genomes:
            self.acts.get(genome, lambda stop: None)(stop)
        return [{"scores": 2 * genome} for genome in genomes]


def told(judge, groups):
    records = {}

    def found(i, of_group):
        assert i not in records
        records[i] = of_group

    judge(groups, found)
    return records


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_group_is_told_once(lanes, size):
    lanes = [Lane(size) for _ in range(lanes)]
    judge = SideBySide(lanes)
    assert judge.size == size
    groups = [list(range(i, i + size)) for i in range(0, 8, size)]
    assert told(judge, groups) == {i: [{"scores": 2 * genome} for genome in group] for i, group in enumerate(groups)}
    assert sorted(group for lane in lanes for group in lane.seen) == groups
    assert told(judge, []) == {}


def test_lanes_work_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    acts = dict.fromkeys(range(3), lambda stop: meeting.wait())
    assert len(told(SideBySide([Lane(acts=acts) for _ in range(3)]), [[0], [1], [2]])) == 3


def until_told(stop):
    if not stop.wait(10):
        pytest.fail("nobody said stop")
    raise Abandoned


def test_when_one_lane_fails_the_others_stop_and_what_is_found_stands():
    def fails(stop):
        time.sleep(0.05)
        raise RuntimeError("the sandbox is broken")

    judge = SideBySide([Lane(acts={0: until_told, 1: fails}) for _ in range(3)])
    found = {}
    with pytest.raises(RuntimeError, match="the sandbox is broken"):
        judge([[0], [1], [2], [3]], found.__setitem__)
    assert {2, 3} == found.keys()


# ------------------------------------------------------------------------------------------------- in the loop


class Gate:
    """An evaluator whose fifth model never ends: Ctrl-C comes when ``total`` have begun, and all others are done."""

    def __init__(self, evaluator, total):
        self.evaluator, self.total, self.count, self.done = evaluator, total, 0, 0
        self.lock, self.unload = threading.Lock(), evaluator.unload

    def __call__(self, params, donate, stop):
        with self.lock:
            number, self.count = self.count, self.count + 1
        if number == 4:
            while self.done < self.total - 1:
                time.sleep(0.01)
            time.sleep(0.2)  # they are in the journal now, or wait for those before them
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            until_told(stop)
        try:
            return self.evaluator(params, donate, stop)
        finally:
            with self.lock:
                self.done += 1


@pytest.mark.parametrize("lanes", [2, 3, 6])
def test_a_search_does_not_depend_on_the_number_of_lanes(new_run, assert_identical, lanes):
    one, several = new_run("one"), new_run("several")
    state = one.evolve(batch_size=5)
    assert_identical(several.evolve(batch_size=5, lanes=[new_run.Evaluator() for _ in range(lanes)]), state)
    assert several.lines() == one.lines()
    changed = new_run("changed")  # in the middle
    changed.evolve(batch_size=5, generations=2, every=1, lanes=[new_run.Evaluator() for _ in range(lanes)])
    assert_identical(changed.evolve(batch_size=5, every=1), state)
    assert changed.lines() == one.lines()


def test_ctrl_c_keeps_what_is_finished_and_waits_for_nothing(new_run, assert_identical):
    whole, run = new_run("whole"), new_run("interrupted")
    state = whole.evolve(batch_size=5)
    gate = Gate(new_run.Evaluator(), total=3 + 5)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.evolve(batch_size=5, lanes=[gate, gate])
    finally:
        signal.signal(signal.SIGINT, handler)
    ids = [line["id"] for line in run.lines()]
    assert len(ids) == 7  # all but the one that hung: those after it too
    assert ids == sorted(ids)
    rest = new_run.Evaluator()
    assert_identical(run.evolve(rest, batch_size=5), state)
    assert rest.calls == 1 + 3 * 5
    assert run.lines() == whole.lines()  # in order again


def test_seconds_are_those_of_the_child_not_of_waiting_for_a_lane(new_run):
    class Slow(new_run.Evaluator):
        def __call__(self, params, donate, stop):
            time.sleep(0.3)
            return super().__call__(params, donate, stop)

    run = new_run()
    run.evolve(batch_size=8, generations=1, lanes=[Slow(), Slow()])
    journal = Journal(run.folder / "history.jsonl")
    spent = [journal.get(i)["seconds"] for i in range(3, 11)]
    assert all(set(seconds) == {"express", "evaluate"} for seconds in spent)
    assert sorted(sum(seconds.values()) for seconds in spent)[4] < 0.6  # half of them waited for longer than that


def test_the_last_child_goes_before_the_next_is_made(new_run, space):
    happened = []

    class Watched(new_run.Evaluator):
        def unload(self):
            happened.append("unload")

        def __call__(self, params, donate, stop):
            happened.append(f"evaluate, donated: {donate}")
            return super().__call__(params, donate, stop)

    def express(genome):
        happened.append("express")
        return space.express(genome)

    SideBySide([OneByOne(express, Watched())])([[space.expert(0)], [space.expert(1)]], lambda i, records: None)
    assert happened == ["unload", "express", "evaluate, donated: True"] * 2


# --------------------------------------------------------------------------------------------------- over one base


class Mixed:
    """An evaluator of populations by arithmetic; the individual whose mixing is largest may be ``broken``."""

    def __init__(self):
        self.counts, self.unloads = [], 0

    def unload(self):
        self.unloads += 1

    def population(self, params, count, stop):
        self.counts.append(count)
        w = params["w"]
        layers = range(w.w.shape[0])
        found = []
        for i in range(count):
            whole = [np.asarray(w.w[j] + (w.u[j] * w.coefficients[j, i]) @ w.vt[j], np.float64) for j in layers]
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


def test_over_one_base_a_group_is_judged_together(low_rank):
    _, _, space = low_rank
    genomes = [space.mutate(jax.random.key(i), space.expert(i % 3), i % 3) for i in range(5)]
    evaluator = Mixed()
    judge = SideBySide([OverOneBase(space.express_mixed, evaluator, 2)])
    assert judge.size == 2
    records = told(judge, [genomes[:2], genomes[2:4], genomes[4:]])
    assert evaluator.counts == [2, 2, 1]
    assert evaluator.unloads == 3
    found = [record for i in range(3) for record in records[i]]
    for genome, record in zip(genomes, found, strict=True):
        whole = np.asarray(space.express(genome)["w"][0], np.float64)
        assert record["scores"]["db"] == pytest.approx(np.abs(whole).sum() % 1, abs=2e-3)
        assert record["error"] is None
    assert [record["seconds"]["evaluate"] for record in found] == [0.3] * 4 + [0.6]  # divided by those who were judged


def test_over_one_base_the_programs_are_the_same_for_fewer(low_rank, compilations):
    _, _, space = low_rank
    lane = OverOneBase(space.express_mixed, Mixed(), 3)
    genomes = [space.expert(k) for k in range(3)]
    lane(genomes, threading.Event())
    assert compilations(lambda: lane(genomes[:1], threading.Event()) and None) == 0
    stop = threading.Event()
    stop.set()
    with pytest.raises(Abandoned):
        lane(genomes, stop)


def test_over_one_base_experts_are_the_merged_ones(low_rank):
    base, adapters, space = low_rank
    (mixed,) = OverOneBase(space.express_mixed, Mixed(), 1)([space.expert(1)], threading.Event())
    want = np.abs(np.asarray(apply_adapter(base, adapters[1])["w"][0], np.float64)).sum() % 1
    assert mixed["scores"]["os"] == pytest.approx(want, abs=2e-3)
