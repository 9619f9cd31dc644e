"""Verdicts seen before: during evolution many children give the same replies to the same problem."""

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
    """An episode that tells what about it may be remembered.

    Attributes:
        repeatable: whether everything that happened so far would happen again: nothing timed out, and nothing that was
            executed depends on chance, on the clock or on other processes.
    """

    repeatable: bool

    def opening(self) -> list[Message]:
        """What :meth:`start` returns, without setting anything up."""
        ...


class Memo:
    """Results of steps, keyed on the problem and all replies so far; bounded (least recently used goes first), thread-safe.

    What it assumes: the result of a step is a function of the problem and the replies. Environments say through
    ``repeatable`` where that doesn't hold (time-outs, random numbers, clocks); such results are never kept. As a net under
    that, a replay that differs from what is remembered bars the problem from the memo for good.

    Attributes:
        hits: steps answered without an environment.
        misses: steps that were executed.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self.hits = 0
        self.misses = 0
        self._capacity = capacity
        self._results: OrderedDict[bytes, Result] = OrderedDict()
        self._barred: set[str] = set()
        self._running: dict[bytes, threading.Event] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._results)

    def wrap(self, problem: str, make: Callable[[], Environment]) -> MemoEpisode:
        """The episode that ``make`` makes, started only where a reply comes that the memo doesn't know.

        Args:
            problem: a fingerprint of the problem and of everything that decides about verdicts.
            make: makes a fresh environment.
        """
        return MemoEpisode(self, problem, make)

    def get(self, problem: str, key: bytes) -> Result | None:
        """The result remembered under ``key``; where another thread is at work on it, its result.

        None makes the caller responsible: it must call :meth:`put` with the same key, whatever happens.
        """
        while True:
            with self._lock:
                if problem in self._barred:
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
        """Remembers ``result`` (None: nothing to remember) and wakes the threads that wait for it."""
        with self._lock:
            if result is not None and problem not in self._barred:
                self._results[key] = result
                if len(self._results) > self._capacity:
                    self._results.popitem(last=False)
            running = self._running.pop(key, None)
        if running is not None:
            running.set()

    def bar(self, problem: str) -> None:
        """Stops remembering anything about a problem; what is there is used no more."""
        with self._lock:
            self._barred.add(problem)


class MemoEpisode:
    """An episode that looks into the memo first. The environment starts with the first reply that isn't known there."""

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
        """Whether the first reply ends it."""
        return getattr(self._environment, "single_turn", False)

    def start(self) -> list[Message]:
        """The conversation so far; nothing is set up yet."""
        return self._environment.opening()

    def step(self, reply: str) -> list[Message] | Score:
        """Acts on the reply, or recalls what came of it."""
        # Chained digests of fixed length: sequences of replies can't be confused by how they are cut.
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
                # What follows something unrepeatable belongs to this environment alone.
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
        """Brings the environment to where the conversation is."""
        if not self._started:
            self._environment.start()
            self._started = True
        past, self._past = self._past, []
        for reply, expected in past:
            if _frozen(self._environment.step(reply)) != expected:
                self._trusted = False
                self._memo.bar(self._problem)


def _frozen(result: list[Message] | Score) -> Result:
    return result if isinstance(result, Score) else tuple(result)
