"""Replies equal those of an unbatched loop without a cache, whatever else the engine decodes."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models import llama

from .small_model import CONFIG, attend_rounded, groups_of, make, plain_loop, requests_of


def test_equals_an_unbatched_uncached_loop(engine, expected):
    for prompts, limits, wanted in expected:
        reused = engine.statistics.reused
        assert engine.generate(prompts, limits) == wanted
        grouped = len(prompts) > 9
        assert (engine.statistics.reused > reused) == grouped
        assert {result[1] for result in wanted} == {"stop", "length"}
        assert len({result[0] for result in wanted}) > 5


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"slots": 1, "chunk": 6, "steps": 3}, marks=pytest.mark.exhaustive),
        pytest.param({"slots": 40, "steps": 64, "chunk": 48, "share_prefixes": False}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_settings_do_not_change_replies(params, attention, expected, settings):
    engine = make(attention=attention, **settings)
    engine.load(params)
    for prompts, limits, wanted in expected:
        assert engine.generate(prompts, limits) == wanted
        order = np.random.default_rng(1).permutation(len(prompts))
        assert engine.generate([prompts[i] for i in order], [limits[i] for i in order]) == [wanted[i] for i in order]


def test_other_rows_do_not_change_a_reply(engine, expected):
    for prompts, limits, wanted in expected:
        for i in range(0, len(prompts), 4):
            assert engine.generate([prompts[i]], [limits[i]]) == [wanted[i]]


def test_limits_and_the_end_of_the_cache(engine, params):
    prompt = requests_of(1)[0][0]
    long = (prompt * 47)[:47]
    (cut,) = engine.generate([long], [20])
    assert len(cut.ids) == 1
    assert cut == plain_loop(params, long, 20)
    for length in range(38, 47):  # pages, chunks and decode steps end at every place
        assert engine.generate([long[:length]], [99]) == [plain_loop(params, long[:length], 99)]
    refused, fine = engine.generate([(prompt * 48)[:48], prompt], [5, 5])
    assert refused == ((), "refused", 0)
    assert len(fine.ids) >= 1
    assert engine.generate([], []) == []
    assert engine.advance() == []


@pytest.mark.parametrize(
    ("length", "limit", "dropped"),
    [(70, 9, 70 + 9 - 48), (47, 9, 47 + 9 - 48), (20, 24, 0), (25, 24, 1)]
    + [
        (length, limit, max(length - 24, 0)) for length in (20, 30, 70) for limit in (25, 47, 48, 99)
    ],  # the reply has half of max_len
)
def test_overflow_truncate_cuts_the_beginning_of_a_prompt(params, attention, length, limit, dropped):
    engine = make(attention=attention, overflow="truncate")
    engine.load(params)
    prompt = np.random.default_rng(3).integers(6, 48, length).tolist()
    (cut,) = engine.generate([prompt], [limit])
    assert cut == (*plain_loop(params, prompt[dropped:], limit)[:2], dropped)


def test_stop_when_ends_a_reply(engine, expected):
    prompts, _, _ = expected[0]
    (whole,) = engine.generate([prompts[0]], [20])
    new = []
    (cut,) = engine.generate([prompts[0]], [20], stop_when=lambda ids: 3 if len(ids) >= 3 else None, on_tokens=new.extend)
    assert len(whole.ids) > 3
    assert cut == (whole.ids[:3], "stop", 0)
    assert tuple(new) == cut.ids


@pytest.mark.exhaustive
def test_bfloat16_on_a_cpu(params):
    """Products of bfloat16 numbers (queries, keys, values and weights of attention too), everything else in float32."""
    config = CONFIG.replace(dtype="bfloat16")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    prompts, limits = groups_of(8)

    def rounded(x):
        return x.astype(jnp.bfloat16).astype(jnp.float32)

    attend = attend_rounded(rounded, rounded)

    @jax.jit
    def logits_of(tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        wide = config.replace(compute_dtype="float32")
        hidden, _ = llama.decoder(narrow, wide, tokens, positions, attend, None)
        return llama.unembed(narrow, wide, hidden)[0]

    for settings in ({}, {"slots": 9, "chunk": 8, "share_prefixes": False}):
        engine = make(config, **settings)
        engine.load(narrow)
        generations = engine.generate(prompts, limits)
        assert {x.dtype for x in jax.tree.leaves(engine._runner.cache)} == {jnp.dtype(jnp.uint16)}
        for generation, prompt in zip(generations, prompts, strict=True):
            tokens = [*prompt, *generation.ids]
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(tokens)] = tokens
            logits = np.asarray(logits_of(padded))[len(prompt) - 1 : len(tokens) - 1]
            gap = logits.max(-1) - logits[np.arange(len(logits)), list(generation.ids)]
            assert gap.max() < 1e-2  # sums in another order may round differently


@pytest.mark.exhaustive
def test_bfloat16_replies_do_not_depend_on_other_rows():
    """Rounding does not depend on other rows, on shared prefixes, or on what is in the cache already."""
    config = CONFIG.replace(dtype="bfloat16", num_attention_heads=6, num_key_value_heads=2)  # three queries per KV head
    params = llama.init_params(config, jax.random.key(1))
    rng = np.random.default_rng(2)
    beginning = rng.integers(6, 48, 24).tolist()
    prompts = [beginning + rng.integers(6, 48, rng.integers(1, 12)).tolist() for _ in range(32)]

    def replies(prompts, **settings):
        engine = make(config, **settings)
        engine.load(params)
        generations = engine.generate(prompts, [12] * len(prompts))
        assert engine.statistics.reused == len(prompts) * 24 * (len(prompts) > 1 and settings.get("share_prefixes", True))
        return generations

    first = replies(prompts)
    assert len(set(first)) > 8
    for slots in (5, 32):
        assert replies(prompts, slots=slots) == first
    assert replies(prompts, share_prefixes=False) == first
    assert replies(prompts[:1]) == first[:1]
    talk = [[*prompts[0], *first[0].ids, 9]]  # its columns come from decode steps, or from a prefill
    for keep in (True, False):
        engine = make(config, keep_conversations=keep, share_prefixes=False, chunk=4)
        engine.load(params)
        assert engine.generate(prompts[:1], [12], conversation="x") == first[:1]
        again = engine.generate(talk, [12], conversation="x")
        assert (engine.statistics.reused > 0) == keep
        assert again == replies(talk)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_earlier_requests_change_no_bit(params, attention, dtype):
    """Replies are the same in an engine that has decoded more before, and the same programs compute the shared columns."""
    config = CONFIG.replace(dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    prompts, limits = groups_of(4)
    long = [[*tokens, n] for tokens in (range(6, 40), range(40, 6, -1)) for n in range(6, 20)]
    fresh, used = make(config, attention=attention), make(config, attention=attention)
    fresh.load(params)
    used.load(params)
    used.generate(long, [9] * len(long))
    before = used._runner.shared_columns
    used.load(params)
    assert used.generate(prompts, limits) == fresh.generate(prompts, limits)
    assert used._runner.shared_columns == fresh._runner.shared_columns
    if not attention.paged:
        assert before != used._runner.shared_columns
    assert len(used._loop.prefixes.intervals) == 3
    for name, axis in (("k", 3), ("v", 2)) if attention.paged else (("k", 1), ("v", 1)):
        for a, b in zip(getattr(used._runner.shared, name), getattr(fresh._runner.shared, name), strict=True):
            for start, end in used._loop.prefixes.intervals.values():
                np.testing.assert_array_equal(*(np.take(np.asarray(x), range(start, end), axis) for x in (a, b)))


SCRIPT = """
import hashlib, jax, numpy as np
from cycleqd_jax.engine import Engine
from cycleqd_jax.models import llama
options = dict(max_position_embeddings=128, initializer_range=0.1, tie_word_embeddings=True)
config = llama.LlamaConfig(300, 128, 320, 3, 4, 2, 32, **options)
engine = Engine(config, slots=32, max_len=128, stop_ids=(1,), pad_id=0)
params = llama.init_params(config, jax.random.key(0))
engine.load(params)
rng = np.random.default_rng(0)
prompts = [rng.integers(2, 300, rng.integers(40, 64)).tolist() for _ in range(40)]
results = engine.generate(prompts, [30] * 40)
tokens = np.asarray([prompt[:40] for prompt in prompts])

@jax.jit
@jax.grad
def gradient(params):
    logits = jax.nn.log_softmax(llama.forward(params, config, tokens[:, :-1]))
    return -jax.numpy.take_along_axis(logits, tokens[:, 1:, None], -1).mean()

bits = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(gradient(params)))
print(hashlib.sha256(repr(results).encode()).hexdigest(), hashlib.sha256(bits).hexdigest())
"""


@pytest.mark.exhaustive
def test_thread_counts_change_no_bit():
    # The thread pool has as many threads as the process may use CPUs.
    def digest(cpus):
        pin = f"import os; os.sched_setaffinity(0, {cpus!r})\n"
        env = os.environ | {"XLA_FLAGS": ""}
        return subprocess.run([sys.executable, "-c", pin + SCRIPT], check=True, capture_output=True, text=True, env=env).stdout

    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    one, two = digest(cpus[:1]), digest(cpus[:2])
    assert len(one.split()) == 2
    assert one == two
