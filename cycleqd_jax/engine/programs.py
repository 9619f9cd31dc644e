"""The programs that run on the device: prefill of chunks, many decode steps, and the choice of tokens.

What the host knows of every row comes in with each call (:class:`Requests`); what stays on the device is the weights and the
KV cache, which is donated. Rows never mix.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.engine.cache import Attention, KVCache, Rows
from cycleqd_jax.models import llama
from cycleqd_jax.types import Array, Bool, Float, Int, Params, UInt32

__all__ = ["Requests", "Sampling", "choose", "decode", "grow", "prefill", "swap"]


class Sampling(NamedTuple):
    """How the tokens of each row are chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: the likeliest tokens that have this probability together are drawn from (https://arxiv.org/abs/1904.09751).
        key: raw data of each row's PRNG key; the token at position t is drawn with ``fold_in(key, t)``.
    """

    temperature: Float[Array, " batch"]
    top_p: Float[Array, " batch"]
    key: UInt32[Array, "batch 2"]


class Requests(NamedTuple):
    """What is to be done for each row.

    Attributes:
        rows: where it belongs.
        individual: whose weights decode it, where the weights are those of a population.
        count: tokens that the row has (:func:`prefill`), or how many it may still say (:func:`decode`); 0 for an empty row.
        sampling: how its tokens are chosen.
    """

    rows: Rows
    individual: Int[Array, " batch"]
    count: Int[Array, " batch"]
    sampling: Sampling


def choose(
    logits: Float[Array, "batch vocab"], sampling: Sampling, positions: Int[Array, " batch"]
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """The next token of every row, and whether its logits are numbers.

    Args:
        logits: float32.
        sampling: how to choose.
        positions: of the token that is chosen: what is drawn depends on key and position alone.
    """

    def draw(logits: Array) -> Array:
        scaled = logits / jnp.maximum(sampling.temperature, 1e-6)[:, None]
        order = jnp.argsort(-scaled, axis=-1)
        likely = jax.nn.softmax(jnp.take_along_axis(scaled, order, axis=-1), axis=-1)
        # What comes before a token has less than top_p: the first token is always in.
        kept = jnp.cumsum(likely, axis=-1) - likely < sampling.top_p[:, None]
        ranked = jnp.where(kept, jnp.log(likely), -jnp.inf)

        def one(key: Array, position: Array, ranked: Array) -> Array:
            return jax.random.categorical(jax.random.fold_in(jax.random.wrap_key_data(key), position), ranked)

        rank = jax.vmap(one)(sampling.key, positions, ranked)
        return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]

    # The first of the largest, in two passes that vectorise: XLA's CPU backend takes three times as long for an argmax.
    top = logits.max(-1, keepdims=True)
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    greedy = jnp.where(logits == top, numbers, logits.shape[-1] - 1).min(-1)
    warm = sampling.temperature > 0
    token = jax.lax.cond(warm.any(), lambda: jnp.where(warm, draw(logits), greedy), lambda: greedy)
    return token.astype(jnp.int32), jnp.isfinite(top[:, 0])


def _positions(rows: Rows) -> Int[Array, " batch"]:
    """RoPE position of each row's first token: after its shared columns and its own."""
    return rows.columns - rows.first + rows.shared[:, 1] - rows.shared[:, 0]


@functools.partial(jax.jit, static_argnames=("config", "attention"), donate_argnames=("cache",))
def prefill(
    params: Params,
    cache: KVCache,
    shared: KVCache | None,
    tokens: Int[Array, "batch chunk"],
    requests: Requests,
    *,
    config: llama.LlamaConfig,
    attention: Attention,
) -> tuple[KVCache, Int[Array, " batch"], Bool[Array, " batch"]]:
    """Takes a chunk of tokens into each row's pages.

    Several rows may be consecutive chunks of one conversation: every layer writes all keys before any are attended to.

    Args:
        params: the weights.
        cache: donated. Columns past a row's last token, up to a whole chunk, hold nothing afterwards.
        shared: the shared columns, if any.
        tokens: right-padded.
        requests: rows and counts; each row's tokens go to one page. An empty row repeats another.
        config: the model.
        attention: how to attend.

    Returns:
        The cache, the token that follows each row's last, and whether its logits are numbers.
    """
    params = llama.select(params, requests.individual)
    first = _positions(requests.rows)
    positions = first[:, None] + jnp.arange(tokens.shape[1])
    attend = functools.partial(attention, rows=requests.rows, shared=shared)
    hidden, cache = llama.decoder(params, config, tokens, positions, attend, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(requests.count, 1)[:, None, None] - 1, axis=1)[:, 0]
    token, finite = choose(llama.unembed(params, config, last), requests.sampling, first + requests.count)
    return cache, token, finite


class _Loop(NamedTuple):
    cache: KVCache
    token: Int[Array, " row"]  # the last one, not yet in the cache
    columns: Int[Array, " row"]  # where it goes
    left: Int[Array, " row"]  # how many may follow it
    said: Int[Array, "row step"]
    count: Int[Array, " row"]
    finite: Bool[Array, " row"]
    step: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("config", "attention", "steps", "stop_ids"), donate_argnames=("cache",))
def decode(
    params: Params,
    cache: KVCache,
    shared: KVCache | None,
    token: Int[Array, " row"],
    requests: Requests,
    *,
    config: llama.LlamaConfig,
    attention: Attention,
    steps: int,
    stop_ids: tuple[int, ...],
) -> tuple[KVCache, Int[Array, "row step"], Int[Array, " row"], Bool[Array, " row"]]:
    """Up to ``steps`` tokens for every row; ends when no row has more to say.

    Args:
        params: the weights.
        cache: donated.
        shared: the shared columns, if any.
        token: each row's last token, which is not in the cache yet.
        requests: rows, and how many tokens each may say; their pages have room for them and one more. A row that says nothing
            writes to the column after its last.
        config: the model.
        attention: how to attend.
        steps: the most tokens of a call.
        stop_ids: tokens that end a reply.

    Returns:
        The cache, the tokens said, how many they are in each row, and whether all logits of the row were numbers.
    """
    params = llama.select(params, requests.individual)
    stops = jnp.asarray(stop_ids, jnp.int32)
    count = token.shape[0]

    def body(loop: _Loop) -> _Loop:
        rows = requests.rows._replace(columns=loop.columns)
        position = _positions(rows)
        attend = functools.partial(attention, rows=rows, shared=shared)
        hidden, cache = llama.decoder(params, config, loop.token[:, None], position[:, None], attend, loop.cache)
        token, finite = choose(llama.unembed(params, config, hidden[:, 0]), requests.sampling, position + 1)
        active = loop.left > 0
        token = jnp.where(active, token, loop.token)
        ended = (token[:, None] == stops).any(-1) | ~finite
        return _Loop(
            cache=cache,
            token=token,
            columns=loop.columns + active,
            left=jnp.where(active & ended, 0, loop.left - active),
            said=jax.lax.dynamic_update_slice(loop.said, token[:, None], (0, loop.step)),
            count=loop.count + active,
            finite=loop.finite & finite,  # what follows a reply counts: it is in the cache
            step=loop.step + 1,
        )

    loop = _Loop(
        cache=cache,
        token=token,
        columns=requests.rows.columns,
        left=requests.count,
        said=jnp.zeros((count, steps), jnp.int32),
        count=jnp.zeros(count, jnp.int32),
        finite=jnp.ones(count, bool),
        step=jnp.int32(0),
    )
    loop = jax.lax.while_loop(lambda loop: (loop.step < steps) & (loop.left > 0).any(), body, loop)
    return loop.cache, loop.said, loop.count, loop.finite


@functools.partial(jax.jit, static_argnames=("attention", "pages"))
def grow(cache: KVCache, *, attention: Attention, pages: int) -> KVCache:
    """See :meth:`cycleqd_jax.engine.cache.Attention.grow`."""
    return attention.grow(cache, pages)


@functools.partial(jax.jit, donate_argnames=("cache",))
def swap(cache: KVCache, pairs: Int[Array, "pair 2"], count: Int[Array, ""]) -> KVCache:
    """Pages that change places.

    Args:
        cache: donated.
        pairs: which pages; none is in two pairs.
        count: how many of the pairs count.
    """
    source, target = pairs.ravel(), pairs[:, ::-1].ravel()

    def exchange(x: Array) -> Array:
        def take(i: Array, taken: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(taken, jax.lax.dynamic_slice_in_dim(x, source[i], 1), i, 0)

        def put(i: Array, x: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, jax.lax.dynamic_slice_in_dim(taken, i, 1), target[i], 0)

        # One after the other: where a loop both reads and writes the pool, XLA copies the whole of it every time.
        taken = jax.lax.fori_loop(0, 2 * count, take, jnp.zeros((source.size, *x.shape[1:]), x.dtype))
        return jax.lax.fori_loop(0, 2 * count, put, x)

    return jax.tree.map(exchange, cache)
