"""Pages, shared columns, and attention over both."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention
from cycleqd_jax.engine.cache import Rows

from .small_model import CONFIG, make, plain_loop


@pytest.mark.exhaustive
def test_the_pool_grows_and_idle_conversations_are_evicted(params, few_programs):
    engine = make(attention=Attention("products"), slots=40, chunk=4, max_len=48)
    engine.load(params)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(6, 48, rng.integers(20, 38)).tolist() for _ in range(120)]
    for n, prompt in enumerate(prompts):
        engine.submit(prompt, 8, conversation=n)
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    assert engine._runner.pages == engine.layout.pages > 64
    for n in range(0, 120, 5):
        assert done[n] == plain_loop(params, prompts[n], 8)
    reused = engine.statistics.reused
    turns = [prompts[n] + list(done[n].ids) + [9] for n in (119, 0)]
    for name, turn in zip((119, 0), turns, strict=True):
        assert engine.generate([turn], [3], conversation=name) == [plain_loop(params, turn, 3)]
    assert engine.statistics.reused > reused  # the pages of the last one are still in the cache


@pytest.mark.exhaustive
def test_a_reply_that_ends_with_a_page_keeps_the_pages_before(params):
    engine = make(attention=Attention("products"), chunk=12, steps=4)
    engine.load(params)
    rng = np.random.default_rng(3)
    for trial in range(6):
        prompt = rng.integers(6, 48, 22).tolist()
        number = engine.submit(prompt, 3, conversation=trial)  # 24 columns; ends before the next host sync
        engine.submit(rng.integers(6, 48, 5).tolist(), 20)
        done = {}
        while engine.busy:
            done |= dict(engine.advance())
        turn = [*prompt, *done[number].ids, 9, 8]
        reused = engine.statistics.reused
        assert engine.generate([turn], [6], conversation=trial) == [plain_loop(params, turn, 6)]
        if done[number].finish == "length":
            assert engine.statistics.reused == reused + 24


@pytest.mark.exhaustive
def test_a_long_prefix_is_shared_beside_a_short_one(params, few_programs):
    engine = make(chunk=4)
    engine.load(params)
    rng = np.random.default_rng(4)
    header, more = rng.integers(6, 48, 9).tolist(), rng.integers(6, 48, 20).tolist()
    short = [header + rng.integers(6, 48, 5).tolist() for _ in range(5)]
    long = [header + more + rng.integers(6, 48, 5).tolist() for _ in range(5)]
    few = [header + more[:11:-1] + [n] for n in (7, 8)]  # a prefix of their own would cost more than it saves
    for prompts, saved in ((short, 5 * 9), (few, 2 * 9), (long, 5 * 29)):
        reused = engine.statistics.reused
        assert engine.generate(prompts, [4] * len(prompts)) == [plain_loop(params, prompt, 4) for prompt in prompts]
        assert engine.statistics.reused == reused + saved


@pytest.mark.exhaustive
def test_pages_of_active_slots_are_compacted(params, few_programs):
    engine = make(attention=Attention("products"), slots=64, chunk=2, max_len=48, steps=2)
    engine.load(params)
    rng = np.random.default_rng(9)
    prompts = [rng.integers(6, 48, 20).tolist() for _ in range(64)]
    for n, prompt in enumerate(prompts):  # most become idle and keep their pages; a few go on, the last among them
        engine.submit(prompt, 24 if n % 9 == 0 else 2, conversation=n)
    done, spread = {}, []
    while engine.busy:
        done |= dict(engine.advance())
        spread.append(max((page for slot in engine._loop.scheduler.slots if slot.request for page in slot.pages), default=0))
    assert max(spread) > 600
    assert min(spread[:-1]) < 200
    held = [page for slot in engine._loop.scheduler.slots for page in slot.pages] + engine._loop.pool.free
    assert sorted(held) == list(range(1, engine._runner.pages))
    for n in range(0, 64, 3):
        assert done[n] == plain_loop(params, prompts[n], 24 if n % 9 == 0 else 2)
        if done[n].finish == "length":  # idle conversations still have their pages
            turn = [*prompts[n], *done[n].ids, 9]
            reused = engine.statistics.reused
            assert engine.generate([turn], [3], conversation=n) == [plain_loop(params, turn, 3)]
            assert engine.statistics.reused >= reused + 20


def test_shared_columns_in_bfloat16_are_as_exact_as_own_columns():
    rng = np.random.default_rng(0)
    attention = Attention("xla")
    attend = jax.jit(attention, static_argnums=4)

    def draw(*shape, scale=1.0):
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.bfloat16)

    q, k, v = draw(3, 4, 1, 8, scale=4.0), draw(3, 2, 1, 8), draw(3, 2, 1, 8)
    whole_k, whole_v = draw(1, 24, 2, 8), draw(1, 24, 2, 8)

    def run(shared, dtype=jnp.bfloat16):
        cache = attention.init(CONFIG.replace(dtype=jnp.dtype(dtype).name, num_hidden_layers=1), 3, 32)
        own = 24 - shared
        fill = [x[0].at[:, :own].set(w[:, shared:].astype(dtype)) for x, w in zip(cache, (whole_k, whole_v), strict=True)]
        cache = type(cache)(*((x,) for x in fill))
        common = type(cache)((whole_k,), (whole_v,)) if shared else None
        rows = Rows(jnp.arange(3)[:, None], jnp.zeros(3, int), jnp.full(3, own), jnp.tile(jnp.array([[0, shared]]), (3, 1)))
        new = (x.astype(dtype) for x in (q, k, v))
        return np.asarray(attend(*new, cache, 0, rows=rows, shared=common)[0], np.float32)

    exact = run(0, jnp.float32)
    plain = np.linalg.norm(run(0) - exact)
    for shared in (8, 16):
        assert np.linalg.norm(run(shared) - exact) < 1.5 * plain


def test_the_private_function_of_cudnn_attention_has_its_signature():
    """The call itself needs a GPU."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    names = list(inspect.signature(dot_product_attention).parameters)
    assert names[:7] == ["query", "key", "value", "bias", "mask", "q_seqlen", "kv_seqlen"]
    assert {"scale", "mask_type", "return_residual"} <= set(names)
    assert MaskType.PADDING
