"""Attention over a pool of pages against attention over each conversation alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import products
from cycleqd_jax.engine.cache import BLOCK, Rows

SIZE, KV_HEADS, PER, DIMS, PAGES, WIDTH = 16, 2, 3, 8, 4 * BLOCK, 5


def alone(q, keys, values):
    """Softmax attention of one row: q ``[heads, dims]``, keys and values ``[column, kv_heads, dims]``."""
    out = []
    for head, query in enumerate(q):
        k, v = (x[:, head // PER] for x in (keys, values))
        scores = k @ query / np.sqrt(DIMS)
        weights = np.exp(scores - scores.max())
        out.append(weights @ v / weights.sum())
    return np.stack(out)


@pytest.mark.parametrize("spread", [1, 3, 4], ids=["mostly free", "mostly in use", "full"])
def test_pages_in_any_order(spread):
    generator = np.random.default_rng(spread)
    lengths = generator.integers(1, WIDTH * SIZE, 12)
    most = spread * BLOCK
    free = [*generator.permutation(most - 1), most - 1]  # the last page is in use: so are all blocks up to it
    k = generator.normal(size=(PAGES, KV_HEADS, DIMS, SIZE)).astype(np.float32)
    v = generator.normal(size=(PAGES, KV_HEADS, SIZE, DIMS)).astype(np.float32)
    q = generator.normal(size=(len(lengths), KV_HEADS * PER, 1, DIMS)).astype(np.float32)
    pages = np.zeros((len(lengths), WIDTH), np.int32)
    owners, starts = np.full(PAGES, -1, np.int32), np.zeros(PAGES, np.int32)
    expected = []
    for row, length in enumerate(lengths):
        own = np.array([free.pop() for _ in range(-(-length // SIZE))])
        pages[row] = own[0]
        pages[row, : len(own)] = own
        owners[own], starts[own] = row, np.arange(len(own)) * SIZE
        keys = np.concatenate([k[page].transpose(2, 0, 1) for page in own])[:length]
        values = np.concatenate([v[page].swapaxes(0, 1) for page in own])[:length]
        expected.append(alone(q[row, :, 0], keys, values))
    k[owners < 0] = 1e3  # what free pages hold has no effect
    zeros = np.zeros(len(lengths), np.int32)
    rows = Rows(pages, zeros, (lengths - 1).astype(np.int32), np.zeros((len(lengths), 2), np.int32))
    decoding = rows._replace(owners=owners, starts=starts, blocks=np.int32(spread))
    for found in (decoding, rows):
        out = products.attend(jnp.asarray(q), (jnp.asarray(k), jnp.asarray(v)), None, found)
        np.testing.assert_allclose(np.asarray(out)[:, :, 0], np.stack(expected), atol=1e-5)
