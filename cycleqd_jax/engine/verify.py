"""The jitted program that verifies drafts: windows of several tokens per row instead of one."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.engine import drafts
from cycleqd_jax.engine.attention import Attention
from cycleqd_jax.engine.cache import KVCache
from cycleqd_jax.engine.programs import Requests, likeliest, positions_of
from cycleqd_jax.models import llama
from cycleqd_jax.types import Array, Bool, Int, Params

__all__ = ["Verified", "verify"]


class Verified(NamedTuple):
    """What :func:`verify` has generated.

    Attributes:
        tokens: the generated tokens.
        count: how many of them are valid in each row.
        windows: the windows in which the row was not at its end.
        at: the place in the row's sources after them (:class:`~cycleqd_jax.engine.drafts.Sources`).
        finite: whether all logits of the row were finite.
        steps: windows that were computed for all rows together.
    """

    tokens: Int[Array, "row column"]
    count: Int[Array, " row"]
    windows: Int[Array, " row"]
    at: Int[Array, " row"]
    finite: Bool[Array, " row"]
    steps: Int[Array, ""]


class _Loop(NamedTuple):
    cache: KVCache
    columns: Int[Array, " row"]  # the column of the last token, which is not in the cache yet
    left: Int[Array, " row"]  # how many tokens may follow it
    last: Int[Array, "row context"]
    lost: Bool[Array, " row"]
    found: Verified


@functools.partial(jax.jit, static_argnames=("config", "attention", "steps", "window", "stop_ids"), donate_argnames=("cache",))
def verify(
    params: Params,
    cache: KVCache,
    shared: KVCache | None,
    sources: drafts.Sources,
    requests: Requests,
    *,
    config: llama.LlamaConfig,
    attention: Attention,
    steps: int,
    window: int,
    stop_ids: tuple[int, ...],
) -> tuple[KVCache, Verified]:
    """Generates 1 to ``window`` greedy tokens for every row in each step, by verifying draft tokens.

    A window is the last token of a row and the draft tokens that may follow it. Draft tokens are right as long as each equals
    the likeliest token, and the likeliest token after them is right too. The next window overwrites the columns of the others.

    Args:
        params: the weights.
        cache: donated.
        shared: the shared columns, if there are any.
        sources: where draft tokens are read; ``last`` ends with the last token of each row, which is not in the cache yet.
        requests: rows with ``ends``, and the most tokens to generate for each; the row's pages need room up to ``ends``.
        config: the model.
        attention: the implementation of attention.
        steps: windows.
        window: tokens per window.
        stop_ids: tokens that end a reply.

    Returns:
        The cache, and what was generated.
    """
    params = llama.select(params, jnp.asarray(requests.individual))
    stops = jnp.asarray(stop_ids, jnp.int32)
    text = jnp.asarray(sources.text)
    count, order = text.shape[0], jnp.arange(window)[None]

    def body(loop: _Loop) -> _Loop:
        found = loop.found
        at = drafts.find(drafts.Sources(text, found.at, loop.last), loop.lost)
        guess = drafts.continuation(text, at, window - 1)
        tokens = jnp.concatenate([loop.last[:, -1:], jnp.maximum(guess, 0)], axis=1)
        rows = requests.rows._replace(columns=loop.columns)
        positions = positions_of(rows)[:, None] + order
        attend = functools.partial(attention, rows=rows, shared=shared)
        hidden, cache = llama.decoder(params, config, tokens, positions, attend, loop.cache)
        logits = llama.unembed(params, config, hidden).reshape(count * window, -1)
        token, finite = (x.reshape(count, window) for x in likeliest(logits))
        token = token.astype(jnp.int32)
        right = jnp.cumprod((token[:, :-1] == guess).astype(jnp.int32), axis=1).sum(1)
        ends = (token[:, :, None] == stops[None, None]).any(-1) | ~finite
        first_end = jnp.where(ends.any(1), ends.argmax(1).astype(jnp.int32), window)
        active = loop.left > 0
        new = jnp.minimum(jnp.minimum(right, first_end) + 1, loop.left).astype(jnp.int32)  # 0 for a row at its end

        def put(tokens: Array, token: Array, start: Array) -> Array:
            return jax.lax.dynamic_update_slice(tokens, token, (start,))

        recent = jnp.concatenate([loop.last, token], axis=1)
        return _Loop(
            cache=cache,
            columns=loop.columns + new,
            left=jnp.where(active & (first_end < new), 0, loop.left - new),
            last=jnp.take_along_axis(recent, new[:, None] + jnp.arange(loop.last.shape[1])[None], axis=1),
            lost=right == 0,
            found=Verified(
                tokens=jax.vmap(put)(found.tokens, token, found.count),
                count=found.count + new,
                windows=found.windows + active.astype(jnp.int32),
                at=jnp.where(active, jnp.minimum(at + new, text.shape[1] - 1), found.at),
                finite=found.finite & (finite | (order >= new[:, None])).all(1),
                steps=found.steps + 1,
            ),
        )

    zeros = jnp.zeros(count, jnp.int32)
    loop = _Loop(
        cache=cache,
        columns=jnp.asarray(requests.rows.columns),
        left=jnp.asarray(requests.count),
        last=jnp.asarray(sources.last),
        lost=jnp.zeros(count, bool),
        found=Verified(
            tokens=jnp.zeros((count, (steps + 1) * window), jnp.int32),  # a window is written whole
            count=zeros,
            windows=zeros,
            at=jnp.asarray(sources.at),
            finite=jnp.ones(count, bool),
            steps=jnp.int32(0),
        ),
    )
    loop = jax.lax.while_loop(lambda loop: (loop.found.steps < steps) & (loop.left > 0).any(), body, loop)
    return loop.cache, loop.found
