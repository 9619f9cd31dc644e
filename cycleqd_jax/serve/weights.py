"""Weights of several models, the ones used last in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import jax

from cycleqd_jax.types import Params

__all__ = ["WeightCache", "weight_bytes"]


def weight_bytes(params: Params) -> int:
    """The bytes of a model's weights."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


class WeightCache:
    """Keeps the expressed weights of models, and drops those that were used least recently. Not thread-safe.

    Args:
        express: makes the weights of a key, and says whether they are new arrays. Others are not kept here, because someone
            else keeps them.
        limit: the most bytes that are kept. A model that is larger is expressed anew every time.

    Attributes:
        bytes: that are kept.
        hits: how often weights were kept.
        misses: how often they were not.
    """

    def __init__(self, express: Callable[[Hashable], tuple[Params, bool]], limit: int) -> None:
        self._express = express
        self._limit = limit
        self._kept: OrderedDict[Hashable, tuple[Params, int]] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        """The number of models that are kept."""
        return len(self._kept)

    def get(self, key: Hashable) -> tuple[Params, bool]:
        """The weights of a model, and whether they belong to the caller, who may donate them.

        Whatever makes the weights may raise.
        """
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key][0], False
        self.misses += 1
        params, new = self._express(key)
        size = weight_bytes(params)
        if not new or size > self._limit:
            return params, new
        while self.bytes + size > self._limit:
            self.bytes -= self._kept.popitem(last=False)[1][1]
        self._kept[key] = params, size
        self.bytes += size
        return params, False
