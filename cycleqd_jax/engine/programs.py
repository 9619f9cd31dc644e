"""The jitted programs: prefill of chunks, a loop of decode steps, and the choice of tokens.

The host passes its knowledge of every row with each call (:class:`Requests`). The weights and the KV cache, which is donated,
stay on the device. A row's result does not depend on the other rows.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.engine.attention import Attention
from cycleqd_jax.engine.cache import KVCache, Rows
from cycleqd_jax.models import llama
from cycleqd_jax.types import AnyArray, Array, Bool, Float, Int, Params, UInt32

__all__ = [
    "Packing",
    "Requests",
    "Sampling",
    "choose",
    "decode",
    "grow",
    "likeliest",
    "positions_of",
    "prefill",
    "states",
    "swap",
]


class Sampling(NamedTuple):
    """How the tokens of each row are chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn from the likeliest ones that together have this probability
            (https://arxiv.org/abs/1904.09751).
        key: raw data of each row's PRNG key; the token at position t is drawn with ``fold_in(key, t)``.
    """

    temperature: Float[AnyArray, " batch"]
    top_p: Float[AnyArray, " batch"]
    key: UInt32[AnyArray, "batch 2"]


class Requests(NamedTuple):
    """What a program computes for each row.

    Attributes:
        rows: where the row lies in the cache.
        individual: the individual whose weights are used, where those of a population are loaded.
        count: tokens in the row (:func:`prefill`), or the most tokens to generate; 0 for an empty row.
        sampling: how the row's tokens are chosen.
    """

    rows: Rows
    individual: Int[AnyArray, " batch"]
    count: Int[AnyArray, " batch"]
    sampling: Sampling


class Packing(NamedTuple):
    """The tokens of a prefill's rows one after the other, without the padding of the rows.

    Attributes:
        place: the place of each token in the padded rows: row * chunk + column. Tokens past the last repeat place 0.
        at: the token of each place; a place of padding has the last token of its row.
    """

    place: Int[AnyArray, " token"]
    at: Int[AnyArray, "batch chunk"]


def choose(
    logits: Float[Array, "batch vocab"], sampling: Sampling, positions: Int[Array, " batch"]
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """The next token of every row, and whether the row's largest logit is finite.

    Args:
        logits: float32.
        sampling: how to choose.
        positions: the position of each chosen token; a draw depends on the row's key and this position only.
    """

    def draw(logits: Array) -> Array:
        scaled = logits / jnp.maximum(sampling.temperature, 1e-6)[:, None]
        order = jnp.argsort(-scaled, axis=-1)
        likely = jax.nn.softmax(jnp.take_along_axis(scaled, order, axis=-1), axis=-1)
        # A token is kept if the tokens before it have less than top_p together: the first is always kept.
        kept = jnp.cumsum(likely, axis=-1) - likely < sampling.top_p[:, None]
        ranked = jnp.where(kept, jnp.log(likely), -jnp.inf)

        def one(key: Array, position: Array, ranked: Array) -> Array:
            return jax.random.categorical(jax.random.fold_in(jax.random.wrap_key_data(key), position), ranked)

        rank = jax.vmap(one)(jnp.asarray(sampling.key), positions, ranked)
        return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]

    greedy, finite = likeliest(logits)
    warm = sampling.temperature > 0
    token = jax.lax.cond(warm.any(), lambda: jnp.where(warm, draw(logits), greedy), lambda: greedy)
    return token.astype(jnp.int32), finite


def likeliest(logits: Float[Array, "batch vocab"]) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """The first of the likeliest tokens of every row, and whether the row's largest logit is finite."""
    # An argmax in two passes that vectorise: XLA's CPU backend takes three times as long for argmax.
    top = logits.max(-1, keepdims=True)
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    return jnp.where(logits == top, numbers, logits.shape[-1] - 1).min(-1), jnp.isfinite(top[:, 0])


def positions_of(rows: Rows) -> Int[Array, " batch"]:
    """RoPE position of each row's first token: it follows the row's shared columns and its own."""
    return jnp.asarray(rows.columns) - rows.first + rows.shared[:, 1] - rows.shared[:, 0]


def states(
    params: Params,
    cache: KVCache,
    shared: KVCache | None,
    tokens: Int[Array, "batch chunk"],
    positions: Int[Array, "batch chunk"],
    requests: Requests,
    packing: Packing | None,
    config: llama.LlamaConfig,
    attention: Attention,
) -> tuple[Float[Array, "batch chunk embed"], KVCache]:
    """The states of a chunk of tokens per row, and the cache with their keys and values.

    Args:
        params: the weights.
        cache: where keys and values are written.
        shared: the shared columns, if there are any.
        tokens: right-padded.
        positions: RoPE positions.
        requests: rows and individuals.
        packing: computes everything but attention for packed tokens, without the padding; None computes whole rows.
        config: the model.
        attention: the implementation of attention.
    """
    attend = functools.partial(attention, rows=requests.rows, shared=shared)
    individual = jnp.asarray(requests.individual)
    if packing is None:
        return llama.decoder(llama.select(params, individual), config, tokens, positions, attend, cache)
    place, at = jnp.asarray(packing.place), jnp.asarray(packing.at)

    def in_rows(x: Array) -> Array:  # [token, heads, 1, head_dim] → [batch, heads, chunk, head_dim]
        return x[at[:, None], jnp.arange(x.shape[1])[None, :, None], 0]

    def attend_packed(q: Array, k: Array, v: Array, cache: KVCache, layer: int) -> tuple[Array, KVCache]:
        out, cache = attend(in_rows(q), in_rows(k), in_rows(v), cache, layer)
        return out.swapaxes(1, 2).reshape(-1, 1, *q.shape[1::2])[place].swapaxes(1, 2), cache

    params = llama.select(params, individual[place // tokens.shape[1]])
    tokens, positions = tokens.reshape(-1, 1)[place], positions.reshape(-1, 1)[place]
    hidden, cache = llama.decoder(params, config, tokens, positions, attend_packed, cache)
    return hidden[at, 0], cache


@functools.partial(jax.jit, static_argnames=("config", "attention"), donate_argnames=("cache",))
def prefill(
    params: Params,
    cache: KVCache,
    shared: KVCache | None,
    tokens: Int[Array, "batch chunk"],
    requests: Requests,
    packing: Packing | None,
    *,
    config: llama.LlamaConfig,
    attention: Attention,
) -> tuple[KVCache, Int[Array, " batch"], Bool[Array, " batch"]]:
    """Computes a chunk of tokens per row and writes their keys and values to the row's pages.

    Several rows may be consecutive chunks of one conversation: every layer writes all keys before it attends to any.

    Args:
        params: the weights.
        cache: donated. Columns past a row's last token, up to a whole chunk, have no meaning afterwards.
        shared: the shared columns, if there are any.
        tokens: right-padded.
        requests: rows and counts; all tokens of a row go to one page. An empty row repeats the first row.
        packing: see :func:`states`.
        config: the model.
        attention: the implementation of attention.

    Returns:
        The cache, the token that follows the last token of each row, and whether its logits are finite.
    """
    first = positions_of(requests.rows)
    positions = first[:, None] + jnp.arange(tokens.shape[1])[None]
    hidden, cache = states(params, cache, shared, tokens, positions, requests, packing, config, attention)
    last = jnp.take_along_axis(hidden, jnp.maximum(requests.count, 1)[:, None, None] - 1, axis=1)[:, 0]
    token, finite = choose(llama.unembed(params, config, last), requests.sampling, first + requests.count)
    return cache, token, finite


class _Loop(NamedTuple):
    cache: KVCache
    token: Int[Array, " row"]  # the last one, not yet in the cache
    columns: Int[Array, " row"]  # the column of that token
    left: Int[Array, " row"]  # how many tokens may follow it
    tokens: Int[Array, "row step"]  # generated so far
    count: Int[Array, " row"]  # how many of them are valid
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
    """Generates up to ``steps`` tokens for every row; stops early when every row has its last token.

    Args:
        params: the weights.
        cache: donated.
        shared: the shared columns, if there are any.
        token: the last token of each row, which is not in the cache yet.
        requests: rows, and the most tokens to generate for each; the row's pages need room for one column more. A row that has
            ended writes to the column after its last.
        config: the model.
        attention: the implementation of attention.
        steps: the most tokens per row.
        stop_ids: tokens that end a reply.

    Returns:
        The cache, the generated tokens, how many of them are valid in each row, and whether all logits of the row were finite.
    """
    params = llama.select(params, jnp.asarray(requests.individual))
    stops = jnp.asarray(stop_ids, jnp.int32)
    count = token.shape[0]

    def body(loop: _Loop) -> _Loop:
        rows = requests.rows._replace(columns=loop.columns)
        position = positions_of(rows)
        attend = functools.partial(attention, rows=rows, shared=shared)
        hidden, cache = llama.decoder(params, config, loop.token[:, None], position[:, None], attend, loop.cache)
        token, finite = choose(llama.unembed(params, config, hidden[:, 0]), requests.sampling, position + 1)
        active = loop.left > 0
        one = active.astype(jnp.int32)
        token = jnp.where(active, token, loop.token)
        ended = (token[:, None] == stops[None]).any(-1) | ~finite
        return _Loop(
            cache=cache,
            token=token,
            columns=loop.columns + one,
            left=jnp.where(active & ended, 0, loop.left - one),
            tokens=jax.lax.dynamic_update_slice(loop.tokens, token[:, None], (0, loop.step)),
            count=loop.count + one,
            finite=loop.finite & finite,  # logits after the end of a reply count too: their token is in the cache
            step=loop.step + 1,
        )

    loop = _Loop(
        cache=cache,
        token=token,
        columns=jnp.asarray(requests.rows.columns),
        left=jnp.asarray(requests.count),
        tokens=jnp.zeros((count, steps), jnp.int32),
        count=jnp.zeros(count, jnp.int32),
        finite=jnp.ones(count, bool),
        step=jnp.int32(0),
    )
    loop = jax.lax.while_loop(lambda loop: (loop.step < steps) & (loop.left > 0).any(), body, loop)
    return loop.cache, loop.tokens, loop.count, loop.finite


@functools.partial(jax.jit, static_argnames=("attention", "pages"))
def grow(cache: KVCache, *, attention: Attention, pages: int) -> KVCache:
    """See :meth:`cycleqd_jax.engine.attention.Attention.grow`."""
    return attention.grow(cache, pages)


@functools.partial(jax.jit, donate_argnames=("cache",))
def swap(cache: KVCache, pairs: Int[Array, "pair 2"], count: Int[Array, ""]) -> KVCache:
    """Swaps pages of the cache.

    Args:
        cache: donated.
        pairs: the pages to swap; no page is in two pairs.
        count: the number of valid pairs.
    """
    source, target = pairs.ravel(), pairs[:, ::-1].ravel()

    def exchange(x: Array) -> Array:
        def take(i: Array, taken: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(taken, jax.lax.dynamic_slice_in_dim(x, source[i], 1), i, 0)

        def put(i: Array, x: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, jax.lax.dynamic_slice_in_dim(taken, i, 1), target[i], 0)

        # Two loops: if one loop both read and wrote the pool, XLA would copy the whole pool in every iteration.
        taken = jax.lax.fori_loop(0, 2 * count, take, jnp.zeros((source.size, *x.shape[1:]), x.dtype))
        return jax.lax.fori_loop(0, 2 * count, put, x)

    return jax.tree.map(exchange, cache)
