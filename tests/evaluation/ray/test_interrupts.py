"""Ctrl-C in the pool: running evaluations get a grace period, and no result is lost or recorded twice."""

from __future__ import annotations

import signal
import sys
import threading
import time

import numpy as np
import pytest

from cycleqd_jax.evaluation.ray import jobs, pool

from .fake_cluster import Died, Doubler, FakeCluster, die_times, doubled, pool_of, raise_error, results_of


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(FakeCluster):
    """Two machines. Raises KeyboardInterrupt once in ``wait``, when both evaluate; ``interrupted`` is set then."""

    def __init__(self):
        super().__init__("a", "b")
        self.begun, self.interrupted = 0, threading.Event()

    def call(self, worker, method, *arguments):
        self.begun += method == "evaluate"
        return super().call(worker, method, *arguments)

    def wait(self, calls, seconds):
        if self.begun == 2 and not self.interrupted.is_set():
            self.interrupted.set()
            raise KeyboardInterrupt
        return super().wait(calls, seconds)


@pytest.mark.parametrize(
    ("grace", "act", "found"),
    [
        (0.0, lambda before: None, []),
        (20.0, lambda before: None, [0, 1]),
        (20.0, lambda before: time.sleep(0.5), [0, 1]),
        (20.0, die_times(9), [1]),  # it is not tried again
        (20.0, raise_error("x"), [1]),
        (1.0, lambda before: time.sleep(4), [1]),
    ],
)
def test_evaluations_in_hand_have_a_grace_after_an_interrupt(grace, act, found):
    cluster, results, lines = Interrupted(), {}, []

    def first(before):
        cluster.interrupted.wait(20)
        act(before)

    program = Doubler(acts={0: first, 1: lambda before: cluster.interrupted.wait(20)})
    one = pool_of(cluster, program, grace=grace, log=lines.append)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        one.evaluator("train", quarantine=True)([[np.asarray(n)] for n in range(6)], results.__setitem__)
    assert time.monotonic() - begin < 3.5
    assert results == {n: [doubled(n)] for n in found}
    assert all(numbers in ([0], [1]) for numbers in program.tried), "an evaluation began after the interrupt"
    line = f"running evaluations have {grace:g} s to end; press Ctrl-C to cancel them"
    assert lines.count(line) == (grace > 0)
    assert all(one.state in ("idle", "ended") for one in one.records)


def test_an_interrupt_while_a_result_is_recorded_has_no_grace():
    def stop(i, evaluations):
        raise KeyboardInterrupt

    program = Doubler(acts={1: lambda before: time.sleep(0.3)})
    with pytest.raises(KeyboardInterrupt):
        pool_of(FakeCluster("a", "b"), program, grace=20.0).evaluator("train", quarantine=True)(
            [[np.asarray(n)] for n in (0, 1)], stop
        )


class Assigned(FakeCluster):
    """Knows the numbers that were given to workers."""

    def __init__(self, *nodes):
        super().__init__(*nodes)
        self.assigned: list[int] = []

    def call(self, worker, method, *arguments):
        found = super().call(worker, method, *arguments)
        self.assigned += [int(number) for number in arguments[1]] if method == "evaluate" else []
        return found


def interrupted_at(count: int, call) -> bool:
    """Whether a call was interrupted by Ctrl-C, which comes before the line of this number in the pool and its jobs."""
    left = count

    def local(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if left == -1:
                signal.raise_signal(signal.SIGINT)
        return local

    def trace(frame, event, argument):
        return local if frame.f_code.co_filename in (pool.__file__, jobs.__file__) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    assert left >= 0, "the interrupt was lost"
    return False


def check_interrupt_at(line: int) -> bool:
    """Interrupts a pool before a line; returns whether it was still at work."""
    cluster, results = Assigned("a", "b"), {}
    one = pool_of(cluster, Doubler(), grace=20.0)

    def on_result(i, evaluations):
        assert i not in results
        results[i] = evaluations

    interrupted = interrupted_at(
        line, lambda: one.evaluator("train", quarantine=True)([[np.asarray(n)] for n in range(4)], on_result)
    )
    assert results == {n: [doubled(n)] for n in cluster.assigned}, f"before line {line}"
    assert len(cluster.assigned) == len(results)
    assert results_of(one, [7, 8, 9]) == [doubled(n) for n in (7, 8, 9)], "the pool is used again"
    return interrupted


@pytest.mark.parametrize("line", [40, 120, 200])
def test_an_interrupt_loses_no_result(line):
    check_interrupt_at(line)


@pytest.mark.exhaustive
def test_an_interrupt_before_any_third_line_loses_no_result():
    line = 0
    while check_interrupt_at(line):
        line += 3
    assert line > 200


def test_ctrl_c_while_a_result_is_recorded_comes_after_it():
    """The others have their grace then."""
    results, lines, second = {}, [], threading.Event()

    def on_result(i, evaluations):
        if not results:
            signal.raise_signal(signal.SIGINT)
            second.set()
        results[i] = evaluations

    program = Doubler(acts={1: lambda before: second.wait(20)})
    with pytest.raises(KeyboardInterrupt):
        pool_of(FakeCluster("a", "b"), program, grace=20.0, log=lines.append).evaluator("train", quarantine=True)(
            [[np.asarray(n)] for n in range(9)], on_result
        )
    assert {number for group in program.tried for number in group} == results.keys()
    assert any("have 20 s to end" in line for line in lines) == (len(results) > 1)


def test_a_worker_that_dies_in_the_grace_is_not_said_to_be_replaced():
    lines, cluster = [], Interrupted()

    def die(before):
        cluster.interrupted.wait(20)
        raise Died

    with pytest.raises(KeyboardInterrupt):
        pool_of(cluster, Doubler(acts={0: die, 1: die}), grace=20.0, log=lines.append).evaluator("train", quarantine=True)(
            [[np.asarray(n)] for n in (0, 1)], lambda i, found: None
        )
    assert (
        sum("ended while it evaluated 1 individual, which is not recorded: the process is dead" in line for line in lines) == 2
    )
