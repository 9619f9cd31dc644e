"""Attention as matrix products over pages, for XLA's CPU backend.

Keys are ``[page, kv_heads, head_dim, column]``, values ``[page, kv_heads, column, head_dim]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.engine.cache import BLOCK, MASKED, Rows, own_mask, quantized, shared_blocks, shared_mask, to_cache
from cycleqd_jax.models.llama import matmul
from cycleqd_jax.types import Array, Float

__all__ = ["ROWS", "attend"]

ROWS = 4  # rows of a prefill that one iteration attends with
MOSTLY = 0.6  # a pool is read whole if its last page in use lies beyond this share of it


class _Part(NamedTuple):
    """Attention to some of the columns, not yet divided: ``out = Σ 2^(score − top) v``, ``total = Σ 2^(score − top)``.

    Scores are the usual ones over ln 2, and ``top`` is the largest score rounded up to a whole number. Weights that are rounded
    to bfloat16 are then rounded to the same number whatever other columns are in the part.
    """

    out: Float[Array, "batch kv_heads per head_dim"]
    top: Float[Array, "batch kv_heads per 1"]
    total: Float[Array, "batch kv_heads per 1"]


def attend(
    q: Float[Array, "batch heads time head_dim"], own: tuple[Array, Array], common: tuple[Array, Array] | None, rows: Rows
) -> Float[Array, "batch heads time head_dim"]:
    """Attention to the row's own columns and to the shared columns that it sees.

    Args:
        q: queries.
        own: keys and values of the pool; those of ``q``'s tokens are written already.
        common: keys and values of the shared columns, if there are any.
        rows: where the rows lie in both.
    """
    part = _over_gathered(q, own, rows) if rows.owners is None else _over_pages(q, own, rows)
    if common is not None:
        part = _over_shared(q, part, common, rows)
    return (part.out / part.total).astype(q.dtype).reshape(q.shape)


def _queries(q: Array, kv_heads: int) -> Float[Array, "batch kv_heads per head_dim"]:
    """The query heads of one KV head as rows of one product: keys are not repeated, and the matrix is larger."""
    batch, _, _, dims = q.shape
    return q.reshape(batch, kv_heads, -1, dims)


def _part(q: Array, k: Array, v: Array, mask: Array) -> _Part:
    """Queries ``[batch, kv_heads, per, head_dim]`` over ``k`` ``[batch, kv_heads, head_dim, column]`` and ``v``.

    If keys and values are bits of bfloat16, queries and weights are rounded to bfloat16 as well. With few rows the products are
    computed in float32, which is faster there and has the same operands. Products with 8-bit numbers are computed in float32.
    """
    few = q.shape[-2] < 16
    of_k = of_v = None  # the scales of 8-bit numbers, which the small operand of each product gets
    if k.dtype == jnp.uint8:
        (k, of_k), (v, of_v) = quantized(k, -2), quantized(v, -1)

    def number(x: Array) -> Array:
        return _widened(x) if few else _as_bfloat16(x)

    def rounded(x: Array, like: Array) -> Array:
        return number(to_cache(x, like.dtype))

    scores = matmul(rounded(q, k), number(k), preferred_element_type=jnp.float32)
    if of_k is not None:
        scores *= of_k[..., None, :]
    scores = jnp.where(mask, scores * (q.shape[-1] ** -0.5 / math.log(2)), MASKED)
    top = jnp.ceil(scores.max(-1, keepdims=True))
    weights = jnp.exp2(scores - top)
    scaled = weights if of_v is None else weights * of_v[..., None, :]
    out = matmul(rounded(scaled, v), number(v), preferred_element_type=jnp.float32)
    return _Part(out, top, weights.sum(-1, keepdims=True))


def _widened(x: Array) -> Array:
    """Numbers of a cache to compute with; bits of bfloat16 become float32."""
    if x.dtype != jnp.uint16:
        return x
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def _as_bfloat16(x: Array) -> Array:
    """Numbers of a cache in their own dtype; bits of bfloat16 become bfloat16."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def _put(whole: _Part, part: _Part, start: Array) -> _Part:
    """``whole`` with ``part`` in its rows (or pages) from ``start`` on."""
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0), whole, part)


def _merged(a: _Part, b: _Part) -> _Part:
    """Attention to the columns of both."""
    top = jnp.maximum(a.top, b.top)
    of_a, of_b = jnp.exp2(a.top - top), jnp.exp2(b.top - top)
    return _Part(a.out * of_a + b.out * of_b, top, a.total * of_a + b.total * of_b)


def _over_gathered(q: Array, pool: tuple[Array, Array], rows: Rows) -> _Part:
    """Prefill: some rows at a time, attention over one page of each after the other, up to the longest of them."""
    kv_heads, size = pool[0].shape[1], pool[0].shape[3]
    batch, heads, time, dims = q.shape
    queries = _queries(q, kv_heads)
    some = math.gcd(batch, ROWS)

    def block(j: Array, done: _Part) -> _Part:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, j * some, some, 0)

        kept = ((name, getattr(rows, name)) for name in ("pages", "first", "columns", "trunk", "branch"))
        own = rows._replace(**{name: cut(jnp.asarray(x)) for name, x in kept if x is not None})
        asked = cut(queries)

        def page(i: Array, done: _Part) -> _Part:
            k, v = (x[own.pages[:, i]] for x in pool)  # [some, kv_heads, …]
            mask = jnp.tile(own_mask(own, time, i * size + jnp.arange(size)), (1, heads // kv_heads, 1))
            return _merged(done, _part(asked, k, v, mask[:, None]))

        part = jax.lax.fori_loop(0, jnp.asarray(own.columns).max() // size + 1, page, jax.tree.map(cut, empty))
        return _put(done, part, j * some)

    sizes = (batch, kv_heads, queries.shape[2])
    empty = _Part(jnp.zeros((*sizes, dims)), jnp.full((*sizes, 1), MASKED), jnp.ones((*sizes, 1)))
    blocks = batch // some if rows.filled is None else (jnp.asarray(rows.filled) + some - 1) // some
    return jax.lax.fori_loop(0, blocks, block, empty)


def _over_pages(q: Array, pool: tuple[Array, Array], rows: Rows) -> _Part:
    """Decoding over the pool in place: each page with the queries of its row, then the pages of every row combined.

    Pages are not gathered. A pool whose last page in use lies near its end is read whole, which is up to twice as fast: XLA
    copies a block before its product. Another one is read in blocks up to that page.
    """
    owners, starts, blocks = rows.owners, rows.starts, rows.blocks
    assert owners is not None
    assert starts is not None
    assert blocks is not None
    owners, starts, columns = jnp.asarray(owners), jnp.asarray(starts), jnp.asarray(rows.columns)
    k, v = pool
    (pages, kv_heads, _, size), dims = k.shape, q.shape[-1]
    queries = _queries(q, kv_heads)
    last = columns[:, None] + jnp.tile(jnp.arange(q.shape[2]), q.shape[1] // kv_heads)[None]  # the column of each query
    column = jnp.arange(size)[None, None]

    def over(cut: Callable[[Array], Array]) -> _Part:
        owner, start = cut(owners), cut(starts)
        row = jnp.maximum(owner, 0)
        mask = (start[:, None, None] + column <= last[row][:, :, None]) & (owner >= 0)[:, None, None]
        return _part(queries[row], cut(k), cut(v), mask[:, None])

    def block(i: Array, done: _Part) -> _Part:
        part = over(lambda x: jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, 0))
        return _put(done, part, i * BLOCK)

    def in_blocks() -> _Part:
        empty = _Part(*(jnp.zeros((pages, kv_heads, queries.shape[2], n), jnp.float32) for n in (dims, 1, 1)))
        return jax.lax.fori_loop(0, blocks, block, empty)

    if k.dtype in (jnp.uint16, jnp.uint8):  # a whole pool would be widened to float32 in memory
        done = in_blocks()
    else:
        done = jax.lax.cond(blocks >= math.ceil(MOSTLY * pages / BLOCK), lambda: over(lambda x: x), in_blocks)
    width = rows.pages.shape[1]
    used = (jnp.arange(width)[None, :, None] * size <= last[:, None])[:, :, None, :, None]
    tops = jnp.where(used, done.top[rows.pages], MASKED)  # [batch, width, kv_heads, per, 1]
    top = tops.max(1)
    share = jnp.where(used, jnp.exp2(tops - top[:, None]), 0.0)

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        page, scale = jnp.asarray(rows.pages)[:, i], share[:, i]
        return sums[0] + done.out[page] * scale, sums[1] + done.total[page] * scale

    # Page by page up to the longest row: XLA's CPU backend is several times slower at a gather of all pages and its sum.
    most = jnp.minimum(last.max() // size + 1, width)
    zeros = jnp.zeros_like(q, jnp.float32).reshape(queries.shape)
    out, total = jax.lax.fori_loop(0, most, add, (zeros, jnp.zeros_like(top)))
    return _Part(out, top, total)


def _over_shared(q: Array, own: _Part, common: tuple[Array, Array], rows: Rows) -> _Part:
    """Combines attention to a row's own columns with its shared ones, for each pair of blocks in ``rows.near``."""
    assert rows.near is not None
    k, v = common[0][0], common[1][0]  # [kv_heads, head_dim, column], [kv_heads, column, head_dim]
    batch, kv_heads, per, dims = own.out.shape
    size, width = shared_blocks(batch, q.shape[2], k.shape[-1])
    queries, near, intervals = _queries(q, kv_heads), jnp.asarray(rows.near), jnp.asarray(rows.shared)
    column = jnp.arange(width)

    def step(i: Array, done: _Part) -> _Part:
        row, first = near[i, 0] * size, near[i, 1] * width

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, row, size, 0)

        flat = cut(queries).swapaxes(0, 1).reshape(kv_heads, size * per, dims)
        mask = jnp.repeat(shared_mask(cut(intervals), first + column), per, axis=0)[None]
        keys, values = jax.lax.dynamic_slice_in_dim(k, first, width, 2), jax.lax.dynamic_slice_in_dim(v, first, width, 1)
        part = _part(flat, keys, values, mask)
        out, top, total = (x.reshape(kv_heads, size, per, -1).swapaxes(0, 1) for x in part)
        mixed = _merged(jax.tree.map(cut, done), _Part(out, top, total))
        return _put(done, mixed, row)

    return jax.lax.fori_loop(0, rows.nears, step, own)
