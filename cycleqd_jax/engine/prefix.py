"""What many prompts begin with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["common_length", "shared_prefixes"]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    most = min(len(a), len(b))
    return next((i for i in range(most) if a[i] != b[i]), most)


def shared_prefixes(prompts: Sequence[Sequence[int]], *, saving: int) -> list[tuple[int, ...]]:
    """Prefixes that are worth computing once: of all ways to split the prompts into groups, those that save the most tokens.

    Every prompt is in at most one group, and longer than the group's prefix: its last token is never shared.

    Args:
        prompts: token ids.
        saving: the fewest tokens that a prefix must save, ``length · (prompts − 1)``.

    Returns:
        The prefixes, in lexicographic order.
    """
    ordered = sorted(tuple(prompt[:-1]) for prompt in prompts)
    shared = [common_length(a, b) for a, b in itertools.pairwise(ordered)]  # of neighbours

    def best(low: int, high: int) -> tuple[int, list[tuple[int, ...]]]:
        """What the prompts ``low`` to ``high`` save at most, and by which prefixes."""
        if high - low < 2:
            return 0, []
        length = min(shared[low : high - 1])
        cuts = [low, *(i + 1 for i in range(low, high - 1) if shared[i] == length), high]
        parts = [best(a, b) for a, b in itertools.pairwise(cuts)]
        apart = sum(part[0] for part in parts)
        together = length * (high - low - 1)
        if together >= max(apart, saving, 1):
            return together, [ordered[low][:length]]
        return apart, [prefix for part in parts for prefix in part[1]]

    return best(0, len(ordered))[1]
