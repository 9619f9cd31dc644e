"""The KV cache: pages of columns, and where the rows of a batch lie in them.

The cache is a pool of *pages*. A page has some columns, and a column holds the keys and values of one token. With the
implementation ``"products"`` a conversation has as many pages as its tokens need, in any order (as in vLLM,
https://arxiv.org/abs/2309.06180). With the fused kernels a page has room for a whole conversation. A second cache, of a single
long page, holds the *shared* columns: the prefixes that many prompts begin with. A conversation sees one interval of them, and
its own columns continue that interval. Attention to shared columns is one matrix product for many conversations, and no prefix
is stored twice (as in Hydragen, https://arxiv.org/abs/2402.05099).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.types import AnyArray, Array, Bool, Int

__all__ = [
    "BLOCK",
    "MASKED",
    "SCALE_BYTES",
    "SHARED_BLOCK",
    "KVCache",
    "Rows",
    "own_mask",
    "quantized",
    "shared_blocks",
    "shared_mask",
    "to_cache",
]

BLOCK = 64  # pages that one iteration of a decode step attends to
SHARED_BLOCK = 128  # shared columns that one iteration attends to; prefixes begin at multiples, so that none affects another
SCALE_BYTES = 4  # of a float32, behind the bytes of each vector of a cache of 8-bit numbers
MASKED = -1e30  # finite: where every column is masked, the weights are still numbers, and their result is not used


class KVCache(NamedTuple):
    """Rotated keys, and values: one array per layer (shapes: :class:`cycleqd_jax.engine.attention.Attention`).

    The layers are not stacked: XLA would copy a layer out of the stack before a library kernel may read it.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]


class Rows(NamedTuple):
    """Where the rows of a batch lie in the cache.

    Attributes:
        pages: the pages of each row in the order of its columns; rows with fewer pages repeat their first.
        first: the first column that the row may see.
        columns: the column of the row's first token.
        shared: the shared columns that the row sees: start and end of the interval.
        owners: not for prefill: the row that each page of the pool belongs to, or -1.
        starts: not for prefill: the column of its row that each page begins with.
        blocks: not for prefill: the number of blocks of :data:`BLOCK` pages in use.
        near: implementation ``"products"`` only: pairs (block of rows, block of shared columns) in which some row sees some
            column; for the sizes of the blocks see :func:`shared_blocks`.
        nears: the number of valid pairs in ``near``.
        ends: verification of drafts only: the column after the last that the row may write.
        trunk: scoring only: the columns of the row's context, which all branches see.
        branch: scoring only: the column with which the branch of each token begins; 0 for a token of the context.
        filled: packed prefill and scoring only: the number of rows with tokens of their own. The rows after them repeat the
            first row.
    """

    pages: Int[AnyArray, "batch width"]
    first: Int[AnyArray, " batch"]
    columns: Int[AnyArray, " batch"]
    shared: Int[AnyArray, "batch 2"]
    owners: Int[AnyArray, " page"] | None = None
    starts: Int[AnyArray, " page"] | None = None
    blocks: Int[AnyArray, ""] | None = None
    near: Int[AnyArray, "pair 2"] | None = None
    nears: Int[AnyArray, ""] | None = None
    ends: Int[AnyArray, " batch"] | None = None
    trunk: Int[AnyArray, " batch"] | None = None
    branch: Int[AnyArray, "batch time"] | None = None
    filled: Int[AnyArray, ""] | None = None


def shared_blocks(batch: int, tokens: int, columns: int) -> tuple[int, int]:
    """How many rows and how many shared columns one block of attention has.

    Blocks of this size need few products where many rows share a prefix, and none where no row does.

    Args:
        batch: rows.
        tokens: tokens per row.
        columns: shared columns.
    """
    return math.gcd(batch, 128 if tokens == 1 else 4), math.gcd(columns, SHARED_BLOCK)


def own_mask(rows: Rows, time: int, column: Int[Array, " column"]) -> Bool[Array, "batch time column"]:
    """Which of these own columns each of a row's ``time`` tokens sees. A branch sees the trunk and itself, no other branch."""
    column = column[None, None]
    last = jnp.asarray(rows.columns)[:, None] + jnp.arange(time)[None]
    seen = (column >= rows.first[:, None, None]) & (column <= last[:, :, None])
    if rows.trunk is None or rows.branch is None:
        return seen
    return seen & ((column < rows.trunk[:, None, None]) | (column >= rows.branch[:, :, None]))


def shared_mask(intervals: Int[AnyArray, "batch 2"], column: Int[Array, " column"]) -> Bool[Array, "batch column"]:
    """Which of these shared columns each row sees."""
    return (column[None] >= intervals[:, :1]) & (column[None] < intervals[:, 1:])


def to_cache(x: Array, dtype: jax.typing.DTypeLike, axis: int = -1) -> Array:
    """Numbers in the dtype of a cache.

    Args:
        x: keys or values.
        dtype: ``uint16`` stands for the bits of bfloat16. ``uint8`` stands for vectors of 8-bit numbers, each followed by the
            bytes of its scale: the axis of a vector grows by :data:`SCALE_BYTES`.
        axis: the axis of a vector of one head.
    """
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    if dtype != jnp.uint8:
        return x.astype(dtype)
    wide = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
    scale = jnp.abs(wide).max(-1, keepdims=True) / 127  # not finite if a number is not: no NaN is lost
    whole = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    parts = [jax.lax.bitcast_convert_type(part, jnp.uint8) for part in (whole, scale[..., 0])]
    return jnp.moveaxis(jnp.concatenate(parts, -1), -1, axis)


def quantized(x: Array, axis: int) -> tuple[Array, Array]:
    """The whole numbers and the scales of 8-bit keys or values, as float32; a vector is their product.

    Args:
        x: ``uint8``, as :func:`to_cache` makes it.
        axis: the axis of a vector of one head; the scales lack it.
    """
    dims = x.shape[axis] - SCALE_BYTES
    whole = jax.lax.bitcast_convert_type(jax.lax.slice_in_dim(x, 0, dims, axis=axis), jnp.int8)
    scale = jnp.moveaxis(jax.lax.slice_in_dim(x, dims, None, axis=axis), axis, -1)
    return whole.astype(jnp.float32), jax.lax.bitcast_convert_type(scale, jnp.float32)
