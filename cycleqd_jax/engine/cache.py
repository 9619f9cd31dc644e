"""The KV cache, and attention over it: one implementation of products that XLA's CPU backend is fast at, one of fused kernels.

A cache is a pool of *pages* of some columns each. A conversation has as many as its tokens need, in any order (as in vLLM,
https://arxiv.org/abs/2309.06180); for the fused kernels a page is long enough for a whole conversation. Beside the pool there
is a cache of one long page with what many conversations begin with: the *shared* columns. Every conversation names an interval
of them; its own columns continue that. Attention over shared columns is one matrix product for many conversations, and nothing
is kept twice (as in Hydragen, https://arxiv.org/abs/2402.05099).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.models.llama import matmul
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import Array, Bool, Float, Int

__all__ = ["BLOCK", "Attention", "KVCache", "Rows", "attention_for", "shared_blocks"]

Implementation = Literal["products", "cudnn", "xla"]
BLOCK = 64  # pages that a decode step attends to at once
SHARED_BLOCK = 256  # shared columns likewise; prefixes begin at multiples, so that none depends on what others there are
MASKED = -1e30  # finite: where every column is masked, weights are numbers that nobody uses


class KVCache(NamedTuple):
    """Rotated keys, and values: an array for each layer (see :class:`Attention`).

    In a stack of layers, XLA copies a layer before a kernel of a library may read it.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]


class Rows(NamedTuple):
    """Where the rows of a batch belong.

    Attributes:
        pages: the pages of each row, in the order of its columns; its first again where there are fewer.
        first: the first column that the row may see.
        columns: where its first token goes.
        shared: the shared columns that it sees, from and up to.
        owners: of a decode step: the row of every page of the pool, -1 where it has none.
        starts: of a decode step: which column of its row every page begins with.
        blocks: of a decode step: how many blocks of :data:`BLOCK` pages are in use.
        near: where the cache has pages, which blocks of rows see something of which blocks of shared columns
            (:func:`shared_blocks`).
        nears: how many of these pairs count.
    """

    pages: Int[Array, "batch width"]
    first: Int[Array, " batch"]
    columns: Int[Array, " batch"]
    shared: Int[Array, "batch 2"]
    owners: Int[Array, " page"] | None = None
    starts: Int[Array, " page"] | None = None
    blocks: Int[Array, ""] | None = None
    near: Int[Array, "pair 2"] | None = None
    nears: Int[Array, ""] | None = None


def attention_for(config: LlamaConfig, platform: str) -> Attention:
    """What a platform is fastest at: products on a CPU, cuDNN on NVIDIA GPUs, XLA's own attention where neither serves.

    Args:
        config: cuDNN takes 16-bit numbers and heads of up to 128 dimensions, in multiples of eight.
        platform: as in ``jax.Device.platform``.
    """
    if platform == "cpu":
        return Attention("products")
    dtype = jnp.dtype(config.compute_dtype or config.dtype)
    fused = platform in ("gpu", "cuda") and dtype.itemsize == 2 and config.head_dim <= 128 and config.head_dim % 8 == 0
    return Attention("cudnn" if fused else "xla")


@dataclasses.dataclass(frozen=True)
class Attention:
    """The layout of a cache, and what is computed over it.

    Attributes:
        implementation: ``"products"``: keys ``[page, kv_heads, head_dim, column]``, values ``[page, kv_heads, column,
            head_dim]``, so that both products of attention read their large operand as it lies: XLA's CPU backend takes three
            times as long otherwise. Numbers that are bfloat16 are kept as their bits, ``uint16``: that backend widens arrays of
            16-bit floats as a whole wherever they go through a loop. ``"cudnn"`` and ``"xla"``: keys and values
            ``[page, column, kv_heads, head_dim]``, and page i is that of row i where all rows decode.
    """

    implementation: Implementation

    @property
    def paged(self) -> bool:
        """Whether a conversation may have several pages."""
        return self.implementation == "products"

    @property
    def _axes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Axes of columns and KV heads, of keys and of values."""
        return ((3, 1), (2, 1)) if self.paged else ((1, 2), (1, 2))

    def init(self, config: LlamaConfig, pages: int, columns: int, mesh: Mesh | None = None) -> KVCache:
        """An empty cache, in the compute dtype; split by KV heads over the mesh axis ``tensor``."""
        shapes = self.abstract(config, pages, columns, mesh)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)

    def abstract(self, config: LlamaConfig, pages: int, columns: int, mesh: Mesh | None = None) -> KVCache:
        """Shapes, dtypes and places of a cache, without any array."""
        dtype = jnp.dtype(config.compute_dtype or config.dtype)
        if self.paged and dtype == jnp.bfloat16:
            dtype = jnp.dtype(jnp.uint16)

        def leaf(axes: tuple[int, int]) -> jax.ShapeDtypeStruct:
            shape = [pages, *[config.head_dim] * 3]
            shape[axes[0]], shape[axes[1]] = columns, config.num_key_value_heads
            place = None
            if mesh is not None:
                place = NamedSharding(mesh, P(*("tensor" if axis == axes[1] else None for axis in range(4))))
            return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=place)

        layers = config.num_hidden_layers
        shapes: Any = ((leaf(axes),) * layers for axes in self._axes)
        return KVCache(*shapes)

    def shape(self, cache: KVCache) -> tuple[int, int]:
        """Pages of a cache, and columns of a page."""
        return cache.v[0].shape[0], cache.v[0].shape[self._axes[1][0]]

    def grow(self, cache: KVCache, pages: int) -> KVCache:
        """The cache with so many pages, the old ones first."""

        def leaf(x: Array) -> Array:
            new = jnp.zeros((pages, *x.shape[1:]), x.dtype)
            return jax.lax.dynamic_update_slice(new, x, (0, 0, 0, 0))

        return jax.tree.map(leaf, cache)

    def __call__(
        self,
        q: Float[Array, "batch heads time head_dim"],
        k: Float[Array, "batch kv_heads time head_dim"],
        v: Float[Array, "batch kv_heads time head_dim"],
        cache: KVCache,
        layer: int,
        *,
        rows: Rows,
        shared: KVCache | None,
    ) -> tuple[Float[Array, "batch heads time head_dim"], KVCache]:
        """Writes the tokens' keys and values and attends to them and what is before them: an ``Attend`` of the decoder.

        All tokens of a row go to one page. One token for each row is a decode step.
        """
        k, v = (k.swapaxes(2, 3), v) if self.paged else (k.swapaxes(1, 2), v.swapaxes(1, 2))
        k, v = _narrowed(k, cache.k[layer].dtype), _narrowed(v, cache.v[layer].dtype)
        (of_k, _), (of_v, _) = self._axes
        write = _write_in_turn if self.paged else _write_at_once
        own = write(cache.k[layer], k, rows, of_k), write(cache.v[layer], v, rows, of_v)
        cache = KVCache(_replaced(cache.k, layer, own[0]), _replaced(cache.v, layer, own[1]))
        common = None if shared is None else (shared.k[layer], shared.v[layer])
        if not self.paged:
            if q.shape[2] > 1:
                own = own[0][rows.pages[:, 0]], own[1][rows.pages[:, 0]]
            return self._fused(q, own, common, rows), cache
        if rows.owners is None:
            parts = _over_gathered(q, own, rows)
        else:
            parts = _over_pages(q, own, rows)
        if common is not None:
            parts = _over_shared(q, parts, common, rows)
        return (parts.out / parts.total).astype(q.dtype).reshape(q.shape), cache

    def _fused(
        self, q: Array, own: tuple[Array, Array], common: tuple[Array, Array] | None, rows: Rows
    ) -> Float[Array, "batch heads time head_dim"]:
        """Attention over the slot and over the shared columns, mixed by their normalisers."""
        batch, heads, time, dims = q.shape
        queries = q.swapaxes(1, 2)  # [batch, time, heads, head_dim]
        columns = own[0].shape[1]
        # One token: no mask, as columns past the last are not even read.
        seen = rows.columns + 1 if time == 1 else _own_mask(rows, time, columns)[:, None]
        attend = _cudnn if self.implementation == "cudnn" else _xla
        out, normaliser = attend(queries, *own, seen, residual=common is not None)
        if common is None:
            return out.swapaxes(1, 2)
        sees = _shared_mask(rows.shared, jnp.arange(common[0].shape[1]))
        mask = jnp.repeat(sees, time, axis=0)[None, None]  # [1, 1, batch * time, shared]
        more, other = attend(queries.reshape(1, batch * time, heads, dims), *common, mask, residual=True)
        other = other.reshape(normaliser.shape)
        other = jnp.where((rows.shared[:, 1] > rows.shared[:, 0])[:, None, None], other, -jnp.inf)
        share = jax.nn.sigmoid(other - normaliser)[..., None]  # exp(b) / (exp(a) + exp(b))
        out = out.astype(jnp.float32) * (1 - share) + more.reshape(out.shape).astype(jnp.float32) * share
        return out.astype(q.dtype).swapaxes(1, 2)


def _cudnn(q: Array, k: Array, v: Array, seen: Array, *, residual: bool) -> tuple[Array, Any]:
    """As :func:`_xla`, by cuDNN."""
    lengths: Any = seen.astype(jnp.int32) if seen.ndim == 1 else None
    if not residual:
        mask = None if seen.ndim == 1 else seen
        return jax.nn.dot_product_attention(q, k, v, mask=mask, key_value_seq_lengths=lengths, implementation="cudnn"), None
    # What jax.nn's function calls: that one rounds the normaliser to the dtype of q, at 20 to an eighth.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention as cudnn_attention

    scale = q.shape[-1] ** -0.5
    if lengths is None:
        found: Any = cudnn_attention(q, k, v, None, seen, scale=scale, return_residual=True)
    else:
        ones = jnp.ones(q.shape[0], jnp.int32)
        kind = MaskType.PADDING
        found = cudnn_attention(q, k, v, None, None, ones, lengths, scale=scale, mask_type=kind, return_residual=True)
    out, normaliser = found
    return out, normaliser.swapaxes(1, 2).astype(jnp.float32)


def _xla(q: Array, k: Array, v: Array, seen: Array, *, residual: bool) -> tuple[Array, Any]:
    """Attention and its normaliser.

    Args:
        q: ``[batch, time, heads, head_dim]``.
        k: ``[batch, column, kv_heads, head_dim]``.
        v: the same.
        seen: how many columns each row sees, ``[batch]``, or which, ``[batch, 1, time, column]``.
        residual: whether the normaliser is wanted.

    Returns:
        ``[batch, time, heads, head_dim]``, and the log of the sum of exp(score), float32 ``[batch, time, heads]``.
    """
    batch, time, heads, dims = q.shape
    if seen.ndim == 1:
        seen = (jnp.arange(k.shape[1]) < seen[:, None])[:, None, None]
    grouped = q.reshape(batch, time, k.shape[2], -1, dims)
    scores = _einsum("btkgd,bckd->bkgtc", grouped, k) * dims**-0.5
    scores = jnp.where(seen[:, :, None], scores, MASKED)
    normaliser = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    out = _einsum("bkgtc,bckd->btkgd", jnp.exp(scores - normaliser).astype(v.dtype), v)
    return out.reshape(q.shape).astype(q.dtype), normaliser[..., 0].transpose(0, 3, 1, 2).reshape(batch, time, heads)


def _einsum(formula: str, a: Array, b: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(formula, a, b, precision=precision, preferred_element_type=jnp.float32)


def _replaced(layers: tuple[Array, ...], layer: int, new: Array) -> tuple[Array, ...]:
    return (*layers[:layer], new, *layers[layer + 1 :])


def _write_in_turn(x: Array, new: Array, rows: Rows, axis: int) -> Array:
    """``new[row]`` into the row's page of ``x``, from its column on; what XLA's CPU backend is fast at."""
    size = x.shape[axis]

    def write(i: Any, x: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(new, i, 1, 0)
        start: list[Any] = [rows.pages[i, rows.columns[i] // size], *[jnp.int32(0)] * 3]
        start[axis] = rows.columns[i] % size
        return jax.lax.dynamic_update_slice(x, row, start)

    return jax.lax.fori_loop(0, new.shape[0], write, x)


def _write_at_once(x: Array, new: Array, rows: Rows, axis: int) -> Array:
    """The same by one scatter; columns are axis 1, and a row has one page."""
    assert axis == 1
    return x.at[rows.pages[:, :1], rows.columns[:, None] + jnp.arange(new.shape[1])].set(new)


def _own_mask(rows: Rows, time: int, columns: int) -> Bool[Array, "batch time columns"]:
    column, last = jnp.arange(columns), rows.columns[:, None] + jnp.arange(time)
    return (column >= rows.first[:, None, None]) & (column <= last[:, :, None])


def _shared_mask(intervals: Int[Array, "batch 2"], column: Int[Array, " column"]) -> Bool[Array, "batch column"]:
    return (column >= intervals[:, :1]) & (column < intervals[:, 1:])


class _Part(NamedTuple):
    """Attention over some columns, not yet divided: ``out = Σ 2^(score − top) v``, ``total = Σ 2^(score − top)``.

    Scores are those of attention over ln 2, and ``top`` is the largest of them rounded up to a whole number: weights that are
    rounded to bfloat16 are then rounded alike, whatever columns they are together with.
    """

    out: Float[Array, "batch kv_heads per head_dim"]
    top: Float[Array, "batch kv_heads per 1"]
    total: Float[Array, "batch kv_heads per 1"]


def _queries(q: Array, kv_heads: int) -> Float[Array, "batch kv_heads per head_dim"]:
    """The query heads of one KV head as rows of one product: no repeated keys, and a fatter matrix."""
    batch, _, _, dims = q.shape
    return q.reshape(batch, kv_heads, -1, dims)


def _part(q: Array, k: Array, v: Array, mask: Array) -> _Part:
    """Queries ``[batch, kv_heads, per, head_dim]`` over ``k`` ``[batch, kv_heads, head_dim, column]`` and ``v``.

    Where keys and values are bits of bfloat16, queries and weights are rounded to it, be the products what is faster: those of
    bfloat16 numbers, or where there are few rows those of the same numbers as float32.
    """
    few = q.shape[-2] < 16

    def number(x: Array) -> Array:
        return _widened(x) if few else _as_bfloat16(x)

    def rounded(x: Array, like: Array) -> Array:
        return number(_narrowed(x, like.dtype))

    scores = matmul(rounded(q, k), number(k), preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * (q.shape[-1] ** -0.5 / math.log(2)), MASKED)
    top = jnp.ceil(scores.max(-1, keepdims=True))
    weights = jnp.exp2(scores - top)
    out = matmul(rounded(weights, v), number(v), preferred_element_type=jnp.float32)
    return _Part(out, top, weights.sum(-1, keepdims=True))


def _narrowed(x: Array, dtype: Any) -> Array:
    """As numbers of a cache, in which unsigned integers are the bits of bfloat16."""
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def _widened(x: Array) -> Array:
    """Numbers of a cache as those to compute with, float32 in place of bits of bfloat16."""
    if x.dtype != jnp.uint16:
        return x
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def _as_bfloat16(x: Array) -> Array:
    """Numbers of a cache as they are, bits of bfloat16 as such."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def _over_gathered(q: Array, pool: tuple[Array, Array], rows: Rows) -> _Part:
    """Over the pages of every row, put side by side."""
    k, v = (x[rows.pages] for x in pool)  # [batch, width, kv_heads, …]
    batch, width, kv_heads, dims, size = k.shape
    k = k.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, dims, width * size)
    v = v.swapaxes(1, 2).reshape(batch, kv_heads, width * size, dims)
    time = q.shape[2]
    mask = jnp.tile(_own_mask(rows, time, width * size), (1, q.shape[1] // kv_heads, 1))
    return _part(_queries(q, kv_heads), k, v, mask[:, None])


def _over_pages(q: Array, pool: tuple[Array, Array], rows: Rows) -> _Part:
    """A decode step over the pool as it lies: each page with its owner's query, then the pages of every row mixed.

    No page is copied but into the processor's cache, and the work is that of the pages in use, not that of the longest row.
    """
    owners, starts, blocks = rows.owners, rows.starts, rows.blocks
    assert owners is not None
    assert starts is not None
    k, v = pool
    pages, kv_heads, dims, size = k.shape
    queries = _queries(q, kv_heads)
    column = jnp.arange(size)

    def block(i: Any, done: _Part) -> _Part:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, 0)

        owner, start = cut(owners), cut(starts)
        row = jnp.maximum(owner, 0)
        mask = (start[:, None] + column <= rows.columns[row][:, None]) & (owner >= 0)[:, None]
        part = _part(queries[row], cut(k), cut(v), mask[:, None, None])
        return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_slice_in_dim(all_, one, i * BLOCK, 0), done, part)

    per = queries.shape[2]
    empty = _Part(*(jnp.zeros((pages, kv_heads, per, n), jnp.float32) for n in (dims, 1, 1)))
    done = jax.lax.fori_loop(0, blocks, block, empty)
    width = rows.pages.shape[1]
    used = (jnp.arange(width) * size <= rows.columns[:, None])[:, :, None, None, None]
    out, tops, totals = (x[rows.pages] for x in done)  # [batch, width, kv_heads, per, …]
    tops = jnp.where(used, tops, MASKED)
    top = tops.max(1)
    share = jnp.where(used, jnp.exp2(tops - top[:, None]), 0.0)
    return _Part((out * share).sum(1), top, (totals * share).sum(1))


def shared_blocks(batch: int, tokens: int, columns: int) -> tuple[int, int]:
    """Rows and shared columns that are attended to at once: few products where many rows begin alike, none where none does.

    Args:
        batch: rows.
        tokens: of each row.
        columns: that are shared.
    """
    return math.gcd(batch, 64 if tokens == 1 else 8), math.gcd(columns, SHARED_BLOCK)


def _over_shared(q: Array, own: _Part, common: tuple[Array, Array], rows: Rows) -> _Part:
    """The rows' own columns and their shared ones with one normaliser, block by block of those that belong together."""
    assert rows.near is not None
    k, v = common[0][0], common[1][0]  # [kv_heads, head_dim, column], [kv_heads, column, head_dim]
    batch, kv_heads, per, dims = own.out.shape
    size, width = shared_blocks(batch, q.shape[2], k.shape[-1])
    queries, near = _queries(q, kv_heads), rows.near
    column = jnp.arange(width)

    def step(i: Any, done: _Part) -> _Part:
        row, first = near[i, 0] * size, near[i, 1] * width

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, row, size, 0)

        flat = cut(queries).swapaxes(0, 1).reshape(kv_heads, size * per, dims)
        mask = jnp.repeat(_shared_mask(cut(rows.shared), first + column), per, axis=0)
        keys, values = jax.lax.dynamic_slice_in_dim(k, first, width, 2), jax.lax.dynamic_slice_in_dim(v, first, width, 1)
        part = _part(flat, keys, values, mask)
        out, top, total = (x.reshape(kv_heads, size, per, -1).swapaxes(0, 1) for x in part)
        before = jax.tree.map(cut, done)
        most = jnp.maximum(before.top, top)
        mine, theirs = jnp.exp2(before.top - most), jnp.exp2(top - most)
        mixed = _Part(before.out * mine + out * theirs, most, before.total * mine + total * theirs)
        return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, row, 0), done, mixed)

    return jax.lax.fori_loop(0, rows.nears, step, own)
