"""Searches with several workers: the same results with any number of them, and after an interrupt."""

from __future__ import annotations

import signal
import threading
import time

import jax
import pytest

from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import EvaluationCancelled, Evaluator, SerialWorker, WorkerPool
from cycleqd_jax.search import Journal, evolve_steadily

from .conftest import TASKS


class Gate(Evaluator):
    """An evaluator whose fifth model never ends: Ctrl-C comes when all others of ``total`` models are done."""

    def __init__(self, evaluator, total):
        self.evaluator, self.total, self.count, self.done = evaluator, total, 0, 0
        self.lock, self.unload = threading.Lock(), evaluator.unload

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
        with self.lock:
            number, self.count = self.count, self.count + 1
        if number == 4:
            while self.done < self.total - 1:
                time.sleep(0.01)
            time.sleep(0.2)  # their results are in the journal now, or wait for earlier ones
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            if not stop.wait(10):
                pytest.fail("stop was not set")
            raise EvaluationCancelled
        try:
            return self.evaluator(params, donate=donate, stop=stop)
        finally:
            with self.lock:
                self.done += 1


@pytest.mark.parametrize("count", [*(pytest.param(count, marks=pytest.mark.exhaustive) for count in (2, 3)), 6])
def test_a_search_does_not_depend_on_the_number_of_workers(new_run, assert_identical, count):
    one, several = new_run("one"), new_run("several")
    state = one.evolve(batch_size=5)
    assert_identical(several.evolve(batch_size=5, evaluators=[new_run.Evaluator() for _ in range(count)]), state)
    assert several.lines() == one.lines()
    changed = new_run("changed")  # the number of workers changes in the middle
    changed.evolve(batch_size=5, generations=2, every=1, evaluators=[new_run.Evaluator() for _ in range(count)])
    assert_identical(changed.evolve(batch_size=5, every=1), state)
    assert changed.lines() == one.lines()


def test_ctrl_c_keeps_finished_results_and_stops_the_others(new_run, assert_identical):
    whole, run = new_run("whole"), new_run("interrupted")
    state = whole.evolve(batch_size=5)
    gate = Gate(new_run.Evaluator(), total=3 + 5)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.evolve(batch_size=5, evaluators=[gate, gate])
    finally:
        signal.signal(signal.SIGINT, handler)
    ids = [line["id"] for line in run.lines()]
    assert len(ids) == 7  # all but the model that hangs, also those after it
    assert ids == sorted(ids)
    rest = new_run.Evaluator()
    assert_identical(run.evolve(rest, batch_size=5), state)
    assert rest.calls == 1 + 3 * 5
    assert run.lines() == whole.lines()  # sorted again


class Interrupts(Evaluator):
    """An evaluator whose model number 5 brings Ctrl-C, and needs some time to end after it."""

    def __init__(self, evaluator, seconds):
        self.evaluator, self.seconds, self.count, self.unload = evaluator, seconds, 0, evaluator.unload
        self.begun = self.ended = 0

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
        self.begun += 1
        if self.begun == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if self.begun >= 5 and stop.wait(self.seconds):
            raise EvaluationCancelled
        self.ended += 1
        return self.evaluator(params, split, donate=donate, stop=stop)


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize(("count", "grace", "seconds"), [(1, 9, 0.5), (2, 9, 0.5), (1, 0.3, 9), (2, 0.3, 9)])
def test_after_ctrl_c_evaluations_in_hand_may_end(new_run, assert_identical, count, grace, seconds, steady):
    run, lines = new_run(), []
    evaluators = [Interrupts(new_run.Evaluator(), seconds), *[new_run.Evaluator()] * (count - 1)]
    workers = WorkerPool([SerialWorker(run.space.express, one) for one in evaluators], grace=grace, log=lines.append)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"tasks": TASKS, "key": jax.random.key(0), "journal": Journal(run.folder / "history.jsonl")}

    def search():
        if steady:
            return evolve_steadily(CycleQD(run.space, bins=5), run.experts, workers, children=200, **options)
        return run.evolve(batch_size=50, workers=workers)

    try:
        with pytest.raises(KeyboardInterrupt):
            search()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert lines == [f"running evaluations have {grace:g} s to end; press Ctrl-C to cancel them"]
    first = evaluators[0]
    assert (first.begun, first.ended) == ((5, 5) if grace > seconds else (5, 4))  # and none begins after it
    assert len(run.lines()) >= first.ended
    if count == 1:
        assert len(run.lines()) == first.ended
    if not steady:
        assert_identical(run.evolve(batch_size=50, generations=1), new_run("whole").evolve(batch_size=50, generations=1))


@pytest.mark.exhaustive
def test_seconds_do_not_include_waiting_for_a_worker(new_run):
    class Slow(new_run.Evaluator):
        def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
            time.sleep(0.3)
            return super().__call__(params, split, donate=donate, stop=stop)

    run = new_run()
    run.evolve(batch_size=8, generations=1, evaluators=[Slow(), Slow()])
    journal = Journal(run.folder / "history.jsonl")
    spent = [journal.get(i).seconds for i in range(3, 11)]
    assert all(set(seconds) == {"express", "evaluate"} for seconds in spent)
    assert sorted(sum(seconds.values()) for seconds in spent)[4] < 0.6  # half of the children waited longer than that
