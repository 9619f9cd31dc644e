"""What many prompts begin with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["common_length", "shared_prefixes"]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


class _Group(NamedTuple):
    """Neighbouring prompts that begin with the same ``length`` tokens.

    Attributes:
        length: how many.
        low: the first of them.
        saved: what those of its parts save that are complete.
        prefixes: by computing these once.
    """

    length: int
    low: int
    saved: int
    prefixes: list[tuple[int, ...]]


def shared_prefixes(prompts: Sequence[Sequence[int]], *, saving: int) -> list[tuple[int, ...]]:
    """Prefixes that are worth computing once: those that save the most tokens together, none of which another begins with.

    Every prompt begins with at most one of them, and is longer: its last token is never shared.

    Args:
        prompts: token ids.
        saving: the fewest tokens that a prefix must save, ``length · (prompts − 1)``.

    Returns:
        The prefixes, in lexicographic order.
    """
    ordered = sorted(tuple(prompt[:-1]) for prompt in prompts)
    shared = [common_length(a, b) for a, b in itertools.pairwise(ordered)]  # of neighbours
    groups: list[_Group] = []  # that are not complete: each is part of the one before
    for i, length in enumerate([*shared, -1]):
        part = _Group(length, i, 0, [])
        while groups and groups[-1].length > length:  # they end with prompt i
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
