from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Engine, NonFiniteError, default_buckets
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError

CONFIG = llama.LlamaConfig(48, 32, 64, 2, 4, 2, 8, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=True)
STOPS = (3, 5)


@pytest.fixture(scope="module")
def params():
    return llama.init_params(CONFIG, jax.random.key(1))


@pytest.fixture(scope="module")
def engine(params):
    engine = Engine(CONFIG, slots=4, max_len=40, stop_ids=STOPS, pad_id=0, buckets=(8, 16, 40))
    engine.load(params)
    return engine


def requests_of(n, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, CONFIG.vocab_size, rng.integers(1, 30)).tolist() for _ in range(n)]
    return prompts, rng.integers(1, 25, n).tolist()


@jax.jit
def forward(params, tokens):
    return llama.forward(params, CONFIG, tokens)[0]


def plain_loop(params, prompt, limit, max_len):
    """Greedy decoding without cache and batch."""
    ids = list(prompt)
    while True:
        padded = np.zeros((1, 64), np.int32)  # one shape; what follows the end is not seen
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(forward(params, padded)[len(ids) - 1])))
        if ids[-1] in STOPS:
            return tuple(ids[len(prompt) :]), "stop"
        if len(ids) - len(prompt) == limit or len(ids) == max_len:
            return tuple(ids[len(prompt) :]), "length"


def test_equals_an_unbatched_uncached_loop(engine, params):
    prompts, limits = requests_of(11)
    results = engine.generate(prompts, limits)
    for prompt, limit, result in zip(prompts, limits, results, strict=True):
        assert result == plain_loop(params, prompt, limit, engine.max_len)
    assert {result.finish for result in results} == {"stop", "length"}
    assert len({result.ids for result in results}) > 5


def test_neighbours_order_and_number_change_nothing(engine):
    prompts, limits = requests_of(13)
    results = engine.generate(prompts, limits)
    order = np.random.default_rng(1).permutation(len(prompts))
    shuffled = engine.generate([prompts[i] for i in order], [limits[i] for i in order])
    assert shuffled == [results[i] for i in order]
    for i in range(len(prompts)):
        assert engine.generate([prompts[i]], [limits[i]]) == [results[i]]


def test_logits_of_a_row_are_the_same_bits_in_any_slot(params):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (16, 24)).astype(np.int32)
    lengths = rng.integers(1, 25, 16)

    @jax.jit
    def run(tokens, lengths):
        cache = llama.init_cache(CONFIG, 16, 24)
        first, cache = llama.forward(params, CONFIG, tokens, cache=cache, lengths=lengths)
        second = llama.forward(
            params, CONFIG, tokens[:, :1], lengths[:, None], llama.extend_cache(cache, 8), lengths=jnp.ones_like(lengths)
        )
        return first, second

    first, second = run(tokens, lengths)
    order = rng.permutation(16)
    first_moved, second_moved = run(tokens[order], lengths[order])
    for row, length in enumerate(lengths[order]):
        np.testing.assert_array_equal(first_moved[row, :length], first[order[row], :length])
    np.testing.assert_array_equal(second_moved, second[order])


def test_limits_and_the_end_of_the_cache(engine, params):
    prompt = requests_of(1)[0][0]
    long = (prompt * 40)[:39]
    (cut,) = engine.generate([long], [20])
    assert len(cut.ids) == 1
    assert cut == plain_loop(params, long, 20, engine.max_len)
    refused, fine = engine.generate([(prompt * 41)[:40], prompt], [5, 5])
    assert refused == ((), "refused")
    assert len(fine.ids) >= 1
    assert engine.generate([], []) == []


def test_nothing_is_compiled_twice(params, compilations):
    engine = Engine(CONFIG, slots=4, max_len=40, stop_ids=STOPS, pad_id=0, buckets=(8, 16, 40))
    engine.load(params)
    prompts, limits = [[1] * 5, [1] * 12, [1] * 30], [4, 4, 4]
    first = engine.generate(prompts, limits)
    assert engine.compilations == 3  # one for each prompt bucket
    other = llama.init_params(CONFIG, jax.random.key(2))

    def again():
        engine.load(other)
        return [list(result.ids) for result in engine.generate([*prompts, [2] * 7, [2] * 29], [*limits, 1, 8])]

    assert compilations(again) == 0
    assert engine.compilations == 3
    engine.load(params)
    assert engine.generate(prompts, limits) == first


@pytest.mark.parametrize("leaf", ["embed_tokens", "norm"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_logits_that_are_not_finite(params, leaf, value):
    engine = Engine(CONFIG, slots=2, max_len=40, stop_ids=STOPS, pad_id=0)
    engine.load(params | {leaf: params[leaf].at[..., 4].set(value)})
    with pytest.raises(NonFiniteError):
        engine.generate([[1, 2]], [4])
    engine.load(params)
    assert len(engine.generate([[1, 2]], [4])) == 1


def test_empty_slots_do_not_count_as_broken(params):
    # The pad token alone has an infinite embedding: it fills the empty slots and follows the prompts, and nobody looks at it.
    config = CONFIG.replace(tie_word_embeddings=False)
    untied = llama.init_params(config, jax.random.key(1))
    engine = Engine(config, slots=4, max_len=40, stop_ids=STOPS, pad_id=0)
    engine.load(untied)
    want = engine.generate([[1, 2]], [6])
    engine.load(untied | {"embed_tokens": untied["embed_tokens"].at[0].set(1e30)})
    assert engine.generate([[1, 2]], [6]) == want


def test_default_buckets():
    assert default_buckets(512) == (32, 64, 96, 128, 192, 256, 384, 512)
    assert default_buckets(300) == (32, 64, 96, 128, 192, 256, 300)
    assert default_buckets(20) == (20,)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slots": 0}, "0 slots"),
        ({"max_len": 65}, "64 positions.*max_len 65"),
        ({"stop_ids": ()}, "stop ids"),
        ({"stop_ids": (48,)}, r"vocabulary size 48.*\[48\]"),
        ({"pad_id": -1}, "pad id -1"),
        ({"buckets": (8, 16)}, r"max_len 40.*\[8, 16\]"),
    ],
)
def test_settings_that_can_not_be(changes, named):
    settings = {"slots": 4, "max_len": 40, "stop_ids": STOPS, "pad_id": 0}
    with pytest.raises(InputError, match=named):
        Engine(CONFIG, **(settings | changes))


def test_requests_that_can_not_be(engine):
    for prompts, limits, named in (
        ([[]], [3], "request 0.*0 tokens"),
        ([[1], [2]], [3, 0], "request 1.*limit 0"),
        ([[1, 48]], [3], "below 48.*1 to 48"),
        ([[1]], [3, 4], "each of 1 prompts, got 2"),
    ):
        with pytest.raises(InputError, match=named):
            engine.generate(prompts, limits)


def test_weights_of_another_model_are_refused(engine, params):
    fresh = Engine(CONFIG, slots=4, max_len=40, stop_ids=STOPS, pad_id=0)
    with pytest.raises(RuntimeError, match="load"):
        fresh.generate([[1]], [1])
    with pytest.raises(InputError, match=r"'norm'.*\[31\]|\[32\].*'norm'"):
        fresh.load(params | {"norm": params["norm"][:-1]})
    with pytest.raises(InputError, match="'lm_head', got"):
        fresh.load(params | {"lm_head": params["embed_tokens"].T})
    with pytest.raises(InputError, match=r"float32.*bfloat16"):
        fresh.load(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))


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


def test_thread_counts_change_nothing():
    # The pool of threads is as wide as the CPUs the process may use.
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
