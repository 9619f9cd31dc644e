"""Workers that failed: which nodes get no more workers, and when no further worker can start."""

from __future__ import annotations

import collections
import time
from collections.abc import Collection

from cycleqd_jax.types import FailuresError, InputError

__all__ = ["Starts"]

FAILED_STARTS = 2
"""Workers that failed while they loaded the models, after which a node gets no more workers."""

FAILED_CHILDREN = 2
"""Children whose evaluations raised an exception on a node, with none that succeeded between, after which it gets no more."""

PAUSE_S = 1.0
"""Seconds before the next worker starts after one failed on an unknown node; twice as many after the next one, and so on."""

MOST_PAUSE_S = 300.0
"""The longest of those pauses."""


class Starts:
    """Counts failures by node.

    Attributes:
        avoid: ids of the nodes that get no more workers.
    """

    def __init__(self, most: int) -> None:
        """Args:
        most: the most workers.
        """  # noqa: D205
        self.avoid: set[str] = set()
        self._most = most
        self._failed: collections.Counter[str] = collections.Counter()
        self._raised: collections.defaultdict[str, set[int]] = collections.defaultdict(set)
        self._reasons: list[tuple[str, bool]] = []  # since the last worker that started, and whether they were refusals
        self._unknown = 0  # failures on unknown nodes since the last worker that started
        self._next = 0.0
        self._has_started = False

    @property
    def paused(self) -> bool:
        """Whether no worker should be started now."""
        return time.monotonic() < self._next

    def succeeded(self, node: str | None) -> None:
        """A worker has loaded the models."""
        self._has_started, self._unknown = True, 0
        self._reasons.clear()
        if node is not None:
            self._failed.pop(node, None)

    def refused(self, node: str | None, reason: str) -> None:
        """A worker does not evaluate as the run does, for a reason that holds for its node."""
        self._reasons.append((reason, True))
        if node is None:
            self._pause()
        else:
            self.avoid.add(node)

    def failed(self, node: str | None, reason: str) -> None:
        """A worker failed before it had loaded the models."""
        self._reasons.append((reason, False))
        if node is None:
            self._pause()
            return
        self._failed[node] += 1
        if self._failed[node] >= FAILED_STARTS:
            self.avoid.add(node)

    def evaluated(self, node: str | None) -> None:
        """A worker has evaluated a child."""
        if node is not None:
            self._raised.pop(node, None)

    def raised(self, node: str | None, child: int, reason: str) -> None:
        """The evaluation of a child raised an exception. Repeated failures of one child do not count against the node."""
        self._reasons.append((reason, False))
        if node is not None:
            self._raised[node].add(child)
            if len(self._raised[node]) >= FAILED_CHILDREN:
                self.avoid.add(node)

    def check(self, nodes: Collection[str]) -> None:
        """Checks that a worker may still start, while there is none.

        Args:
            nodes: ids of the nodes that are alive. Where there are none, others may join.

        Raises:
            InputError: all nodes are avoided, or more starts have failed than there may be workers and no worker has ever
                started; and every failure was a refusal.
            FailuresError: the same, where another failure was among them.
        """
        avoided = bool(nodes) and self.avoid.issuperset(nodes)
        if not self._reasons or not (avoided or (not self._has_started and len(self._reasons) > self._most)):
            return
        text = (
            f"expected a worker that can evaluate, got {len(self._reasons)} that failed ({self._reasons[-1][0]}) in the "
            "cluster; correct the cause"
        )
        if all(is_refusal for _, is_refusal in self._reasons):
            raise InputError(text)
        raise FailuresError(f"{text} and run the same command to continue")

    def _pause(self) -> None:
        self._next = time.monotonic() + min(PAUSE_S * 2.0**self._unknown, MOST_PAUSE_S)
        self._unknown += 1
