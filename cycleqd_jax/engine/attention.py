"""Attention over the KV cache: matrix products that XLA's CPU backend is fast at, or fused kernels for GPUs."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.engine import products
from cycleqd_jax.engine.cache import MASKED, SCALE_BYTES, KVCache, Rows, own_mask, shared_mask, to_cache
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import Array, Float, InputError

__all__ = ["Attention", "KVCacheDtype", "attention_for", "check_kv_cache_dtype"]

Implementation = Literal["products", "cudnn", "xla"]
KVCacheDtype = Literal["auto", "bfloat16", "int8"]


def attention_for(config: LlamaConfig, platform: str, kv_cache_dtype: KVCacheDtype = "auto") -> Attention:
    """The fastest implementation: products on a CPU, cuDNN on NVIDIA GPUs, XLA's own attention elsewhere.

    Args:
        config: cuDNN needs 16-bit numbers and a head dimension of at most 128 that is a multiple of eight.
        platform: as in ``jax.Device.platform``.
        kv_cache_dtype: see :class:`Attention`.

    Raises:
        InputError: see :func:`check_kv_cache_dtype`.
    """
    check_kv_cache_dtype(kv_cache_dtype, platform)
    if platform == "cpu":
        return Attention("products", kv_cache_dtype)
    dtype = jnp.dtype(config.compute_dtype or config.dtype)
    fused = platform in ("gpu", "cuda") and dtype.itemsize == 2 and config.head_dim <= 128 and config.head_dim % 8 == 0
    return Attention("cudnn" if fused else "xla")


def check_kv_cache_dtype(dtype: str, platform: str) -> None:
    """Checks that a platform has a dtype of keys and values.

    Raises:
        InputError: there is no such dtype, or the platform has keys and values in the compute dtype of the model only.
    """
    known = get_args(KVCacheDtype)
    if dtype not in known:
        raise InputError(f"expected engine.kv_cache_dtype to be one of {', '.join(known)}, got {dtype!r}; correct it")
    if dtype != "auto" and platform != "cpu":
        raise InputError(
            f"expected engine.kv_cache_dtype to be auto on the platform {platform}, got {dtype!r}; only CPUs read keys and "
            "values in another dtype than the model's"
        )


@dataclasses.dataclass(frozen=True)
class Attention:
    """The shape of a cache, and attention over it.

    Attributes:
        implementation: ``"products"``: keys ``[page, kv_heads, head_dim, column]``, values ``[page, kv_heads, column,
            head_dim]``, so that both products of attention read their large operand in its own order; otherwise XLA's CPU
            backend takes three times as long. bfloat16 numbers are stored as their bits, ``uint16``: that backend widens whole
            arrays of 16-bit floats wherever they pass through a loop. ``"cudnn"`` and ``"xla"``: keys and values
            ``[page, column, kv_heads, head_dim]``; in a decode step and in a verification of drafts row i has page i.
        kv_cache_dtype: ``"auto"`` is the compute dtype of the model. ``"bfloat16"`` and ``"int8"`` are for ``"products"``
            only. ``"int8"`` stores the keys, and the values, of one token and one head as whole numbers from -127 to 127 and a
            float32 scale behind them: ``head_dim`` grows by four bytes.
    """

    implementation: Implementation
    kv_cache_dtype: KVCacheDtype = "auto"

    def __post_init__(self) -> None:
        if self.kv_cache_dtype != "auto" and not self.paged:
            raise InputError(
                f"expected kv_cache_dtype 'auto' for the implementation {self.implementation!r}, got {self.kv_cache_dtype!r}; "
                "only products read another dtype than the model's"
            )

    @property
    def paged(self) -> bool:
        """Whether a conversation may have several pages."""
        return self.implementation == "products"

    @property
    def _axes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Axes of columns and KV heads, of keys and of values."""
        return ((3, 1), (2, 1)) if self.paged else ((1, 2), (1, 2))

    def init(self, config: LlamaConfig, pages: int, columns: int, mesh: Mesh | None = None) -> KVCache:
        """An empty cache, its KV heads split over the mesh axis ``tensor``."""
        shapes = self.abstract(config, pages, columns, mesh)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)

    def abstract(self, config: LlamaConfig, pages: int, columns: int, mesh: Mesh | None = None) -> KVCache:
        """Shapes, dtypes and shardings of a cache (``jax.ShapeDtypeStruct``), without arrays."""
        named = self.kv_cache_dtype
        dtype = jnp.dtype((config.compute_dtype or config.dtype) if named == "auto" else named)
        dims = config.head_dim
        if dtype == jnp.int8:
            dtype, dims = jnp.dtype(jnp.uint8), dims + SCALE_BYTES
        elif self.paged and dtype == jnp.bfloat16:
            dtype = jnp.dtype(jnp.uint16)

        def leaf(axes: tuple[int, int]) -> Any:
            shape = [pages, *[dims] * 3]
            shape[axes[0]], shape[axes[1]] = columns, config.num_key_value_heads
            place = None
            if mesh is not None:
                place = NamedSharding(mesh, P(*("tensor" if axis == axes[1] else None for axis in range(4))))
            return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=place)

        keys, values = ((leaf(axes),) * config.num_hidden_layers for axes in self._axes)
        return KVCache(keys, values)

    def shape(self, cache: KVCache) -> tuple[int, int]:
        """Pages of a cache, and columns of a page."""
        return cache.v[0].shape[0], cache.v[0].shape[self._axes[1][0]]

    def grow(self, cache: KVCache, pages: int) -> KVCache:
        """The cache with this many pages; the old pages come first."""

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
        """Writes the tokens' keys and values, then attends to them and to everything before them.

        This is an ``Attend`` of the decoder. A batch with one token per row is a decode step, and one whose rows have ``ends``
        is a verification of drafts. Otherwise all tokens of a row are written to one page.
        """
        k, v = (k.swapaxes(2, 3), v) if self.paged else (k.swapaxes(1, 2), v.swapaxes(1, 2))
        k = to_cache(k, cache.k[layer].dtype, 2 if self.paged else 3)
        v = to_cache(v, cache.v[layer].dtype, 3)
        (of_k, _), (of_v, _) = self._axes
        verifies = rows.ends is not None
        write = _write_at_once if not self.paged else _write_windows if verifies else _write_in_turn
        own = write((cache.k[layer], cache.v[layer]), (k, v), rows, (of_k, of_v))
        cache = KVCache(_replaced(cache.k, layer, own[0]), _replaced(cache.v, layer, own[1]))
        common = None if shared is None else (shared.k[layer], shared.v[layer])
        if self.paged:
            return products.attend(q, own, common, rows), cache
        if q.shape[2] > 1 and not verifies:
            own = own[0][rows.pages[:, 0]], own[1][rows.pages[:, 0]]
        return self._fused(q, own, common, rows), cache

    def _fused(
        self, q: Array, own: tuple[Array, Array], common: tuple[Array, Array] | None, rows: Rows
    ) -> Float[Array, "batch heads time head_dim"]:
        """Attention to the row's own page and to the shared columns, combined by their normalisers."""
        batch, heads, time, dims = q.shape
        queries = q.swapaxes(1, 2)  # [batch, time, heads, head_dim]
        columns = own[0].shape[1]
        # One token needs no mask. The kernels do not read the columns past a row's length.
        lengths = jnp.minimum(jnp.asarray(rows.columns) + time, columns)
        seen = None if time == 1 else own_mask(rows, time, jnp.arange(columns))[:, None]
        attend = _xla if self.implementation == "xla" else _cudnn
        attend_own = _cudnn_windows if attend is _cudnn and rows.ends is not None else attend
        out, normaliser = attend_own(queries, *own, seen, lengths, residual=common is not None)
        if common is None:
            return out.swapaxes(1, 2)
        sees = shared_mask(rows.shared, jnp.arange(common[0].shape[1]))
        mask = jnp.repeat(sees, time, axis=0)[None, None]  # [1, 1, batch * time, shared]
        more, other = attend(queries.reshape(1, batch * time, heads, dims), *common, mask, None, residual=True)
        other = other.reshape(normaliser.shape)
        other = jnp.where((rows.shared[:, 1] > rows.shared[:, 0])[:, None, None], other, -jnp.inf)
        share = jax.nn.sigmoid(other - normaliser)[..., None]  # exp(b) / (exp(a) + exp(b))
        out = out.astype(jnp.float32) * (1 - share) + more.reshape(out.shape).astype(jnp.float32) * share
        return out.astype(q.dtype).swapaxes(1, 2)


def _replaced(layers: tuple[Array, ...], layer: int, new: Array) -> tuple[Array, ...]:
    return (*layers[:layer], new, *layers[layer + 1 :])


_Pair = tuple[Array, Array]


def _write_in_turn(cache: _Pair, new: _Pair, rows: Rows, axes: tuple[int, int]) -> _Pair:
    """Writes the keys and values ``new[·][row]`` into the row's page, row by row: the fastest way on XLA's CPU backend."""

    def write(i: Array, cache: _Pair) -> _Pair:
        def one(x: Array, new: Array, axis: int) -> Array:
            size = x.shape[axis]
            start: list[Any] = [rows.pages[i, rows.columns[i] // size], *[jnp.int32(0)] * 3]
            start[axis] = rows.columns[i] % size
            return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice_in_dim(new, i, 1, 0), start)

        return one(cache[0], new[0], axes[0]), one(cache[1], new[1], axes[1])

    return jax.lax.fori_loop(0, new[0].shape[0], write, cache)


def _write_windows(cache: _Pair, new: _Pair, rows: Rows, axes: tuple[int, int]) -> _Pair:
    """The same token by token, since a window may begin in one page and end in the next; page 0 gets what no row may write."""
    window = new[0].shape[axes[0]]
    assert rows.ends is not None
    pages, columns, ends = jnp.asarray(rows.pages), jnp.asarray(rows.columns), jnp.asarray(rows.ends)

    def write(n: Array, cache: _Pair) -> _Pair:
        i, j = n // window, n % window
        column = columns[i] + j

        def one(x: Array, new: Array, axis: int) -> Array:
            size = x.shape[axis]
            begin, start = [[i, *[jnp.int32(0)] * 3] for _ in range(2)]
            begin[axis], start[axis] = j, column % size
            start[0] = jnp.where(column < ends[i], pages[i, column // size], 0)
            shape = [1, *new.shape[1:]]
            shape[axis] = 1
            return jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(new, begin, shape), start)

        return one(cache[0], new[0], axes[0]), one(cache[1], new[1], axes[1])

    return jax.lax.fori_loop(0, new[0].shape[0] * window, write, cache)


def _write_at_once(cache: _Pair, new: _Pair, rows: Rows, axes: tuple[int, int]) -> _Pair:
    """The same as one scatter for keys and one for values, where columns are axis 1 and a row has one page."""
    assert axes == (1, 1)
    columns = jnp.asarray(rows.columns)[:, None] + jnp.arange(new[0].shape[1])[None]
    k, v = (x.at[rows.pages[:, :1], columns].set(y) for x, y in zip(cache, new, strict=True))
    return k, v


def _cudnn(q: Array, k: Array, v: Array, seen: Array | None, lengths: Array | None, *, residual: bool) -> tuple[Array, Any]:
    """The same as :func:`_xla`, computed by cuDNN; without ``residual`` the normaliser is None."""
    if not residual:
        found = jax.nn.dot_product_attention(q, k, v, mask=seen, key_value_seq_lengths=lengths, implementation="cudnn")
        return found, None
    # The private function behind jax.nn's: the public one rounds the normaliser to the dtype of q, which at 20 is an eighth.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention as cudnn_attention

    queries = None if lengths is None else jnp.full(q.shape[0], q.shape[1], jnp.int32)
    kind = MaskType.NO_MASK if lengths is None else MaskType.PADDING
    scale = q.shape[-1] ** -0.5
    # Typed as two kinds of tuples, of which this call returns the one with two items.
    found: Any = cudnn_attention(q, k, v, None, seen, queries, lengths, scale=scale, mask_type=kind, return_residual=True)
    out, normaliser = found
    return out, normaliser.swapaxes(1, 2).astype(jnp.float32)


def _cudnn_windows(
    q: Array, k: Array, v: Array, seen: Array | None, lengths: Array | None, *, residual: bool
) -> tuple[Array, Any]:
    """The same for short windows: query heads that share a KV head become queries of one head, so that it is read once."""
    batch, time, heads, dims = q.shape
    groups = heads // k.shape[2]
    folded = q.reshape(batch, time, -1, groups, dims).swapaxes(2, 3).reshape(batch, time * groups, -1, dims)
    seen = None if seen is None else jnp.repeat(seen, groups, axis=2)
    out, normaliser = _cudnn(folded, k, v, seen, lengths, residual=residual)
    out = out.reshape(batch, time, groups, -1, dims).swapaxes(2, 3).reshape(q.shape)
    if normaliser is not None:
        normaliser = normaliser.reshape(batch, time, groups, -1).swapaxes(2, 3).reshape(batch, time, heads)
    return out, normaliser


def _xla(q: Array, k: Array, v: Array, seen: Array | None, lengths: Array | None, *, residual: bool) -> tuple[Array, Any]:
    """Attention and its normaliser.

    Args:
        q: ``[batch, time, heads, head_dim]``.
        k: ``[batch, column, kv_heads, head_dim]``.
        v: ``[batch, column, kv_heads, head_dim]``.
        seen: which columns each token sees, ``[batch, 1, time, column]``; None is all below ``lengths``.
        lengths: no token of a row sees a column from here on, int32 ``[batch]``; None where ``seen`` says all.
        residual: whether the caller needs the normaliser.

    Returns:
        ``[batch, time, heads, head_dim]``, and the log of the sum of exp(score), float32 ``[batch, time, heads]``.
    """
    batch, time, heads, dims = q.shape
    if seen is None:
        assert lengths is not None
        seen = (jnp.arange(k.shape[1])[None] < lengths[:, None])[:, None, None]
    grouped = q.reshape(batch, time, k.shape[2], -1, dims)
    scores = _einsum("btkgd,bckd->bkgtc", grouped, k) * dims**-0.5
    scores = jnp.where(seen[:, :, None], scores, MASKED)
    normaliser = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    out = _einsum("bkgtc,bckd->btkgd", jnp.exp(scores - normaliser).astype(v.dtype), v)
    return out.reshape(q.shape).astype(q.dtype), normaliser[..., 0].transpose(0, 3, 1, 2).reshape(batch, time, heads)


def _einsum(formula: str, a: Array, b: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(formula, a, b, precision=precision, preferred_element_type=jnp.float32)
