"""The engine on an NVIDIA GPU: ``JAX_PLATFORMS=cuda pytest -m gpu tests/engine/test_on_gpu.py``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention, Engine
from cycleqd_jax.engine.attention import attention_for
from cycleqd_jax.engine.cache import KVCache, Rows
from cycleqd_jax.models import llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU: set JAX_PLATFORMS=cuda"),
]

CONFIG = llama.LlamaConfig(
    512, 256, 512, 4, 8, 2, 64, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=True, dtype="bfloat16"
)
COLUMNS = 128


def attended(implementation, dtype, *, time, shared, verifies, dims, seed=0):
    """Attention of four rows to pages with random keys and values, and to shared columns."""
    rng = np.random.default_rng(seed)
    config = CONFIG.replace(dtype=dtype, num_hidden_layers=1, head_dim=dims)
    batch, heads, kv_heads = 4, config.num_attention_heads, config.num_key_value_heads

    def draw(*shape, scale=1.0):
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.bfloat16).astype(dtype)

    q = draw(batch, heads, time, dims, scale=2.0)
    k, v = draw(batch, kv_heads, time, dims), draw(batch, kv_heads, time, dims)
    cache = KVCache((draw(batch, COLUMNS, kv_heads, dims),), (draw(batch, COLUMNS, kv_heads, dims),))
    common = KVCache((draw(1, 64, kv_heads, dims),), (draw(1, 64, kv_heads, dims),)) if shared else None
    columns = jnp.asarray([0, 1, 40, 90])
    seen = jnp.asarray([[0, 64], [0, 0], [16, 48], [0, 64]]) if shared else jnp.zeros((batch, 2), int)
    ends = columns + time if verifies else None
    rows = Rows(jnp.arange(batch)[:, None], columns * 0, columns, seen, ends=ends)
    attention = Attention(implementation)
    out, filled = jax.jit(attention, static_argnums=4)(q, k, v, cache, 0, rows=rows, shared=common)
    return np.asarray(out, np.float32), filled


@pytest.mark.parametrize("dims", [64, 128])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(("time", "verifies"), [(1, False), (32, False), (8, True)], ids=["decode", "prefill", "verify"])
def test_cudnn_attention_is_as_exact_as_xla(time, verifies, shared, dims):
    setting = {"time": time, "verifies": verifies, "shared": shared, "dims": dims}
    exact, _ = attended("xla", "float32", **setting)
    plain, written = attended("xla", "bfloat16", **setting)
    fused, others = attended("cudnn", "bfloat16", **setting)
    assert np.isfinite(fused).all()
    assert np.linalg.norm(fused - exact) < 1.5 * np.linalg.norm(plain - exact)
    jax.tree.map(np.testing.assert_array_equal, written, others)


def requests(count, seed=0):
    rng = np.random.default_rng(seed)
    beginning = rng.integers(6, CONFIG.vocab_size, 40).tolist()
    prompts = [rng.integers(6, CONFIG.vocab_size, rng.integers(1, 150)).tolist() for _ in range(count)]
    return [beginning + prompt if i % 2 else prompt for i, prompt in enumerate(prompts)], rng.integers(8, 60, count).tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_replies_are_the_argmax_of_uncached_logits(dtype):
    config, single = CONFIG.replace(dtype=dtype), CONFIG.replace(dtype="float32")
    params = llama.init_params(config, jax.random.key(0))
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    forward = jax.jit(llama.forward, static_argnums=1)
    assert attention_for(config, "gpu") == Attention("cudnn" if dtype == "bfloat16" else "xla")
    engine = Engine(config, slots=16, max_len=256, stop_ids=(3, 5), pad_id=0, window=8)
    engine.load(params)
    prompts, limits = requests(40)
    replies = engine.generate(prompts, limits)

    def check(prompt, reply):
        assert reply.ids
        tokens = jnp.asarray([*prompt, *reply.ids, *[0] * (256 - len(prompt) - len(reply.ids))])[None]
        places = slice(len(prompt) - 1, len(prompt) - 1 + len(reply.ids))
        logits, rounded = (
            np.asarray(forward(tree, c, tokens)[0], np.float32)[places] for tree, c in ((exact, single), (params, config))
        )
        gaps = logits.max(-1) - logits[np.arange(len(reply.ids)), list(reply.ids)]
        assert gaps.max() <= max(3 * np.abs(logits - rounded).max(), 1e-3)

    for prompt, reply in zip(prompts, replies, strict=True):
        check(prompt, reply)
    engine.load(params)  # clears every cache
    numbers = [
        engine.submit(prompt, limit, drafts=[reply.ids]) for prompt, limit, reply in zip(prompts, limits, replies, strict=True)
    ]
    again = {}
    while engine.busy:
        again |= dict(engine.advance())
    for prompt, number in zip(prompts, numbers, strict=True):
        check(prompt, again[number])
    equal = sum(reply == again[number] for number, reply in zip(numbers, replies, strict=True))
    assert engine.statistics.accepted
    # A window is summed in another order than single tokens, which decides near ties.
    assert equal >= (len(replies) - 2 if dtype == "float32" else len(replies) // 2)
