from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.tasks.memo import Memo
from cycleqd_jax.types import Score

ENDINGS = ("stop", "win")


class Counting:
    """An environment whose observations are all replies so far; records its calls in ``log``."""

    def __init__(self, log, salt=lambda: "", gate=None):
        self.repeatable = True
        self.log = log
        self.replies = []
        self.salt = salt
        self.gate = gate

    def opening(self):
        return [{"role": "user", "content": "go"}]

    def start(self):
        self.log.append("start")
        return self.opening()

    def step(self, reply):
        self.log.append(reply)
        if self.gate:
            self.gate.wait()
        if reply == "broken":
            raise InfraError("broken")
        if reply == "slow":
            self.repeatable = False
            return Score(0.0, "timed out")
        if reply == "clock":
            self.repeatable = False
        self.replies.append(reply)
        if reply in ENDINGS:
            return Score(float(reply == "win"), "/".join(self.replies))
        return [{"role": "user", "content": "/".join(self.replies) + self.salt()}]

    def close(self):
        self.log.append("close")


def play(episode, replies):
    results = [episode.start()]
    for reply in replies:
        results.append(episode.step(reply))
        if isinstance(results[-1], Score):
            break
    episode.close()
    return results


def test_a_hit_starts_no_environment():
    memo, log = Memo(), []
    first = play(memo.wrap("p", lambda: Counting(log)), ["a", "b", "win"])
    log.clear()
    assert play(memo.wrap("p", lambda: Counting(log)), ["a", "b", "win"]) == first
    assert log == ["close"]
    assert (memo.hits, memo.misses) == (3, 3)


def test_a_new_reply_replays_the_earlier_ones():
    memo, log = Memo(), []
    play(memo.wrap("p", lambda: Counting(log)), ["a", "b", "win"])
    log.clear()
    results = play(memo.wrap("p", lambda: Counting(log)), ["a", "b", "c", "stop"])
    assert log == ["start", "a", "b", "c", "stop", "close"]
    assert results[-1] == Score(0.0, "a/b/c/stop")


def test_a_hit_after_a_miss_is_replayed_before_the_next_miss():
    memo, log = Memo(), []
    one = memo.wrap("p", lambda: Counting(log))
    one.start()
    one.step("a")
    two = memo.wrap("p", lambda: Counting([]))
    play(two, ["a", "b", "win"])
    log.clear()
    one.step("b")
    assert log == []
    assert one.step("c") == [{"role": "user", "content": "a/b/c"}]
    assert log == ["b", "c"]


def test_problems_and_splits_of_replies_have_different_keys():
    memo = Memo()
    assert play(memo.wrap("p", lambda: Counting([])), ["ab", "win"])[-1].reason == "ab/win"
    assert play(memo.wrap("p", lambda: Counting([])), ["a", "bwin", "win"])[-1].reason == "a/bwin/win"
    assert memo.wrap("q", lambda: Counting([], salt=lambda: "!")).step("ab") == [{"role": "user", "content": "ab!"}]


@pytest.mark.parametrize("reply", ["slow", "clock"])
def test_results_that_may_differ_are_not_cached(reply):
    memo, log = Memo(), []
    for _ in range(2):
        log.clear()
        play(memo.wrap("p", lambda: Counting(log)), [reply, "win"])
        assert reply in log
    # The results after it are not cached either.
    assert len(memo) == 0


def test_an_infra_error_is_not_cached():
    memo = Memo()
    for _ in range(2):
        episode = memo.wrap("p", lambda: Counting([]))
        with pytest.raises(InfraError):
            play(episode, ["broken"])
        episode.close()
    assert len(memo) == 0


def test_a_problem_that_replays_differently_is_excluded():
    memo, log = Memo(), []
    numbers = iter(range(100))

    def make():
        return Counting(log, salt=lambda: str(next(numbers)))

    play(memo.wrap("p", make), ["a", "win"])
    play(memo.wrap("p", make), ["a", "b", "win"])
    log.clear()
    play(memo.wrap("p", make), ["a", "win"])
    assert log == ["start", "a", "win", "close"]


def test_results_are_copies():
    memo = Memo()
    memo.wrap("p", lambda: Counting([])).step("a").append("spoiled")
    assert memo.wrap("p", lambda: Counting([])).step("a") == [{"role": "user", "content": "a"}]


def test_the_least_recently_used_result_is_evicted():
    memo = Memo(capacity=3)
    for reply in ("a", "b", "c", "a", "d"):
        memo.wrap("p", lambda: Counting([])).step(reply)
    assert len(memo) == 3
    log = []
    memo.wrap("p", lambda: Counting(log)).step("a")
    assert log == []
    memo.wrap("p", lambda: Counting(log)).step("b")
    assert log == ["start", "b"]


def test_concurrent_equal_replies_are_executed_once():
    memo, log, gate = Memo(), [], threading.Event()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(memo.wrap("p", lambda: Counting(log, gate=gate)).step, "win") for _ in range(8)]
        gate.set()
        assert {future.result() for future in futures} == {Score(1.0, "win")}
    assert log == ["start", "win"]


def test_waiting_threads_go_on_when_the_first_fails():
    memo, gate = Memo(), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(memo.wrap("p", lambda: Counting([], gate=gate)).step, "broken") for _ in range(4)]
        gate.set()
        assert all(isinstance(future.exception(timeout=10), InfraError) for future in futures)


def test_random_play_is_equal_with_and_without_memo():
    memo = Memo(capacity=200)
    rng = random.Random(1)
    jobs = [[rng.choice("aab") for _ in range(rng.randint(0, 4))] + [rng.choice(ENDINGS)] for _ in range(300)]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda job: play(memo.wrap("p", lambda: Counting([])), job), jobs))
    assert seen == [play(Counting([]), job) for job in jobs]
    assert memo.hits > memo.misses
