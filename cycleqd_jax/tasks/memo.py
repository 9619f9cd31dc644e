"""A cache of verdicts: during evolution many children give the same replies to the same problem."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from cycleqd_jax.types import Episode, Message, Score

__all__ = ["Environment", "Memo", "MemoEpisode"]

Result = tuple[Message, ...] | Score


@runtime_checkable
class Environment(Episode, Protocol):
    """An episode whose results the memo may store.

    Attributes:
        repeatable: whether the same replies would lead to the same results again: no time limit was hit, and nothing that was
            executed depends on random numbers, on the clock or on other processes.
    """

    repeatable: bool

    def opening(self) -> list[Message]:
        """The messages that :meth:`start` returns, without setting anything up."""
        ...


class Memo:
    """A thread-safe LRU cache of the results of steps, keyed by the problem and all replies so far.

    The cache assumes that the result of a step is a function of the problem and the replies. An environment sets
    ``repeatable`` to False if that does not hold (time limits, random numbers, clocks), and its results are not stored from
    then on. If a replay differs from the stored results all the same, the problem is excluded from the cache for good.

    Attributes:
        hits: number of steps answered from the cache.
        misses: number of steps that were executed.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self.hits = 0
        self.misses = 0
        self._capacity = capacity
        self._results: OrderedDict[bytes, Result] = OrderedDict()
        self._excluded: set[str] = set()
        self._running: dict[bytes, threading.Event] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._results)

    def wrap(self, problem: str, make: Callable[[], Environment]) -> MemoEpisode:
        """An episode that uses the cache and starts an environment only for replies that are not cached.

        Args:
            problem: a fingerprint of the problem and of all settings that affect verdicts.
            make: returns a fresh environment.
        """
        return MemoEpisode(self, problem, make)

    def get(self, problem: str, key: bytes) -> Result | None:
        """The cached result of ``key``; if another thread is computing it, this call waits for its result.

        After None the caller must compute the result and call :meth:`put` with the same key, even if it fails.
        """
        while True:
            with self._lock:
                if problem in self._excluded:
                    self.misses += 1
                    return None
                if key in self._results:
                    self._results.move_to_end(key)
                    self.hits += 1
                    return self._results[key]
                running = self._running.get(key)
                if running is None:
                    self._running[key] = threading.Event()
                    self.misses += 1
                    return None
            running.wait()

    def put(self, problem: str, key: bytes, result: Result | None) -> None:
        """Stores ``result`` (None stores nothing) and wakes the threads that wait for it."""
        with self._lock:
            if result is not None and problem not in self._excluded:
                self._results[key] = result
                if len(self._results) > self._capacity:
                    self._results.popitem(last=False)
            running = self._running.pop(key, None)
        if running is not None:
            running.set()

    def exclude(self, problem: str) -> None:
        """Ignores all cached results of a problem and stores no new ones."""
        with self._lock:
            self._excluded.add(problem)


class MemoEpisode:
    """An episode that asks the memo first; its environment starts with the first reply that is not cached."""

    def __init__(self, memo: Memo, problem: str, make: Callable[[], Environment]) -> None:
        self._memo = memo
        self._problem = problem
        self._environment = make()
        self._started = False
        self._trusted = True
        self._key = hashlib.sha256(problem.encode()).digest()
        self._past: list[tuple[str, Result]] = []

    @property
    def single_turn(self) -> bool:
        """Whether the first reply ends the episode."""
        return getattr(self._environment, "single_turn", False)

    def start(self) -> list[Message]:
        """The first messages of the conversation; nothing is set up yet."""
        return self._environment.opening()

    def step(self, reply: str) -> list[Message] | Score:
        """The result of the reply, from the memo or from the environment."""
        # Digests of fixed length are chained, so that ["ab"] and ["a", "b"] have different keys.
        key = hashlib.sha256(self._key + hashlib.sha256(reply.encode("utf-8", "surrogatepass")).digest()).digest()
        trusted = self._trusted
        result = self._memo.get(self._problem, key) if trusted else None
        if result is not None:
            self._past.append((reply, result))
        else:
            remember: Result | None = None
            try:
                self._catch_up()
                result = _frozen(self._environment.step(reply))
                # After a result that is not repeatable, all later results hold for this environment only.
                self._trusted = self._trusted and self._environment.repeatable
                remember = result if self._trusted else None
            finally:
                if trusted:
                    self._memo.put(self._problem, key, remember)
        self._key = key
        return result if isinstance(result, Score) else list(result)

    def close(self) -> None:
        """Closes the environment."""
        self._environment.close()

    def _catch_up(self) -> None:
        """Replays in the environment the replies that the memo answered."""
        if not self._started:
            self._environment.start()
            self._started = True
        past, self._past = self._past, []
        for reply, expected in past:
            if _frozen(self._environment.step(reply)) != expected:
                self._trusted = False
                self._memo.exclude(self._problem)


def _frozen(result: list[Message] | Score) -> Result:
    return result if isinstance(result, Score) else tuple(result)
