"""Loading weights: no trace of the old ones, nothing compiled again, no memory lost."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, NonFiniteError

from .small_model import CONFIG, converse, groups_of, make, slow_with_xla


@pytest.mark.exhaustive
def test_loading_weights_clears_every_cache(params, attention):
    prompts, limits = groups_of(5)
    other = llama.init_params(CONFIG, jax.random.key(2))
    engine, fresh = make(attention=attention), make(attention=attention)
    fresh.load(other)
    wanted = fresh.generate(prompts, limits)
    engine.load(params)
    first = engine.generate(prompts, limits)
    assert first != wanted
    engine.generate([prompts[0]], [3], conversation="kept")
    engine.submit(prompts[0], 20)  # waits, and is dropped
    engine.load(other)
    assert not engine.busy
    reused = engine.statistics.reused
    assert engine.generate([prompts[0]], [limits[0]], conversation="kept") == wanted[:1]
    assert engine.statistics.reused == reused
    engine.release("kept")
    assert engine.generate(prompts, limits) == wanted
    engine.load(params)
    assert engine.generate(prompts, limits) == first


@pytest.mark.exhaustive
@slow_with_xla
def test_nothing_is_compiled_after_the_warm_up(attention, compilations):
    engine = make(attention=attention, slots=9, max_len=64, chunk=32)
    children = [llama.init_params(CONFIG, jax.random.key(n)) for n in range(20)]
    broken = children[0] | {"norm": children[0]["norm"] * jnp.nan}
    rng = np.random.default_rng(0)

    def workload(*groups):
        """Prompts in groups: for each its size and the length of the common prefix."""
        prompts = []
        for count, length in groups:
            beginning = rng.integers(6, 48, length).tolist()
            prompts += [beginning + rng.integers(6, 48, rng.integers(1, 40 - length)).tolist() for _ in range(count)]
        return prompts

    workloads = [workload((1, 0)), workload((9, 0)), workload((30, 20)), workload((5, 20), (8, 30)), workload((2, 17), (20, 3))]
    engine.load(broken)
    with pytest.raises(NonFiniteError):  # compiles the search for the broken weight
        engine.generate(workloads[0], [1])
    engine.load(children[0])
    engine.warm_up(shared=2 * engine.layout.aligned(30))

    def again():
        for n, child in enumerate(children):
            engine.load(child)
            for i in rng.permutation(len(workloads)):
                engine.generate(workloads[i], rng.integers(1, 64, len(workloads[i])).tolist())
            converse(engine, 3, rng, count=n + 1)
            if n == 9:
                engine.load(broken)
                with pytest.raises(NonFiniteError, match="weight norm"):
                    engine.generate(workloads[2], [20] * 30)

    pages = engine._runner.pages
    assert compilations(again) == 0
    assert engine._runner.pages == pages == engine.layout.pages


@pytest.mark.exhaustive
@slow_with_xla
def test_memory_is_constant(params, attention, few_programs):
    engine = make(attention=attention)
    prompts, _ = groups_of()
    other = jax.tree.map(lambda x: x + 0, params)

    def live():
        gc.collect()
        arrays = jax.live_arrays()
        return len(arrays), sum(x.nbytes for x in arrays)

    seen = set()
    for n in range(200):
        engine.load((params, other)[n % 2])
        engine.generate(prompts, [3] * len(prompts))
        engine.generate(prompts[:1], [3], conversation="x")  # kept, and never released
        if n >= 5:
            seen.add(live() if n % 20 == 5 else None)
    assert len(seen - {None}) == 1


def test_donated_weights_are_deleted(params, attention, expected):
    prompts, limits, wanted = expected[0]
    engine = make(attention=attention)
    for _ in range(2):
        given = jax.tree.map(jnp.copy, params)
        engine.load(given, donate=True)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given["layers"]))
        assert engine.generate(prompts, limits) == wanted


@pytest.mark.exhaustive
@slow_with_xla
def test_donated_weights_are_never_in_memory_twice(attention, monkeypatch):
    """Except for the stack that is being split into layers."""
    config = CONFIG.replace(num_hidden_layers=8, tie_word_embeddings=False)
    engine = make(config, attention=attention)
    given = llama.init_params(config, jax.random.key(0))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(given["layers"]))
    wait, seen = jax.block_until_ready, []

    def in_memory():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    def watched(parts):  # called when a stack and its parts are both in memory
        wait(parts)
        seen.append(in_memory() - before)

    monkeypatch.setattr(jax, "block_until_ready", watched)
    before = in_memory()
    engine.load(given, donate=True)
    assert len(seen) == len(jax.tree.leaves(given["layers"]))
    assert max(seen) == largest
    assert in_memory() - before < 10_000  # sines and cosines


def test_weights_of_another_model_are_refused(params):
    fresh = make()
    for early in (lambda: fresh.generate([[1]], [1]), fresh.warm_up):
        with pytest.raises(RuntimeError, match="load"):
            early()
    with pytest.raises(InputError, match=r"'norm'.*\[31\]|\[32\].*'norm'"):
        fresh.load(params | {"norm": params["norm"][:-1]})
    with pytest.raises(InputError, match="'lm_head', got"):
        fresh.load(params | {"lm_head": params["embed_tokens"].T})
    with pytest.raises(InputError, match=r"float32.*bfloat16"):
        fresh.load(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
