"""Keys and values in bfloat16 or in 8 bits: what is stored, and that replies are those of rounded keys and values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention, EngineLayout
from cycleqd_jax.engine.attention import check_kv_cache_dtype
from cycleqd_jax.engine.cache import SCALE_BYTES, quantized, to_cache
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, NonFiniteError

from .small_model import CONFIG, attend_rounded, converse, groups_of, make


def as_int8(x):
    """The nearest multiples of 1/127 of the largest number of each vector."""
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)) * scale


def as_bfloat16(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize("axis", [-1, 2])
def test_vectors_of_whole_numbers_and_their_scales(axis):
    x = np.random.default_rng(0).normal(size=(3, 2, 8, 5)).astype(np.float32) * 7
    x[1] = 0
    stored = to_cache(jnp.asarray(x), jnp.uint8, axis)
    assert stored.dtype == jnp.uint8
    assert stored.shape[axis] == x.shape[axis] + SCALE_BYTES
    whole, scale = quantized(stored, axis)
    found = np.moveaxis(np.asarray(whole), axis, -1) * np.asarray(scale)[..., None]
    expected = np.moveaxis(x, axis, -1)
    np.testing.assert_allclose(found, as_int8(expected), rtol=1e-6, atol=1e-6)
    assert (np.abs(found - expected) <= np.asarray(scale)[..., None] * 0.5001).all()
    assert not found[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_not_lost(bad):
    x = jnp.ones((1, 1, 1, 8)).at[0, 0, 0, 3].set(bad)
    whole, scale = quantized(to_cache(x, jnp.uint8), -1)
    assert not np.isfinite(np.asarray(whole * scale[..., None])).all()


def logits_by(params, rounded, rounded_product):
    """A function from tokens to logits, with attention over rounded keys and values."""

    attend = attend_rounded(rounded, rounded_product)

    @jax.jit
    def compute(tokens):
        hidden, _ = llama.decoder(params, CONFIG, tokens, jnp.arange(64)[None], attend, None)
        return llama.unembed(params, CONFIG, hidden)[0]

    def logits_of(tokens):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(compute(padded))[: len(tokens)]

    return logits_of


@pytest.mark.parametrize("dtype", ["int8", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
def test_replies_are_those_of_rounded_keys_and_values(params, few_programs, dtype):
    stored = {"int8": jnp.uint8, "bfloat16": jnp.uint16}[dtype]
    rounded = {"int8": as_int8, "bfloat16": as_bfloat16}[dtype]
    logits_of = logits_by(params, rounded, (lambda x: x) if dtype == "int8" else rounded)
    exact_of = logits_by(params, lambda x: x, lambda x: x)
    prompts, limits = groups_of(8)
    engine = make(kv_cache_dtype=dtype)
    engine.load(params)
    for generation, prompt in zip(engine.generate(prompts, limits), prompts, strict=True):
        logits = logits_of([*prompt, *generation.ids])[len(prompt) - 1 : -1]
        gap = logits.max(-1) - logits[np.arange(len(logits)), list(generation.ids)]
        assert gap.max() < 1e-2  # sums in another order may round differently
    assert {x.dtype for x in jax.tree.leaves(engine._runner.cache)} == {jnp.dtype(stored)}
    errors, effects = [], []
    for prompt, one in zip(prompts, engine.token_logprobs(prompts), strict=True):
        at = np.arange(len(prompt) - 1), prompt[1:]
        wanted, exact = (np.asarray(jax.nn.log_softmax(logits(prompt)))[at] for logits in (logits_of, exact_of))
        errors += np.abs(np.array(one.logprobs) - wanted).tolist()
        effects += np.abs(exact - wanted).tolist()
    assert np.mean(errors) < np.mean(effects) / 10  # much nearer than keys and values that are not rounded
    assert max(errors) < 2e-2


@pytest.mark.exhaustive
def test_8_bit_replies_do_not_depend_on_what_is_shared_kept_or_drafted(params):
    prompts, limits = groups_of(3)
    replies = []
    for settings in ({}, {"share_prefixes": False, "slots": 9, "chunk": 8}, {"window": 4}):
        engine = make(kv_cache_dtype="int8", **settings)
        engine.load(params)
        drafts = {"drafts": [[reply.ids] for reply in replies[0]]} if "window" in settings else {}
        replies.append(engine.generate(prompts, limits, **drafts))
    assert replies[0] == replies[1] == replies[2]
    played = []
    for keep in (True, False):
        engine = make(kv_cache_dtype="int8", keep_conversations=keep)
        engine.load(params)
        played.append(converse(engine, 3, np.random.default_rng(1), edits=True))
    assert played[0] == played[1]


def test_a_number_that_is_not_finite_stops_the_engine(params):
    engine = make(kv_cache_dtype="int8")
    engine.load(jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), params))
    with pytest.raises(NonFiniteError):
        engine.generate([[7, 8, 9]], [4])


def test_a_smaller_cache_has_fewer_bytes():
    def bytes_of(dtype):
        return EngineLayout.of(CONFIG, slots=4, max_len=48, platform="cpu", kv_cache_dtype=dtype).column_bytes

    heads = 2 * CONFIG.num_hidden_layers * CONFIG.num_key_value_heads  # keys and values
    assert bytes_of("auto") == heads * CONFIG.head_dim * 4
    assert bytes_of("bfloat16") == heads * CONFIG.head_dim * 2
    assert bytes_of("int8") == heads * (CONFIG.head_dim + SCALE_BYTES)


def test_what_a_platform_does_not_have_is_refused():
    for dtype in ("float16", "", "INT8"):
        with pytest.raises(InputError, match=r"^expected engine\.kv_cache_dtype to be one of auto, bfloat16, int8, got "):
            check_kv_cache_dtype(dtype, "cpu")
    for dtype in ("int8", "bfloat16"):
        with pytest.raises(InputError, match=r"^expected engine\.kv_cache_dtype to be auto on the platform gpu, got "):
            EngineLayout.of(CONFIG, slots=4, max_len=48, platform="gpu", kv_cache_dtype=dtype)
    EngineLayout.of(CONFIG, slots=4, max_len=48, platform="gpu", kv_cache_dtype="auto")
    with pytest.raises(InputError, match=r"^expected kv_cache_dtype 'auto' for the implementation 'xla', got 'int8'"):
        Attention("xla", "int8")
