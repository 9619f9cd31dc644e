"""Digests are recorded in journals and checkpoints, so they must never change."""

from __future__ import annotations

import hashlib
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.search import tree_digest

ARRAYS = {
    "scalar": np.float32(1.5),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "ids": np.arange(5),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(10)[::3],
    "bfloat16": jnp.arange(4, dtype=jnp.bfloat16),
    "device": jnp.ones((2, 2)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_digest_is_that_of_the_bytes(name):
    array = np.asarray(ARRAYS[name])
    content = f"/x\0{array.dtype}\0{array.shape}\0".encode() + np.ascontiguousarray(array).tobytes()
    assert tree_digest({"x": ARRAYS[name]}, digits=64) == hashlib.sha256(content).hexdigest()


def test_a_large_array_is_not_copied():
    array = np.zeros(1 << 22, np.float32)
    tracemalloc.start()
    try:
        tree_digest({"x": array})
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 4
    finally:
        tracemalloc.stop()
