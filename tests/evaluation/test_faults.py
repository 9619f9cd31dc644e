"""Evaluations that fail: attempts, pauses, deadlines, and memory that runs out."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from cycleqd_jax.evaluation import (
    Evaluation,
    EvaluationCancelled,
    FaultPolicy,
    GuardedWorker,
    in_less_memory,
    out_of_memory,
)
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import Outcome, Score

QUICK = FaultPolicy(retries=2, pause=0.0)
FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nstack")


class Fails:
    """A worker that takes its next exception for a number from ``plan``, where there is one, and doubles the number."""

    def __init__(self, plan, size=1):
        self.plan, self.size, self.seen = plan, size, []

    def __call__(self, genomes, stop, relatives=()):
        numbers = [int(genome) for genome in genomes]
        self.seen.append(numbers)
        for number in numbers:
            if self.plan.get(number):
                found = self.plan[number].pop(0)
                if callable(found):
                    found(stop)
                else:
                    raise found
        return [Evaluation({"task": [Outcome(Score(2.0 * number), (), 1, 1)]}, None, {}) for number in numbers]


def call(worker, *numbers):
    return worker([np.asarray(number) for number in numbers], threading.Event())


def scores(evaluations):
    return [None if one.scores is None else one.scores["task"] for one in evaluations]


def test_an_attempt_that_succeeds_leaves_no_trace():
    lines = []
    inner = Fails({1: [InfraError("expected a box, got none; start it")] * 2})
    (found,) = call(GuardedWorker(inner, QUICK, log=lines.append), 1)
    assert found.seconds.keys() == {"retries"}
    assert dataclasses.replace(found, seconds={}) == call(Fails({}), 1)[0]
    assert inner.seen == [[1]] * 3
    assert lines == [
        f"warning: attempt {i} of 3 failed, the next follows in 0 s: InfraError: expected a box, got none; start it"
        for i in (1, 2)
    ]


def test_an_individual_that_fails_in_every_attempt_is_quarantined():
    inner = Fails({1: [InfraError("no\nbox" if i == 2 else "x" * 999) for i in range(9)]})
    (found,) = call(GuardedWorker(inner, QUICK), 1)
    assert (found.scores, found.error, found.transient) == (None, "InfraError: no (in 3 attempts)", True)
    assert found.seconds.keys() == {"evaluate"}
    (found,) = call(GuardedWorker(inner, QUICK), 1)
    assert len(found.error) < 340


def test_pauses_grow_and_end_when_the_run_stops(monkeypatch):
    waited = []
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", waited.append)
    broken = Fails({1: [InfraError("no")] * 9})
    GuardedWorker(broken, FaultPolicy(retries=3, pause=0.5))([np.asarray(1)], stop)
    assert waited == [0.5, 2.0, 8.0]


def test_the_defaults_outlast_a_short_outage(monkeypatch):
    """The pauses of the default policy are 1, 4 and 16 s; here they pass at once."""
    now, stop = [0.0], threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: now.__setitem__(0, now[0] + seconds))

    class Outage(Fails):
        def __call__(self, genomes, stop, relatives=()):
            if now[0] < 15:
                raise InfraError("expected the server to answer, got nothing; start it")
            return super().__call__(genomes, stop)

    assert scores(GuardedWorker(Outage({}), FaultPolicy())([np.asarray(1)], stop)) == [2.0]
    assert now == [21.0]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_that_a_failing_close_hides_ends_the_run(interrupt):
    def closes(stop):
        try:
            raise interrupt
        finally:
            raise InfraError("close failed")

    with pytest.raises(interrupt):
        call(GuardedWorker(Fails({1: [closes]}), QUICK), 1)
    try:
        raise interrupt
    except interrupt:  # an older one that the caller handles
        assert scores(call(GuardedWorker(Fails({1: [InfraError("no")]}), QUICK), 1)) == [2.0]


def test_the_time_of_failed_attempts_is_recorded():
    def slow(stop):
        time.sleep(0.02)
        raise InfraError("no")

    assert call(GuardedWorker(Fails({1: [slow]}), QUICK), 1)[0].seconds["retries"] >= 0.02
    assert call(GuardedWorker(Fails({}), QUICK), 1)[0].seconds == {}
    found = call(GuardedWorker(Fails({1: [slow] * 3}, size=2), QUICK), 1, 2)
    assert scores(found) == [2.0, 4.0]
    assert all(one.seconds["retries"] >= 0.03 for one in found)


def test_without_quarantine_the_last_exception_is_raised():
    policy = FaultPolicy(retries=1, pause=0.0, quarantine=False)
    with pytest.raises(InfraError, match="second"):
        call(GuardedWorker(Fails({1: [InfraError("first"), InfraError("second")]}), policy), 1)
    with pytest.raises(jax.errors.JaxRuntimeError):
        call(GuardedWorker(Fails({1: [FULL]}), policy), 1)
    assert scores(call(GuardedWorker(Fails({1: [InfraError("first")]}), policy), 1)) == [2.0]


@pytest.mark.parametrize("error", [ValueError("x"), jax.errors.JaxRuntimeError("INTERNAL: bug"), OSError(errno.ENOSPC, "full")])
def test_other_exceptions_are_no_faults_of_an_individual(error):
    worker = Fails({1: [error]})
    with pytest.raises(type(error)):
        call(GuardedWorker(worker, QUICK), 1)
    assert worker.seen == [[1]]


def test_a_full_disk_is_never_a_quarantine():
    def broken():
        error = InfraError("expected a working sandbox, got an error")
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        return error

    worker = Fails({1: [broken() for _ in range(3)]})
    with pytest.raises(InfraError):
        call(GuardedWorker(worker, QUICK), 1)
    assert len(worker.seen) == 3


# ---------------------------------------------------------------------------------------------------------- deadlines


def hangs(stop):
    for _ in range(2000):
        if stop.is_set():
            raise EvaluationCancelled
        time.sleep(0.005)
    pytest.fail("stop was not set")


def test_an_individual_beyond_its_deadline_is_quarantined():
    worker = GuardedWorker(Fails({1: [hangs]}), FaultPolicy(deadline=0.05))
    (found,) = call(worker, 1)
    assert (found.error, found.transient) == ("the evaluation exceeded search.deadline, 0.05 s", True)
    assert 0.05 <= found.seconds["evaluate"] < 5
    assert scores(call(worker, 1)) == [2.0]


def test_the_deadline_includes_pauses():
    worker = GuardedWorker(Fails({1: [InfraError("no"), hangs]}), FaultPolicy(pause=0.05, deadline=0.04))
    assert "search.deadline" in call(worker, 1)[0].error


def test_a_run_that_stops_is_no_deadline():
    stop = threading.Event()
    stop.set()
    with pytest.raises(EvaluationCancelled):
        GuardedWorker(Fails({1: [hangs]}), FaultPolicy(deadline=60.0))([np.asarray(1)], stop)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_moves_no_deadline(monkeypatch, jump):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)

    def looks(stop):
        assert not stop.is_set()

    assert scores(call(GuardedWorker(Fails({1: [looks]}), FaultPolicy(deadline=60.0)), 1)) == [2.0]
    assert "deadline" in call(GuardedWorker(Fails({1: [hangs]}), FaultPolicy(deadline=0.02)), 1)[0].error


# ------------------------------------------------------------------------------------------------------------- groups


def test_one_individual_does_not_take_its_group_with_it():
    inner = Fails({2: [InfraError("no")] * 99}, size=3)
    found = call(GuardedWorker(inner, FaultPolicy(retries=1, pause=0.0)), 1, 2, 3)
    assert scores(found) == [2.0, None, 6.0]
    assert [one.transient for one in found] == [False, True, False]
    assert inner.seen == [[1, 2, 3], [1, 2, 3], [1], [2], [2], [3]]


def test_a_group_that_succeeds_later_has_the_same_bits_and_one_that_is_divided_is_named():
    class Grouped:
        """The last bits of its results depend on the group."""

        size = 3

        def __init__(self, faults):
            self.faults = faults

        def __call__(self, genomes, stop, relatives=()):
            self.faults -= 1
            if self.faults >= 0:
                raise InfraError("no")
            shift = 1e-6 * sum(map(float, genomes))
            return [Evaluation({"task": [Outcome(Score(float(one) + shift), (), 1, 1)]}, None, {}) for one in genomes]

    lines = []
    whole, late, divided = (call(GuardedWorker(Grouped(n), QUICK, log=lines.append), 1, 2, 3) for n in (0, 2, 3))
    assert scores(whole) == scores(late) != scores(divided)
    assert lines[-1] == (
        "warning: a group of 3 individuals failed, each is evaluated alone, which may change the last bits of their results: "
        "InfraError: no (in 3 attempts)"
    )


def test_relatives_stay_with_their_individuals():
    seen = []

    class Worker(Fails):
        def __call__(self, genomes, stop, relatives=()):
            seen.append(relatives)
            return super().__call__(genomes, stop)

    relatives = [[{"task": [[[1]]]}], [{"task": [[[2]]]}]]
    worker = GuardedWorker(Worker({2: [InfraError("no")]}, size=2), FaultPolicy(retries=0))
    assert scores(worker([np.asarray(1), np.asarray(2)], threading.Event(), relatives)) == [2.0, 4.0]
    assert seen == [relatives, relatives[:1], relatives[1:]]


# ------------------------------------------------------------------------------------------------------------- memory


def test_where_memory_runs_out_the_worker_shrinks_once():
    shrunk = []
    inner = Fails({1: [FULL], 2: [FULL, FULL, MemoryError()]})
    worker = GuardedWorker(inner, QUICK, shrink=lambda: shrunk.append(1) or len(shrunk) == 1)
    assert scores(call(worker, 1)) == [2.0]
    (found,) = call(worker, 2)
    assert found.error == "out of memory: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
    assert found.transient
    assert len(shrunk) == 2
    assert call(worker, 2)[0].scores is None
    assert call(worker, 2)[0].error == "out of memory: MemoryError"


def test_the_arrays_of_a_failed_attempt_are_free_before_the_next():
    class Large:
        pass

    held = []

    def evaluate():
        if held:
            assert held[0]() is None
            return 1
        large = Large()
        held.append(weakref.ref(large))
        raise jax.errors.JaxRuntimeError(str(FULL))

    assert in_less_memory(evaluate, lambda: True) == 1


def test_what_is_out_of_memory():
    assert out_of_memory(FULL)
    assert not out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: bug"))
    assert not out_of_memory(ValueError("RESOURCE_EXHAUSTED: Error writing"))
