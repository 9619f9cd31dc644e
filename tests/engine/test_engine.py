from __future__ import annotations

import functools
import gc
import inspect
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.engine import Attention, Engine, programs
from cycleqd_jax.engine.cache import Rows
from cycleqd_jax.engine.engine import PATIENCE
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, MixedMatrix, NonFiniteError

CONFIG = llama.LlamaConfig(48, 32, 64, 2, 4, 2, 8, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=True)
STOPS = (3, 5)
ATTENTIONS = [Attention("products"), Attention("xla")]  # that of CPUs, and what GPUs run


def make(config=CONFIG, **changes):
    settings = {"slots": 4, "max_len": 48, "stop_ids": STOPS, "pad_id": 0, "chunk": 12, "steps": 4}
    return Engine(config, **(settings | changes))


@pytest.fixture(scope="module")
def params():
    return llama.init_params(CONFIG, jax.random.key(1))


@pytest.fixture(scope="module", params=ATTENTIONS, ids=lambda attention: attention.implementation)
def attention(request):
    return request.param


@pytest.fixture(scope="module")
def engine(params, attention):
    engine = make(attention=attention)
    engine.load(params)
    return engine


def requests_of(n, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest)).tolist() for _ in range(n)]
    return prompts, rng.integers(1, 25, n).tolist()


def groups_of(seed=0):
    """Prompts of which some begin alike: three ways to begin, and none."""
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
        padded = np.zeros((1, 64), np.int32)  # one shape; what follows the end is not seen
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(forward(params, padded, config)[len(ids) - 1])))
        if ids[-1] in STOPS:
            return tuple(ids[len(prompt) :]), "stop", 0
        if len(ids) - len(prompt) == limit or len(ids) == max_len:
            return tuple(ids[len(prompt) :]), "length", 0


@pytest.fixture(scope="module")
def expected(params):
    requests = [requests_of(9), groups_of()]
    return [(*r, [plain_loop(params, prompt, limit) for prompt, limit in zip(*r, strict=True)]) for r in requests]


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
        {"slots": 1, "chunk": 6, "steps": 3},
        {"slots": 40, "steps": 64, "chunk": 48, "share_prefixes": False},
    ],
    ids=str,
)
def test_no_setting_changes_what_is_said(params, attention, expected, settings):
    engine = make(attention=attention, **settings)
    engine.load(params)
    for prompts, limits, wanted in expected:
        assert engine.generate(prompts, limits) == wanted
        order = np.random.default_rng(1).permutation(len(prompts))
        assert engine.generate([prompts[i] for i in order], [limits[i] for i in order]) == [wanted[i] for i in order]


def test_neighbours_change_nothing(engine, expected):
    for prompts, limits, wanted in expected:
        for i in range(0, len(prompts), 4):
            assert engine.generate([prompts[i]], [limits[i]]) == [wanted[i]]


def converse(engine, turns, rng, *, edits=False, count=3):
    """Every conversation speaks again when all have been answered; checks each reply against ``wanted``."""
    talks = [rng.integers(0, CONFIG.vocab_size, rng.integers(3, 9)).tolist() for _ in range(count)]
    said = []
    for turn in range(turns):
        if edits and turn:
            for talk in talks:
                talk[1] = (talk[1] + 1) % CONFIG.vocab_size
        numbers = {engine.submit(talk, 5, conversation=name): name for name, talk in enumerate(talks)}
        while numbers:
            for number, generation in engine.advance():
                name = numbers.pop(number)
                said.append((tuple(talks[name]), generation))
                talks[name] += [*generation.ids, *rng.integers(0, CONFIG.vocab_size, 3).tolist()]
    assert not engine.busy
    for name in range(count):
        engine.release(name)
    return said


@pytest.mark.parametrize("count", [3, 9])  # as many as slots at most, and more
@pytest.mark.parametrize("edits", [False, True])
def test_conversations(engine, params, count, edits):
    before = engine.statistics.reused
    said = converse(engine, 4, np.random.default_rng(2), edits=edits, count=count)
    assert len(said) == 4 * count
    for prompt, generation in said:
        assert generation == plain_loop(params, prompt, 5)
    if count == 3 and not edits:
        prompts = sum(len(prompt) for prompt, _ in said)
        # All but what is new, of the pool whole pages only.
        assert engine.statistics.reused - before > (0.15 if engine.attention.paged else 0.5) * prompts
    if edits and engine.attention.paged:
        assert engine.statistics.reused == before  # the first page is another


def test_a_conversation_that_is_released_is_forgotten(engine):
    def reused(release):
        before = engine.statistics.reused
        for _ in range(2):
            engine.generate([list(range(6, 40))], [3], conversation="x")
            if release:
                engine.release("x")
        engine.release("x")
        return engine.statistics.reused - before

    assert reused(release=False) >= 24
    assert reused(release=True) == 0


def test_first_come_first_served(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    begun = []
    for n in range(9):  # conversations that nobody releases: their slots must not be kept for ever
        engine.submit([n + 6] * (n + 1), 4, conversation=n, tell=lambda ids, n=n: n in begun or begun.append(n))
    done = []
    for _ in range(200):
        done += [number for number, _ in engine.advance()]
    assert begun == list(range(9))
    assert sorted(done) == list(range(9))
    assert not engine.busy


def test_conversations_that_have_begun_go_first(params, attention):
    engine = make(attention=attention, slots=1)
    engine.load(params)
    order = []

    def ask(prompt, **options):
        engine.submit(prompt, 2, tell=lambda ids: order.append(options.get("conversation")), **options)

    ask([7], conversation="begun")
    while engine.busy:
        engine.advance()
    order.clear()
    ask([8])
    ask([9], conversation="new")
    ask([7, 8, 9], conversation="begun")
    while engine.busy:
        engine.advance()
    assert list(dict.fromkeys(order)) == ["begun", None, "new"]


def test_nobody_waits_for_ever(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    talks = {n: [n + 6] for n in range(4)}  # they never stop
    names = {engine.submit(talk, 2, conversation=n): n for n, talk in talks.items()}
    for _ in range(2):
        for number, _ in engine.advance():
            names[engine.submit([7], 2, conversation=names[number])] = names[number]
    waiting = {engine.submit([9], 2), engine.submit([9], 2, conversation="late")}
    for _ in range(3 * PATIENCE):
        for number, _ in engine.advance():
            if number in names:
                names[engine.submit([7], 2, conversation=names[number])] = names[number]
            waiting.discard(number)
    assert not waiting


def test_others_speak_while_conversations_are_silent(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    first = [engine.submit([n + 6] * 9, 4, conversation=n) for n in range(2)]
    single = [engine.submit([9], 4) for _ in range(2)]
    looks = []
    for _ in range(3):
        looks.append({number for number, _ in engine.advance()})
    assert looks[0] >= set(first)
    assert looks[1] >= set(single)  # the two conversations were not released, and said nothing


def test_what_is_released_while_it_speaks_is_dropped(engine, expected):
    prompts, limits, wanted = expected[0]
    engine.generate(prompts[:1], [1])
    decoded = engine.statistics.decoded
    gone = [engine.submit([7] * 5, 24, conversation=("gone", n)) for n in range(9)]  # more than there are slots
    engine.advance()
    for n in range(9):
        engine.release(("gone", n))
    done = dict(engine.advance())  # replies that were complete may still be told
    assert not engine.busy
    assert set(done) <= set(gone)
    assert engine.statistics.decoded <= decoded + 4 * 4
    assert engine.generate(prompts, limits) == wanted


def test_the_pool_grows_and_silent_conversations_give_their_pages(params):
    engine = make(attention=Attention("products"), slots=40, chunk=4, max_len=48)
    engine.load(params)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(6, 48, rng.integers(20, 38)).tolist() for _ in range(120)]
    for n, prompt in enumerate(prompts):
        engine.submit(prompt, 8, conversation=n)
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    assert engine.attention.shape(engine._cache)[0] == engine._most_pages > 64
    for n in range(0, 120, 5):
        assert done[n] == plain_loop(params, prompts[n], 8)
    reused = engine.statistics.reused
    turns = [prompts[n] + list(done[n].ids) + [9] for n in (119, 0)]
    for name, turn in zip((119, 0), turns, strict=True):
        assert engine.generate([turn], [3], conversation=name) == [plain_loop(params, turn, 3)]
    assert engine.statistics.reused > reused  # the last one's pages are there


def test_a_reply_that_ends_with_a_page_leaves_what_is_before(params):
    engine = make(attention=Attention("products"), chunk=12, steps=4)
    engine.load(params)
    rng = np.random.default_rng(3)
    for trial in range(6):
        prompt = rng.integers(6, 48, 22).tolist()
        number = engine.submit(prompt, 3, conversation=trial)  # 24 columns, and ends before the others look up
        engine.submit(rng.integers(6, 48, 5).tolist(), 20)
        done = {}
        while engine.busy:
            done |= dict(engine.advance())
        turn = [*prompt, *done[number].ids, 9, 8]
        reused = engine.statistics.reused
        assert engine.generate([turn], [6], conversation=trial) == [plain_loop(params, turn, 6)]
        if done[number].finish == "length":
            assert engine.statistics.reused == reused + 24


def test_a_long_prefix_is_shared_beside_a_short_one(params):
    engine = make(chunk=4)
    engine.load(params)
    rng = np.random.default_rng(4)
    header, more = rng.integers(6, 48, 9).tolist(), rng.integers(6, 48, 20).tolist()
    short = [header + rng.integers(6, 48, 5).tolist() for _ in range(5)]
    long = [header + more + rng.integers(6, 48, 5).tolist() for _ in range(5)]
    few = [header + more[:11:-1] + [n] for n in (7, 8)]  # computing theirs too would cost more than it saves
    for prompts, saved in ((short, 5 * 9), (few, 2 * 9), (long, 5 * 29)):
        reused = engine.statistics.reused
        assert engine.generate(prompts, [4] * len(prompts)) == [plain_loop(params, prompt, 4) for prompt in prompts]
        assert engine.statistics.reused == reused + saved


def test_pages_of_those_who_speak_are_brought_together(params):
    engine = make(attention=Attention("products"), slots=64, chunk=2, max_len=48, steps=2)
    engine.load(params)
    rng = np.random.default_rng(9)
    prompts = [rng.integers(6, 48, 20).tolist() for _ in range(64)]
    for n, prompt in enumerate(prompts):  # a few speak on, the last among them, while most are silent, and keep their pages
        engine.submit(prompt, 24 if n % 9 == 0 else 2, conversation=n)
    done, spread = {}, []
    while engine.busy:
        done |= dict(engine.advance())
        spread.append(max((page for slot in engine._places if slot.request for page in slot.pages), default=0))
    assert max(spread) > 600
    assert min(spread[:-1]) < 200
    held = [page for slot in engine._places for page in slot.pages] + engine._free
    assert sorted(held) == list(range(1, engine.attention.shape(engine._cache)[0]))
    for n in range(0, 64, 3):
        assert done[n] == plain_loop(params, prompts[n], 24 if n % 9 == 0 else 2)
        if done[n].finish == "length":  # what silent ones have kept is still theirs
            turn = [*prompts[n], *done[n].ids, 9]
            reused = engine.statistics.reused
            assert engine.generate([turn], [3], conversation=n) == [plain_loop(params, turn, 3)]
            assert engine.statistics.reused >= reused + 20


def test_bfloat16_on_a_cpu(params):
    """Products of bfloat16 numbers (queries, keys, values and weights of attention too), everything else in float32."""
    config = CONFIG.replace(dtype="bfloat16")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    prompts, limits = groups_of(8)

    def rounded(x):
        return x.astype(jnp.bfloat16).astype(jnp.float32)

    def attend(q, k, v, cache, _):
        batch, _, time, dims = q.shape
        grouped = rounded(q).reshape(batch, k.shape[1], -1, time, dims)
        scores = jnp.einsum("bkgtd,bkcd->bkgtc", grouped, rounded(k), precision="highest") * (dims**-0.5 / np.log(2))
        scores = jnp.where(jnp.tri(time, dtype=bool), scores, -jnp.inf)
        weights = jnp.exp2(scores - jnp.ceil(scores.max(-1, keepdims=True)))
        out = jnp.einsum("bkgtc,bkcd->bkgtd", rounded(weights), rounded(v), precision="highest")
        return (out / weights.sum(-1, keepdims=True)).reshape(q.shape), cache

    @jax.jit
    def logits_of(tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        wide = config.replace(compute_dtype="float32")
        hidden, _ = llama.decoder(narrow, wide, tokens, positions, attend, None)
        return llama.unembed(narrow, wide, hidden)[0]

    for settings in ({}, {"slots": 9, "chunk": 8, "share_prefixes": False}):
        engine = make(config, **settings)
        engine.load(narrow)
        said = engine.generate(prompts, limits)
        assert {x.dtype for x in jax.tree.leaves(engine._cache)} == {jnp.dtype(jnp.uint16)}
        for generation, prompt in zip(said, prompts, strict=True):
            tokens = [*prompt, *generation.ids]
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(tokens)] = tokens
            logits = np.asarray(logits_of(padded))[len(prompt) - 1 : len(tokens) - 1]
            gap = logits.max(-1) - logits[np.arange(len(logits)), list(generation.ids)]
            assert gap.max() < 1e-2  # rounding may go the other way where sums are in another order


def test_bfloat16_neighbours_decide_nothing():
    """What is rounded does not depend on who else is decoded, nor on what begins alike or is in the cache already."""
    config = CONFIG.replace(dtype="bfloat16", num_attention_heads=6, num_key_value_heads=2)  # three queries to a page
    params = llama.init_params(config, jax.random.key(1))
    rng = np.random.default_rng(2)
    beginning = rng.integers(6, 48, 24).tolist()
    prompts = [beginning + rng.integers(6, 48, rng.integers(1, 12)).tolist() for _ in range(32)]

    def say(prompts, **settings):
        engine = make(config, **settings)
        engine.load(params)
        said = engine.generate(prompts, [12] * len(prompts))
        assert engine.statistics.reused == len(prompts) * 24 * (len(prompts) > 1 and settings.get("share_prefixes", True))
        return said

    first = say(prompts)
    assert len(set(first)) > 8
    for slots in (5, 32):
        assert say(prompts, slots=slots) == first
    assert say(prompts, share_prefixes=False) == first
    assert say(prompts[:1]) == first[:1]
    talk = [[*prompts[0], *first[0].ids, 9]]  # its columns were decoded, or are prefilled
    for keep in (True, False):
        engine = make(config, keep_conversations=keep, share_prefixes=False, chunk=4)
        engine.load(params)
        assert engine.generate(prompts[:1], [12], conversation="x") == first[:1]
        again = engine.generate(talk, [12], conversation="x")
        assert (engine.statistics.reused > 0) == keep
        assert again == say(talk)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_others_said_before_changes_no_bit(params, attention, dtype):
    """A child says the same in an engine that has played more before, and the same programs compute what is shared."""
    config = CONFIG.replace(dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    prompts, limits = groups_of(4)
    long = [[*tokens, n] for tokens in (range(6, 40), range(40, 6, -1)) for n in range(6, 20)]
    fresh, used = make(config, attention=attention), make(config, attention=attention)
    fresh.load(params)
    used.load(params)
    used.generate(long, [9] * len(long))
    before = used.attention.shape(used._shared)
    used.load(params)
    assert used.generate(prompts, limits) == fresh.generate(prompts, limits)
    assert used.attention.shape(used._shared) == fresh.attention.shape(fresh._shared)
    if not attention.paged:
        assert before != used.attention.shape(used._shared)
    assert len(used._prefixes) == 3
    for name, axis in (("k", 3), ("v", 2)) if attention.paged else (("k", 1), ("v", 1)):
        for a, b in zip(getattr(used._shared, name), getattr(fresh._shared, name), strict=True):
            for start, end in used._prefixes.values():
                np.testing.assert_array_equal(*(np.take(np.asarray(x), range(start, end), axis) for x in (a, b)))


def test_shared_columns_are_weighed_exactly_in_bfloat16():
    rng = np.random.default_rng(0)
    attention = Attention("xla")

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
        return np.asarray(attention(*new, cache, 0, rows=rows, shared=common)[0], np.float32)

    exact = run(0, jnp.float32)
    plain = np.linalg.norm(run(0) - exact)
    for shared in (8, 16):
        assert np.linalg.norm(run(shared) - exact) < 1.5 * plain


def test_nothing_survives_a_swap(params, attention):
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


def test_nothing_is_compiled_after_the_warm_up(attention, compilations):
    engine = make(attention=attention, slots=9, max_len=64, chunk=32)
    children = [llama.init_params(CONFIG, jax.random.key(n)) for n in range(20)]
    broken = children[0] | {"norm": children[0]["norm"] * jnp.nan}
    rng = np.random.default_rng(0)

    def workload(*groups):
        """Prompts that begin alike, in groups of so many with so many tokens in common."""
        prompts = []
        for count, length in groups:
            beginning = rng.integers(6, 48, length).tolist()
            prompts += [beginning + rng.integers(6, 48, rng.integers(1, 40 - length)).tolist() for _ in range(count)]
        return prompts

    workloads = [workload((1, 0)), workload((9, 0)), workload((30, 20)), workload((5, 20), (8, 30)), workload((2, 17), (20, 3))]
    engine.load(broken)
    with pytest.raises(NonFiniteError):  # what names the weight is compiled with the first
        engine.generate(workloads[0], [1])
    engine.load(children[0])
    engine.warm_up(shared=2 * engine._aligned(30))

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

    pages = engine.attention.shape(engine._cache)[0]
    assert compilations(again) == 0
    assert engine.attention.shape(engine._cache)[0] == pages == engine._most_pages


def test_memory_is_constant(params, attention):
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


def test_limits_and_the_end_of_the_cache(engine, params):
    prompt = requests_of(1)[0][0]
    long = (prompt * 47)[:47]
    (cut,) = engine.generate([long], [20])
    assert len(cut.ids) == 1
    assert cut == plain_loop(params, long, 20)
    for length in range(38, 47):  # every place where a page, a chunk or a step may end
        assert engine.generate([long[:length]], [99]) == [plain_loop(params, long[:length], 99)]
    refused, fine = engine.generate([(prompt * 48)[:48], prompt], [5, 5])
    assert refused == ((), "refused", 0)
    assert len(fine.ids) >= 1
    assert engine.generate([], []) == []
    assert engine.advance() == []


@pytest.mark.parametrize(
    ("length", "limit", "dropped"),
    [(70, 9, 70 + 9 - 48), (47, 9, 47 + 9 - 48), (20, 24, 0), (25, 24, 1)]
    + [(length, limit, max(length - 24, 0)) for length in (20, 30, 70) for limit in (25, 47, 48, 99)],  # half is the reply's
)
def test_long_prompts_lose_their_beginning_if_they_may(params, attention, length, limit, dropped):
    engine = make(attention=attention, overflow="truncate")
    engine.load(params)
    prompt = np.random.default_rng(3).integers(6, 48, length).tolist()
    (cut,) = engine.generate([prompt], [limit])
    assert cut == (*plain_loop(params, prompt[dropped:], limit)[:2], dropped)


def test_replies_end_where_they_are_told_to(engine, expected):
    prompts, _, _ = expected[0]
    (whole,) = engine.generate([prompts[0]], [20])
    told = []
    (cut,) = engine.generate([prompts[0]], [20], ends=lambda ids: 3 if len(ids) >= 3 else None, tell=told.extend)
    assert len(whole.ids) > 3
    assert cut == (whole.ids[:3], "stop", 0)
    assert tuple(told) == cut.ids


@pytest.mark.parametrize(
    ("leaf", "named"),
    [
        ("embed_tokens", "embed_tokens"),
        ("norm", "norm"),
        ("layers/attn/q", "layers/1/attn/q"),
        ("layers/post_norm", "layers/1/"),
    ],
)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_named(params, attention, leaf, named, value):
    def broken(path, x):
        if jax.tree_util.keystr(path, simple=True, separator="/") != leaf:
            return x
        return x.at[1].set(value) if leaf.startswith("layers") else x.at[..., 4].set(value)

    engine = make(attention=attention, slots=2)
    engine.load(jax.tree_util.tree_map_with_path(broken, params))
    with pytest.raises(NonFiniteError, match=f"its weight {named}"):
        engine.generate([[1, 2]], [4])
    assert not engine.busy
    engine.load(params)
    assert engine.generate([[1, 2]], [4]) == [plain_loop(params, [1, 2], 4)]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_overflows_is_named(params, attention, layer):
    mlp = params["layers"]["mlp"]
    huge = {name: mlp[name].at[layer].multiply(1e30) for name in ("gate", "up", "down")}
    engine = make(attention=attention)
    engine.load(params | {"layers": params["layers"] | {"mlp": mlp | huge}})
    with pytest.raises(NonFiniteError, match=f"layer {layer} of 2 overflows"):
        engine.generate([[1, 2, 7]], [4])


def interrupted(engine, expected, monkeypatch, where, name, instead):
    """With ``where.name`` replaced ``generate`` is interrupted; it works as ever afterwards."""
    prompts, limits, wanted = expected[1]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, instead)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, limits)
    assert not engine.busy
    assert engine.generate(prompts, limits) == wanted


@pytest.mark.parametrize("program", ["prefill", "decode"])
@pytest.mark.parametrize("when", [1, 3])
def test_an_interrupt_leaves_the_engine_usable(engine, expected, monkeypatch, program, when):
    calls, run = [], getattr(programs, program)

    def stops(*args, **kwargs):
        result = run(*args, **kwargs)  # what was donated is gone
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return result

    interrupted(engine, expected, monkeypatch, programs, program, stops)


def test_an_interrupt_between_two_looks_leaves_the_engine_usable(engine, expected, monkeypatch):
    advance = engine.advance

    def stops():
        done = advance()
        signal.raise_signal(signal.SIGINT)
        return done

    interrupted(engine, expected, monkeypatch, engine, "advance", stops)


def test_weights_that_are_donated_are_gone(params, attention, expected):
    prompts, limits, wanted = expected[0]
    engine = make(attention=attention)
    for _ in range(2):
        given = jax.tree.map(jnp.copy, params)
        engine.load(given, donate=True)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given["layers"]))
        assert engine.generate(prompts, limits) == wanted


def test_donated_weights_are_never_there_twice(attention, monkeypatch):
    """At most the kind that is being taken apart."""
    config = CONFIG.replace(num_hidden_layers=8, tie_word_embeddings=False)
    engine = make(config, attention=attention)
    given = llama.init_params(config, jax.random.key(0))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(given["layers"]))
    apart, seen = llama._apart, []

    def there():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    def watched(leaf):
        parts = apart(leaf)
        seen.append(there() - before)
        return parts

    monkeypatch.setattr(llama, "_apart", watched)
    before = there()
    engine.load(given, donate=True)
    assert max(seen) == largest
    assert there() - before < 10_000  # sines and cosines


# ----------------------------------------------------------------------------------------------------------------------
# Sampling


def test_what_is_drawn_depends_on_the_seed_alone(params, attention):
    prompts, _ = groups_of(3)
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    engine, narrow = make(attention=attention), make(attention=attention, slots=1, steps=3, share_prefixes=False)
    engine.load(params)
    narrow.load(params)
    together = engine.generate(prompts, [8] * len(prompts), **options)
    assert together == narrow.generate(prompts, [8] * len(prompts), **options)
    assert [engine.generate([prompt], [8], **options)[0] for prompt in prompts[:4]] == together[:4]
    numbers = [engine.submit(prompts[n], 8, **(options if n % 2 else {})) for n in range(6)]  # beside greedy ones
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    assert [done[numbers[n]] for n in (1, 3, 5)] == [together[n] for n in (1, 3, 5)]
    assert [done[numbers[n]] for n in (0, 2, 4)] == engine.generate(prompts[:6:2], [8] * 3)
    assert engine.generate(prompts, [8] * len(prompts), **(options | {"seed": 8})) != together


@pytest.mark.parametrize("options", [{"temperature": 1e-4}, {"temperature": 2.0, "top_p": 1e-6}], ids=str)
def test_the_limits_of_sampling_are_greedy(engine, expected, options):
    prompts, limits, wanted = expected[0]
    assert engine.generate(prompts, limits, **options) == wanted


@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [(1.0, 1.0, (0.3, 0.5, 0.2)), (1.0, 0.7, (3 / 8, 5 / 8, 0)), (1.0, 0.4, (0, 1, 0)), (0.5, 1.0, (9 / 38, 25 / 38, 4 / 38))],
)
def test_the_distribution(temperature, top_p, wanted):
    n = 4000
    logits = jnp.log(jnp.tile(jnp.array([0.3, 0.5, 0.2]), (n, 1)))
    full = [jnp.full(n, x, jnp.float32) for x in (temperature, top_p)]
    for key, positions in (
        (jax.random.key_data(jax.random.split(jax.random.key(0), n)), jnp.zeros(n, jnp.int32)),
        (jnp.tile(jax.random.key_data(jax.random.key(3)), (n, 1)), jnp.arange(n)),
    ):
        token, finite = programs.choose(logits, programs.Sampling(*full, key), positions)
        assert finite.all()
        seen = np.bincount(np.asarray(token), minlength=3) / n
        np.testing.assert_allclose(seen, wanted, atol=4 * np.sqrt(0.25 / n))
        assert all(seen[i] == 0 for i in range(3) if wanted[i] == 0)


# ----------------------------------------------------------------------------------------------------------------------
# Several individuals, several devices


def population(params, count=3, rank=2, seed=4):
    """Weights of several individuals, mixed and one by one."""
    rng = np.random.default_rng(seed)
    layers, singles = params["layers"], [params["layers"]] * count
    for group, name in [(group, name) for group in ("attn", "mlp") for name in params["layers"][group]]:
        w = layers[group][name]
        u, vt = (jnp.asarray(rng.normal(size=shape) * 0.2, w.dtype) for shape in ((2, w.shape[1], rank), (2, rank, w.shape[2])))
        coefficients = jnp.asarray(rng.normal(size=(2, count, rank)), w.dtype)
        layers = layers | {group: layers[group] | {name: MixedMatrix(w, u, vt, coefficients)}}
        merged = [w + jnp.einsum("lir,lr,lro->lio", u, coefficients[:, i], vt) for i in range(count)]
        singles = [one | {group: one[group] | {name: merged[i]}} for i, one in enumerate(singles)]
    return params | {"layers": layers}, [params | {"layers": one} for one in singles]


def test_a_population_equals_its_individuals_one_by_one(params, attention):
    mixed, singles = population(params, count=8)
    prompts, limits = groups_of(6)
    wanted = []
    engine = make(attention=attention)
    for single in singles:
        engine.load(single)
        wanted.append(engine.generate(prompts, limits))
    assert len(set(map(tuple, wanted))) == 8
    reused = engine.statistics.reused
    engine.load(mixed)
    order = np.random.default_rng(0).permutation(8 * len(prompts))
    numbers = {}
    for i in order:  # all mixed up
        who, which = divmod(int(i), len(prompts))
        numbers[who, which] = engine.submit(prompts[which], limits[which], individual=who)
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    for (who, which), number in numbers.items():
        assert done[number] == wanted[who][which]
    assert engine.statistics.reused == 2 * reused  # every individual's prompts have its own prefixes in common
    # A conversation's cache is of one individual.
    for who in (0, 1):
        assert engine.generate(prompts[:1], limits[:1], conversation="x", individual=who) == wanted[who][:1]
    with pytest.raises(InputError, match="individual below 8, got 8"):
        engine.submit([1], 1, individual=8)


def test_of_a_population_the_broken_one_is_named(params, attention):
    mixed, _ = population(params)
    q = mixed["layers"]["attn"]["q"]
    q = q._replace(coefficients=q.coefficients.at[1, 2].set(3e38))
    engine = make(attention=attention)
    engine.load(mixed | {"layers": mixed["layers"] | {"attn": mixed["layers"]["attn"] | {"q": q}}})
    for who in (0, 1):
        assert engine.generate([[1, 2]], [4], individual=who)[0].ids
    with pytest.raises(NonFiniteError, match=r"individual 2 .*layer 1 of 2") as caught:
        engine.generate([[1, 2]], [4], individual=2)
    assert caught.value.individual == 2
    assert engine.generate([[1, 2]], [4], individual=0)[0].ids  # the weights are still there


def test_a_broken_individual_spoils_no_others_prefix(params, attention):
    mixed, singles = population(params)
    down = mixed["layers"]["mlp"]["down"]
    down = down._replace(coefficients=down.coefficients.at[0, 1].set(jnp.nan))
    engine = make(attention=attention)
    engine.load(mixed | {"layers": mixed["layers"] | {"mlp": mixed["layers"]["mlp"] | {"down": down}}})
    prompts, limits = groups_of(6)
    for who in (0, 1, 2):
        for prompt, limit in zip(prompts, limits, strict=True):
            engine.submit(prompt, limit, individual=who)
    with pytest.raises(NonFiniteError) as caught:
        engine.advance()
    assert caught.value.individual == 1
    for who in (0, 2):
        wanted = [plain_loop(singles[who], prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
        assert engine.generate(prompts, limits, individual=who) == wanted


@pytest.mark.parametrize("who", [0, 2])
@pytest.mark.parametrize("value", [jnp.nan, 1e38])
def test_a_broken_individual_spoils_no_other(params, attention, who, value):
    mixed, singles = population(params)
    down = mixed["layers"]["mlp"]["down"]
    down = down._replace(coefficients=down.coefficients.at[1, who].set(value))
    engine = make(attention=attention)
    engine.load(mixed | {"layers": mixed["layers"] | {"mlp": mixed["layers"]["mlp"] | {"down": down}}})
    with pytest.raises(NonFiniteError, match=f"individual {who} ") as caught:
        engine.generate([[1, 2]], [4], individual=who)
    assert caught.value.individual == who
    for other in {0, 1, 2} - {who}:  # beside a broken one, in rows that are longer than others
        engine.submit(list(range(6, 40)), 6, individual=other)
        number = engine.submit([1, 2], 6, individual=other)
        done = {}
        while engine.busy:
            done |= dict(engine.advance())
        assert done[number] == plain_loop(singles[other], [1, 2], 6)


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"fsdp": 2, "tensor": 2}, {"population": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_equals_one_device(params, attention, expected, sizes):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = sharding.make_mesh(**sizes)
    layout = sharding.shardings(mesh, llama.abstract_params(CONFIG), llama.logical_axes(CONFIG))
    engine = make(attention=attention, mesh=mesh)
    engine.load(jax.device_put(params, layout))
    prompts, limits, wanted = expected[1]
    assert engine.generate(prompts, limits) == wanted
    k = engine._cache.k[0]  # split, and not on every device whole
    assert k.addressable_shards[0].data.size == k.size // 2


def test_the_private_function_of_cudnn_attention_is_as_it_was():
    """It is called on GPUs alone."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    names = list(inspect.signature(dot_product_attention).parameters)
    assert names[:7] == ["query", "key", "value", "bias", "mask", "q_seqlen", "kv_seqlen"]
    assert {"scale", "mask_type", "return_residual"} <= set(names)
    assert MaskType.PADDING


def test_a_mesh_that_does_not_divide_the_heads(params):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    with pytest.raises(InputError, match="2 KV heads to divide by the 4 devices"):
        make(mesh=sharding.make_mesh(tensor=4))


# ----------------------------------------------------------------------------------------------------------------------
# What can not be


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slots": 0}, "0 slots"),
        ({"steps": 0}, "0 steps"),
        ({"chunk": 0}, "chunk 0"),
        ({"chunk": 1, "attention": Attention("xla")}, "chunk of at least 2"),
        ({"max_len": 65}, "64 positions.*max_len 65"),
        ({"max_len": 1}, "max_len 1"),
        ({"stop_ids": ()}, "stop ids"),
        ({"stop_ids": (48,)}, r"vocabulary size 48.*\[48\]"),
        ({"pad_id": -1}, "pad id -1"),
        ({"stop_ids": ("3",)}, "stop ids to be whole numbers"),
        ({"stop_ids": (3.0,)}, "stop ids to be whole numbers"),
        ({"pad_id": None}, "pad id to be whole numbers"),
        ({"overflow": "drop"}, "'refuse' or 'truncate', got 'drop'"),
    ],
)
def test_settings_that_can_not_be(changes, named):
    with pytest.raises(InputError, match=named):
        make(**changes)


@pytest.mark.parametrize(
    ("prompts", "limits", "options", "named"),
    [
        ([[1], []], [3, 3], {}, "0 tokens"),
        ([[1], [2]], [3, 0], {}, "limit 0"),
        ([[1, 48]], [3], {}, "below 48.*1 to 48"),
        ([[-1]], [3], {}, "below 48.*-1 to -1"),
        ([[1]], [3, 4], {}, "each of 1 prompts, got 2"),
        ([[1]], [3], {"temperature": -1.0}, "got -1.0 and 1.0"),
        ([[1]], [3], {"temperature": float("nan")}, "got nan and 1.0"),
        ([[1]], [3], {"temperature": None}, "got None and 1.0"),
        ([[1]], [3], {"top_p": "x"}, "got 0.0 and x"),
        ([[1]], [3], {"top_p": 0.0}, "got 0.0 and 0.0"),
        ([[1]], [3], {"individual": 1}, "individual below 1, got 1"),
        ([[7.9]], [3], {}, r"whole numbers, got \[7.9\]"),
        ([[1]], [2.5], {}, "whole numbers.*2.5"),
        ([[1]], [3], {"seed": "x"}, "whole numbers.*'x'"),
        ([[1]], [3], {"seed": 2**33, "temperature": 1.0}, "seed from 0"),
        ([[1], [2]], [3, 3], {"conversation": "x"}, "one request of conversation 'x'"),
    ],
)
def test_requests_that_can_not_be(engine, prompts, limits, options, named):
    with pytest.raises(InputError, match=named):
        engine.generate(prompts, limits, **options)
    assert not engine.busy


@pytest.mark.parametrize(("shared", "named"), [(-5, "at least 0"), (1.5, "whole"), ("x", "whole"), (None, "whole")])
def test_a_warm_up_that_can_not_be(engine, shared, named):
    with pytest.raises(InputError, match=named):
        engine.warm_up(shared)


def test_a_warm_up_with_broken_weights(params, attention):
    engine = make(attention=attention)
    engine.load(params | {"norm": params["norm"] * jnp.nan})
    with pytest.raises(NonFiniteError, match="weight norm"):
        engine.warm_up(shared=1)
    engine.load(params)
    engine.warm_up(shared=1)
    assert engine.generate([[7, 8]], [2]) == [plain_loop(params, [7, 8], 2)]


def test_of_a_prefix_that_overflows_the_layer_is_named(params, attention):
    # Token 7 alone has a first component, which is too much for the first layer.
    layers, embedding = params["layers"], params["embed_tokens"].at[:, 0].set(0.0).at[7, 0].set(1.0)
    attn = layers["attn"] | {"o": layers["attn"]["o"].at[0, :, 0].set(0.0)}
    mlp = layers["mlp"] | {name: layers["mlp"][name].at[0, 0].set(1e25) for name in ("gate", "up")}
    engine = make(attention=attention)
    engine.load(params | {"embed_tokens": embedding, "layers": layers | {"attn": attn, "mlp": mlp}})
    for prompt in ([8, 9], *([7] * 24 + [n] for n in (8, 9, 10))):
        engine.submit(prompt, 3)
    with pytest.raises(NonFiniteError, match="layer 0 of 2"):
        engine.advance()


def test_no_room_for_shared_columns_is_forgotten(params, attention, monkeypatch):
    engine = make(attention=attention)
    engine.load(params)
    prompts, limits = groups_of(4)
    init = Attention.init

    def small(self, config, pages, columns, mesh=None):
        if pages == 1:
            raise MemoryError
        return init(self, config, pages, columns, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(Attention, "init", small)
        with pytest.raises(MemoryError):
            engine.generate(prompts, limits)
        assert engine.generate(prompts[:1], limits[:1]) == [plain_loop(params, prompts[0], limits[0])]
    assert len(engine.generate(prompts, limits)) == len(prompts)


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
