"""Shared prefixes: token sequences that many prompts begin with, computed once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.requests import Request

__all__ = ["NewPrefix", "PrefixTable", "common_length", "shared_prefixes"]


class NewPrefix(NamedTuple):
    """A prefix that is to be computed.

    Attributes:
        tokens: the prefix.
        start: its first shared column.
        request: one that begins with it; of its individual.
    """

    tokens: tuple[int, ...]
    start: int
    request: Request


class PrefixTable:
    """Which prefixes are in the shared columns, and where.

    Args:
        layout: sizes.

    Attributes:
        intervals: for each individual and prefix, its shared columns: start and end.
    """

    def __init__(self, layout: EngineLayout) -> None:
        self._layout = layout
        self._saving = 2 * layout.chunk  # the fewest tokens that a prefix must save
        self.intervals: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}

    def forget(self) -> None:
        """Removes all prefixes."""
        self.intervals = {}

    def find(self, request: Request) -> tuple[int, int]:
        """The shared columns of the longest prefix that the prompt begins with; (0, 0) if there is none."""
        prompt, best = request.prompt, (0, 0)
        for (individual, prefix), interval in self.intervals.items():
            longer = individual == request.individual and interval[1] - interval[0] > best[1] - best[0]
            if longer and len(prefix) < len(prompt) and prompt[: len(prefix)] == prefix:
                best = interval
        return best

    def choose(self, queue: Sequence[Request], columns: int) -> tuple[int, list[NewPrefix]]:
        """Chooses what the queued prompts of each individual have in common and is not in the table yet.

        Args:
            queue: waiting requests.
            columns: the present number of shared columns.

        Returns:
            The number of shared columns that are needed, and the prefixes to compute, which are in the table from now on. If
            the number is another one than ``columns``, no prefix that was computed before is in the table.
        """
        found = [
            (individual, prefix)
            for individual in sorted({request.individual for request in queue})
            for prefix in shared_prefixes([r.prompt for r in queue if r.individual == individual], saving=self._saving)
            if not self.intervals or self._gain(queue, individual, prefix) >= self._saving
        ]
        if not found:
            return (columns if self.intervals else 0), []
        start = max((self._layout.aligned(end) for _, end in self.intervals.values()), default=0)
        starts = [start]
        for _, prefix in found:
            starts.append(starts[-1] + self._layout.aligned(len(prefix)))
        needed = self._layout.shared_columns(starts[-1])
        if self.intervals:
            if needed > columns:  # no room for all: choose again, and keep none of those in the table
                self.forget()
                return self.choose(queue, columns)
            needed = columns
        # An empty table takes exactly the columns it needs: what a model generates must not depend on earlier requests.
        new = []
        for (individual, prefix), start in zip(found, starts, strict=False):
            self.intervals[individual, prefix] = (start, start + len(prefix))
            users = (r for r in queue if r.individual == individual and r.prompt[: len(prefix)] == prefix)
            new.append(NewPrefix(prefix, start, next(users)))
        return needed, new

    def _gain(self, queue: Sequence[Request], individual: int, prefix: tuple[int, ...]) -> int:
        """Tokens of the individual's queued prompts that another prefix saves, beyond those saved by the table."""
        users = [r for r in queue if r.individual == individual and r.prompt[: len(prefix)] == prefix]
        known = (self.find(request) for request in users)
        return sum(len(prefix) - (end - start) for start, end in known) - len(prefix)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that two sequences have in common at their beginning."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


class _Group(NamedTuple):
    """Neighbouring prompts that begin with the same ``length`` tokens.

    Attributes:
        length: the number of common tokens.
        low: the first prompt of the group.
        saved: tokens saved by the complete groups inside it.
        prefixes: the prefixes that save them.
    """

    length: int
    low: int
    saved: int
    prefixes: list[tuple[int, ...]]


def shared_prefixes(prompts: Sequence[Sequence[int]], *, saving: int) -> list[tuple[int, ...]]:
    """The prefixes that save the most tokens together, if each is computed once; none begins with another one.

    Every prompt begins with at most one of the prefixes and is longer than it: the last token of a prompt is never shared.

    Args:
        prompts: token ids.
        saving: the fewest tokens that a prefix must save, ``length · (prompts − 1)``.

    Returns:
        The prefixes, in lexicographic order.
    """
    ordered = sorted(tuple(prompt[:-1]) for prompt in prompts)
    shared = [common_length(a, b) for a, b in itertools.pairwise(ordered)]  # with the next prompt
    groups: list[_Group] = []  # not complete; each is part of the one before it
    for i, length in enumerate([*shared, -1]):
        part = _Group(length, i, 0, [])
        while groups and groups[-1].length > length:  # the group ends with prompt i
            group = groups.pop()
            saved, prefixes = group.saved, group.prefixes
            together = group.length * (i - group.low)
            if together >= max(saved, saving, 1):
                saved, prefixes = together, [ordered[group.low][: group.length]]
            part = _Group(length, group.low, saved, prefixes)
            if groups and groups[-1].length >= length:
                around = groups.pop()
                groups.append(around._replace(saved=around.saved + saved, prefixes=[*around.prefixes, *prefixes]))
        if not groups or groups[-1].length < length:
            groups.append(part)
    return groups[0].prefixes
