"""The jitted program that scores given tokens: a prefill that returns log-likelihoods instead of the next token."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.engine.attention import Attention
from cycleqd_jax.engine.cache import KVCache
from cycleqd_jax.engine.programs import Packing, Requests, likeliest, positions_of, states
from cycleqd_jax.models import llama
from cycleqd_jax.types import AnyArray, Array, Bool, Float, Int, Params

__all__ = ["HEAD_BLOCK", "Scored", "Targets", "score"]

HEAD_BLOCK = 64
"""Targets whose logits are in memory at the same time."""


class Targets(NamedTuple):
    """The tokens whose log-likelihoods are computed.

    Attributes:
        at: the token before each, as its place in the flat batch, ``row · chunk + column of the chunk``.
        token: the ids.
        blocks: the number of blocks of :data:`HEAD_BLOCK` targets in use.
    """

    at: Int[AnyArray, " target"]
    token: Int[AnyArray, " target"]
    blocks: Int[AnyArray, ""]


class Scored(NamedTuple):
    """What :func:`score` computes for each target; targets outside of the blocks in use have zeros.

    Attributes:
        logprob: natural logarithm of the token's probability, float32.
        greedy: whether the token is the first of the likeliest.
        finite: whether the logits are finite.
        top: the likeliest tokens, the likeliest first.
        top_logprob: natural logarithms of their probabilities, float32.
    """

    logprob: Float[Array, " target"]
    greedy: Bool[Array, " target"]
    finite: Bool[Array, " target"]
    top: Int[Array, "target top"]
    top_logprob: Float[Array, "target top"]


@functools.partial(jax.jit, static_argnames=("config", "attention", "top"), donate_argnames=("cache",))
def score(
    params: Params,
    cache: KVCache,
    shared: KVCache | None,
    tokens: Int[Array, "batch chunk"],
    requests: Requests,
    packing: Packing | None,
    targets: Targets,
    *,
    config: llama.LlamaConfig,
    attention: Attention,
    top: int,
) -> tuple[KVCache, Scored]:
    """Computes a chunk of tokens per row, as a prefill does, and the log-likelihoods of the targets.

    A row may hold tokens of a context (the trunk) and of several continuations of it (the branches). A branch sees the trunk
    and itself, and its positions continue those of the trunk. The logits of one block of targets at a time are in memory.

    Args:
        params: the weights.
        cache: donated.
        shared: the shared columns, if there are any.
        tokens: right-padded.
        requests: rows with ``trunk`` and ``branch``; all tokens of a row go to one page. An empty row repeats the first row.
        packing: see :func:`cycleqd_jax.engine.programs.states`.
        targets: the wanted tokens; the size is a multiple of :data:`HEAD_BLOCK`.
        config: the model.
        attention: the implementation of attention.
        top: how many of the likeliest tokens are returned for each target.

    Returns:
        The cache, and the results in the order of the targets.
    """
    rows = requests.rows
    assert rows.trunk is not None
    assert rows.branch is not None
    skipped = jnp.maximum(rows.branch - rows.trunk[:, None], 0)  # columns of other branches
    positions = positions_of(rows)[:, None] + jnp.arange(tokens.shape[1])[None] - skipped
    hidden, cache = states(params, cache, shared, tokens, positions, requests, packing, config, attention)
    flat = hidden.reshape(-1, hidden.shape[-1])
    at, token = jnp.asarray(targets.at), jnp.asarray(targets.token)

    def block(i: Array, done: Scored) -> Scored:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, i * HEAD_BLOCK, HEAD_BLOCK, 0)

        wanted = cut(token)
        logits = llama.unembed(params, config, flat[cut(at)])
        best, finite = likeliest(logits)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
        values, tops = jax.lax.top_k(logits, top)
        fine = finite & jnp.isfinite(normaliser)
        found = Scored(own - normaliser, best == wanted, fine, tops, values - normaliser[:, None])
        return jax.tree.map(lambda all_, one: jax.lax.dynamic_update_slice_in_dim(all_, one, i * HEAD_BLOCK, 0), done, found)

    size = token.shape[0]
    tops = jnp.zeros((size, top), jnp.int32), jnp.zeros((size, top), jnp.float32)
    empty = Scored(jnp.zeros(size, jnp.float32), jnp.zeros(size, bool), jnp.ones(size, bool), *tops)
    return cache, jax.lax.fori_loop(0, targets.blocks, block, empty)
