"""A small model, requests for it, and an independent loop to compare the engine with."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention, Engine
from cycleqd_jax.models import llama
from cycleqd_jax.types import MixedMatrix

CONFIG = llama.LlamaConfig(48, 32, 64, 2, 4, 2, 8, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=True)
STOPS = (3, 5)
ATTENTIONS = [Attention("products"), Attention("xla")]  # the implementation of CPUs, and the one that GPUs run
# For tests that compile for half a minute with each.
slow_with_xla = pytest.mark.parametrize(
    "attention",
    [ATTENTIONS[0], pytest.param(ATTENTIONS[1], marks=pytest.mark.slow)],
    indirect=True,
    ids=lambda attention: attention.implementation,
)


def make(config=CONFIG, **changes):
    settings = {"slots": 4, "max_len": 48, "stop_ids": STOPS, "pad_id": 0, "chunk": 12, "steps": 4}
    return Engine(config, **(settings | changes))


def requests_of(n, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest)).tolist() for _ in range(n)]
    return prompts, rng.integers(1, 25, n).tolist()


def groups_of(seed=0):
    """Prompts in three groups with a common prefix, and some without one."""
    rng = np.random.default_rng(seed)

    def tokens(n):
        return rng.integers(0, CONFIG.vocab_size, n).tolist()

    prompts = [tokens(rng.integers(1, 20)) for _ in range(3)]
    for length, count in ((17, 5), (8, 6), (23, 3)):
        beginning = tokens(length)
        prompts += [beginning + tokens(rng.integers(1, 12)) for _ in range(count)] + [beginning]
    order = rng.permutation(len(prompts))
    return [prompts[i] for i in order], rng.integers(1, 25, len(prompts)).tolist()


@functools.partial(jax.jit, static_argnums=2)
def forward(params, tokens, config):
    return llama.forward(params, config, tokens)[0]


def plain_loop(params, prompt, limit, max_len=48, config=CONFIG):
    """Greedy decoding without cache and batch."""
    ids = list(prompt)
    while True:
        padded = np.zeros((1, 64), np.int32)  # one shape; tokens after the end are masked
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(forward(params, padded, config)[len(ids) - 1])))
        if ids[-1] in STOPS:
            return tuple(ids[len(prompt) :]), "stop", 0
        if len(ids) - len(prompt) == limit or len(ids) == max_len:
            return tuple(ids[len(prompt) :]), "length", 0


def attend_rounded(of_cache, of_products):
    """Causal attention without a cache. One function rounds keys and values, and the other one queries and weights."""

    def attend(q, k, v, cache, _):
        batch, _, time, dims = q.shape
        grouped = of_products(q).reshape(batch, k.shape[1], -1, time, dims)
        scores = jnp.einsum("bkgtd,bkcd->bkgtc", grouped, of_cache(k), precision="highest") * (dims**-0.5 / math.log(2))
        scores = jnp.where(jnp.tri(time, dtype=bool)[None, None, None], scores, -jnp.inf)
        weights = jnp.exp2(scores - jnp.ceil(scores.max(-1, keepdims=True)))
        out = jnp.einsum("bkgtc,bkcd->bkgtd", of_products(weights), of_cache(v), precision="highest")
        return (out / weights.sum(-1, keepdims=True)).reshape(q.shape), cache

    return attend


def converse(engine, turns, rng, *, edits=False, count=3):
    """Plays conversations of several turns; every turn begins when all replies of the last are complete.

    Returns:
        Prompts and replies.
    """
    talks = [rng.integers(0, CONFIG.vocab_size, rng.integers(3, 9)).tolist() for _ in range(count)]
    played = []
    for turn in range(turns):
        if edits and turn:
            for talk in talks:
                talk[1] = (talk[1] + 1) % CONFIG.vocab_size
        numbers = {engine.submit(talk, 5, conversation=name): name for name, talk in enumerate(talks)}
        while numbers:
            for number, generation in engine.advance():
                name = numbers.pop(number)
                played.append((tuple(talks[name]), generation))
                talks[name] += [*generation.ids, *rng.integers(0, CONFIG.vocab_size, 3).tolist()]
    assert not engine.busy
    for name in range(count):
        engine.release(name)
    return played


def population(params, count=3, rank=2, seed=4):
    """Weights of several individuals: as one tree of mixed matrices, and merged for each individual."""
    rng = np.random.default_rng(seed)
    layers, singles = params["layers"], [params["layers"]] * count
    for group, name in [(group, name) for group in ("attn", "mlp") for name in params["layers"][group]]:
        w = layers[group][name]
        u, vt = (jnp.asarray(rng.normal(size=shape) * 0.2, w.dtype) for shape in ((2, w.shape[1], rank), (2, rank, w.shape[2])))
        coefficients = jnp.asarray(rng.normal(size=(2, count, rank)), w.dtype)
        layers = layers | {group: layers[group] | {name: MixedMatrix(w, u, vt, coefficients)}}
        merged = [w + jnp.einsum("lir,lr,lro->lio", u, coefficients[:, i], vt, precision="highest") for i in range(count)]
        singles = [one | {group: one[group] | {name: merged[i]}} for i, one in enumerate(singles)]
    return params | {"layers": layers}, [params | {"layers": one} for one in singles]
