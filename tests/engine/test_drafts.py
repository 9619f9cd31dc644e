"""Drafts change how fast a reply is generated, and not the reply."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import drafts
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, NonFiniteError

from .conftest import few
from .small_model import CONFIG, converse, groups_of, make, plain_loop, population, slow_with_xla

KINDS = ("perfect", "half", "garbage", "mixed", "bad")


def drafts_of(kind, ids, rng):
    """Drafts of a reply."""
    ids, other = list(ids), rng.integers(0, CONFIG.vocab_size, 30).tolist()
    half = [i if rng.random() < 0.5 else o for i, o in zip(ids, other, strict=False)]
    cut = rng.integers(0, len(ids) + 1)
    return {
        "perfect": [ids],
        "half": [half],
        "garbage": [other[: len(ids)]],
        "mixed": [
            other[:5],
            [*ids[:cut], 7, *ids[cut:]],
            [],
            half,
            ids[cut:],
            ids[:cut],
        ],  # inserted, dropped and cut off tokens
        "bad": [[], ids * 99, [CONFIG.vocab_size, 1], [-1, *ids], ["x"], [0.5]],
    }[kind]


def generate(engine, prompts, limits, given, **options):
    """Replies of requests that each have drafts of their own."""
    numbers = [engine.submit(p, limit, drafts=d, **options) for p, limit, d in zip(prompts, limits, given, strict=True)]
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    return [done[number] for number in numbers]


@pytest.fixture(scope="module", params=[{}, pytest.param({"slots": 33, "chunk": 8, "window": 5}, marks=pytest.mark.exhaustive)])
def drafting(request, params, attention):
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        engine = make(**{"attention": attention, "window": 8, "steps": 8} | request.param)
    engine.load(params)
    return engine


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_do_not_change_replies(drafting, expected, kind):
    rng = np.random.default_rng(1)
    for prompts, limits, wanted in expected:
        given = [drafts_of(kind, reply[0], rng) for reply in wanted]
        assert generate(drafting, prompts, limits, given) == wanted
        some = [one if i % 3 else [] for i, one in enumerate(given)]  # others have none
        assert generate(drafting, prompts, limits, some) == wanted


@pytest.mark.exhaustive
@pytest.mark.parametrize("slots", [1, 8])
def test_perfect_drafts_need_a_step_for_each_window(params, attention, slots):
    engine = make(attention=attention, slots=slots, window=8, steps=16, chunk=48)
    engine.load(params)
    prompts = [list(range(6 + n, 16 + n)) for n in range(slots)]
    plain = engine.generate(prompts, [30] * slots)
    assert engine.statistics.windows == 0
    engine.statistics.clear()
    assert generate(engine, prompts, [30] * slots, [[reply.ids] for reply in plain]) == plain
    lengths = [len(reply.ids) for reply in plain]
    found = engine.statistics
    assert max(lengths) > 8
    assert found.steps == -(-(max(lengths) - 1) // 8)  # the prefill gives the first token
    assert found.windows == sum(-(-(length - 1) // 8) for length in lengths)
    assert found.accepted == sum(lengths) - slots - found.windows
    assert found.decoded == sum(lengths) - slots


@pytest.mark.parametrize("draft", ["garbage", "good at first"])
def test_drafts_that_waste_time_are_dropped(scripted, tokenizer, hello, few_programs, attention, draft):
    config, params = scripted(tokenizer, "0123456789abcdefghijklmnopqrstuvwxyz")
    engine = make(config, attention=attention, window=8, steps=16, max_len=96, stop_ids=tokenizer.stop_ids)
    engine.load(params)
    prompt = tokenizer.encode(hello)
    (plain,) = engine.generate([prompt], [60])
    other = tokenizer.encode([{"role": "user", "content": "XYZ"}])[-1]
    given = [other] * 30 if draft == "garbage" else [*plain.ids[:10], *[other] * 20]
    engine.statistics.clear()
    assert generate(engine, [prompt], [60], [[given]]) == [plain]
    calls = 1 if draft == "garbage" else 2
    kept = len(plain.ids) - 1 - engine.statistics.accepted  # every window adds one token more than it accepts
    assert engine.statistics.windows == (calls * engine.layout.verify_steps if engine.layout.attention.paged else kept)


@pytest.mark.exhaustive
def test_drafts_are_found_again_after_a_difference(scripted, tokenizer, hello, few_programs):
    config, params = scripted(tokenizer, "0123456789abcdefghijklmnopqrstuvwxyz")
    engine = make(config, window=8, steps=16, max_len=96, stop_ids=tokenizer.stop_ids)
    engine.load(params)
    prompt = tokenizer.encode(hello)
    (plain,) = engine.generate([prompt], [60])
    ids = list(plain.ids)
    assert len(ids) == 34
    other = tokenizer.encode([{"role": "user", "content": "XYZ"}])
    for given, most in (
        ([ids], 5),
        ([[*ids[:9], other[-1], *ids[10:]]], 6),  # another token
        ([[*ids[:9], *ids[11:]]], 8),  # two are missing
        ([[*ids[:9], *other, *ids[9:]]], 7),  # more
        ([other, ids], 5),  # the second draft is right
        ([ids[:20], ids[15:]], 6),
    ):
        engine.statistics.clear()
        assert generate(engine, [prompt], [60], [given]) == [plain]
        assert engine.statistics.steps <= most, given


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["mixed", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in KINDS)])
def test_drafts_in_conversations(params, attention, kind, few_programs, monkeypatch):
    engine = make(attention=attention, window=4, chunk=8)
    engine.load(params)
    rng, submit = np.random.default_rng(5), engine.submit

    def with_drafts(prompt, limit, **options):
        return submit(prompt, limit, drafts=drafts_of(kind, plain_loop(params, prompt, limit)[0], rng), **options)

    monkeypatch.setattr(engine, "submit", with_drafts)
    for prompt, reply in converse(engine, 4, np.random.default_rng(2)):
        assert reply == plain_loop(params, prompt, 5)
    assert engine.statistics.reused > 0
    if kind != "garbage":  # it may be dropped before a token is accepted
        assert (engine.statistics.accepted > 0) == (kind != "bad")


@pytest.mark.exhaustive
def test_drafts_of_a_population(params, attention, few_programs):
    mixed, singles = population(params, count=2)
    prompts, limits = groups_of(6)
    engine = make(attention=attention, window=8, chunk=24)
    for who, single in enumerate(singles):
        engine.load(single)
        wanted = engine.generate(prompts, limits)
        engine.load(mixed)
        assert generate(engine, prompts, limits, [[reply.ids] for reply in wanted], individual=who) == wanted


def test_requests_that_draw_and_engines_without_a_window_ignore_drafts(drafting, engine, expected):
    prompts, limits, wanted = expected[0]
    given = [[reply[0]] for reply in wanted]
    before = drafting.statistics.windows
    drawn = drafting.generate(prompts, limits, temperature=0.8, seed=3)
    assert generate(drafting, prompts, limits, given, temperature=0.8, seed=3) == drawn
    assert drafting.statistics.windows == before
    assert generate(engine, prompts, limits, given) == wanted
    assert engine.statistics.windows == 0


def test_replies_end_where_they_end_without_drafts(drafting, expected):
    prompts, _, _ = expected[0]
    new = []
    options = {"stop_when": lambda ids: 3 if len(ids) >= 3 else None, "on_tokens": new.extend}
    (whole,) = drafting.generate(prompts[:1], [20])
    (cut,) = generate(drafting, prompts[:1], [20], [[whole.ids]], **options)
    assert cut == (whole.ids[:3], "stop", 0)
    assert tuple(new) == cut.ids
    for length in range(38, 47):  # windows end at every place before the end of the cache
        prompt = (prompts[0] * 47)[:length]
        (whole,) = drafting.generate([prompt], [99])
        assert generate(drafting, [prompt], [99], [[[*whole.ids, 7, 8, 9] * 2]]) == [whole]


@pytest.mark.exhaustive
@pytest.mark.parametrize("slots", [1, 8, 33])
def test_drafts_in_bfloat16(params, attention, slots):
    config = CONFIG.replace(dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    engine = make(config, attention=attention, slots=slots, window=8)
    engine.load(params)
    rng = np.random.default_rng(3)
    prompts, limits = groups_of(8)
    wanted = engine.generate(prompts, limits)
    for kind in KINDS:
        given = [drafts_of(kind, reply.ids, rng) for reply in wanted]
        assert generate(engine, prompts, limits, given) == wanted


@pytest.mark.exhaustive
@slow_with_xla
def test_nothing_is_compiled_after_the_warm_up(params, attention, expected, compilations):
    engine = make(attention=attention, window=8, chunk=24)
    engine.load(params)
    engine.warm_up(shared=3 * engine.layout.aligned(24))
    rng = np.random.default_rng(4)

    def again():
        for kind in KINDS * 4:
            engine.load(params)
            for prompts, limits, wanted in expected:
                count = int(rng.integers(1, len(prompts)))
                given = [drafts_of(kind, reply[0], rng) for reply in wanted[:count]]
                assert generate(engine, prompts[:count], limits[:count], given) == wanted[:count]

    pages = engine._runner.pages
    assert compilations(again) == 0
    assert engine._runner.pages == pages == engine.layout.pages


@pytest.mark.exhaustive
def test_logits_that_are_not_finite_raise(params):
    # Only the token 40 has an embedding that is not finite; the head is another matrix.
    config = CONFIG.replace(tie_word_embeddings=False)
    engine = make(config, window=8)
    params = llama.init_params(config, jax.random.key(1))
    engine.load(params)
    (reply,) = engine.generate([[7, 8, 9]], [12])
    broken = params | {"embed_tokens": params["embed_tokens"].at[reply.ids[3]].set(jnp.nan)}
    engine.load(broken)
    with pytest.raises(NonFiniteError, match="embed_tokens"):
        generate(engine, [[7, 8, 9]], [12], [[reply.ids]])


@pytest.mark.parametrize("window", [0, 49])
def test_a_window_out_of_range_is_refused(window):
    with pytest.raises(InputError, match="expected a window of 1 to max_len = 48 tokens, got"):
        make(window=window)


def place(text, at, last, lost=False):
    text, last = jnp.asarray([text], jnp.int32), jnp.asarray([last], jnp.int32)
    return int(drafts.find(drafts.Sources(text, jnp.asarray([at], jnp.int32), last), jnp.asarray([lost]))[0])


def test_find():
    text = [-1, 1, 2, 3, 4, -1, 9, 2, 3, 5, 6, -1, -1]
    assert place(text, 4, [1, 2, 3]) == 4  # the present place follows the last token
    assert place(text, 3, [9, 2, 3]) == 9  # of two places with the last two tokens, the one with the third
    assert place(text, 2, [7, 2, 3]) == 4  # of equal places the nearest
    assert place(text, 10, [7, 2, 3]) == 9
    assert place(text, 3, [0, 0, 5]) == 3  # another token took the place of 2
    assert place(text, 3, [0, 0, 5], lost=True) == 10
    assert place(text, 5, [0, 0, 5]) == 10  # the source has ended
    assert place(text, 3, [0, 0, 0], lost=True) == 3


def test_drafts_are_joined_as_far_as_there_is_room():
    assert drafts.joined([[7, 8], [9] * 9, [10]], [1, 2, 3], 10) == (-1, 2, 3, 7, 8, -1, 2, 3, 10)
    assert drafts.joined([[7, 8]], [1], 10) == (-1, 1, 7, 8)
    assert drafts.joined([], [1], 10) == ()
    assert drafts.usable([[1], [], [1], [2, 3], [5], [1, -1], [1, 2, 3], [0.5]], 2, 5) == [(1,), (2, 3)]
