"""The models that are kept in memory."""

from __future__ import annotations

import numpy as np

from cycleqd_jax.serve import WeightCache

SIZE = 80


def make(limit, new=True):
    made = []

    def express(key):
        made.append(key)
        return {"w": np.zeros(10)}, new

    return WeightCache(express, limit), made


def test_the_models_used_last_are_kept():
    cache, made = make(2 * SIZE)
    for key in "abacab":
        _, owned = cache.get(key)
        assert not owned
        assert cache.bytes <= 2 * SIZE
    assert made == ["a", "b", "c", "b"]  # c made room by dropping b
    assert (cache.hits, cache.misses, len(cache)) == (2, 4, 2)


def test_a_model_that_is_too_large_belongs_to_the_caller():
    cache, made = make(SIZE - 1)
    assert cache.get("a")[1]
    assert cache.get("a")[1]
    assert made == ["a", "a"]
    assert (len(cache), cache.bytes) == (0, 0)


def test_weights_that_others_keep_are_not_kept_twice():
    cache, _ = make(10 * SIZE, new=False)
    assert not cache.get("a")[1]
    assert len(cache) == 0
