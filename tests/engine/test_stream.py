from __future__ import annotations

from itertools import islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cycleqd_jax.engine import ChatGenerator, Detokenizer, Engine, programs, stream_reply, stream_tokens
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, NonFiniteError

CONFIG = llama.LlamaConfig(48, 32, 64, 2, 4, 2, 8, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=True)
STOPS = (3, 5)


@pytest.fixture(scope="module")
def params():
    return llama.init_params(CONFIG, jax.random.key(1))


def engine_of(params, config, max_len=64, stop_ids=STOPS, pad_id=0, steps=4):
    engine = Engine(config, slots=1, max_len=max_len, stop_ids=stop_ids, pad_id=pad_id, steps=steps)
    engine.load(params)
    return engine


def streamed(params, config, tokenizer, messages, max_new_tokens, steps):
    engine = engine_of(params, config, 128, tokenizer.stop_ids, tokenizer.pad_id, steps)
    return stream_reply(engine, tokenizer, messages, max_new_tokens=max_new_tokens)


@pytest.fixture(scope="module")
def reply_of_engine(tokenizer, scripted, hello):
    config, _ = scripted(tokenizer, "x")
    engine = Engine(config, slots=1, max_len=128, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)

    def reply(params, limit):
        engine.load(params)
        return ChatGenerator(engine, tokenizer).generate([hello], [limit])[0].text

    return reply


@pytest.mark.exhaustive
def test_the_tokens_equal_the_engine(params):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 48, rng.integers(1, 33)).tolist() for _ in range(12)] + [[1] * 55]
    limits = [*rng.integers(1, 30, 12).tolist(), 30]  # the last is cut where the context ends
    engine = Engine(CONFIG, slots=4, max_len=64, stop_ids=STOPS, pad_id=0)
    engine.load(params)
    wanted = engine.generate(prompts, limits)
    assert {result.finish for result in wanted} == {"stop", "length"}
    for steps in (1, 4):
        single = engine_of(params, CONFIG, steps=steps)
        for prompt, limit, want in zip(prompts, limits, wanted, strict=True):
            lists = list(stream_tokens(single, prompt, max_new_tokens=limit))
            assert tuple(i for ids in lists for i in ids) == want.ids
            sizes = [len(ids) for ids in lists]
            assert sizes[0] == 1
            assert all(size == steps for size in sizes[1:-1])
            assert 1 <= sizes[-1] <= steps


@pytest.mark.exhaustive
def test_nothing_is_compiled_twice(params, compilations):
    def run(params, prompt, limit):
        return lambda: list(stream_tokens(engine_of(params, CONFIG, stop_ids=[9], steps=3), prompt, max_new_tokens=limit))

    other = llama.init_params(CONFIG, jax.random.key(2))
    assert compilations(run(params, [7] * 9, 12)) >= 1
    assert compilations(run(other, [8] * 14, 17)) == 0


@pytest.mark.exhaustive
def test_no_more_is_decoded_than_is_read(tokenizer, scripted, hello, monkeypatch):
    config, params = scripted(tokenizer, "UVWXYZ", stop=False)
    asked = []
    decode = programs.decode
    monkeypatch.setattr(programs, "decode", lambda *a, **k: asked.append(1) or decode(*a, **k))
    pieces = streamed(params, config, tokenizer, hello, 30, 5)
    assert [tuple(piece) for piece in islice(pieces, 3)] == [("U", 1), ("VWXYZ", 6), ("UVWXY", 11)]
    assert len(asked) == 2


@pytest.mark.exhaustive
def test_logits_that_are_not_finite(tokenizer, scripted, hello):
    config, params = scripted(tokenizer, "UVWXYZ", stop=False)
    for sign, kept in (("\n\n", ""), ("U", "U"), ("W", "UVW")):
        broken = tokenizer._tokenizer.encode(sign, add_special_tokens=False)
        embedding = params["embed_tokens"].at[jnp.asarray(broken)].set(jnp.nan)
        pieces = streamed(params | {"embed_tokens": embedding}, config, tokenizer, hello, 9, 1)
        for letter in kept:
            assert next(pieces).text == letter
        with pytest.raises(NonFiniteError):
            next(pieces)


@pytest.mark.exhaustive
@pytest.mark.parametrize("steps", [1, 5])
def test_no_incomplete_characters_and_no_stop_token(tokenizer, scripted, hello, reply_of_engine, steps):
    text = "aé€😀b"  # 1, 2, 3, 4 and 1 bytes, a token each
    config, params = scripted(tokenizer, text)
    pieces = list(streamed(params, config, tokenizer, hello, 30, steps))
    assert "".join(piece.text for piece in pieces) == reply_of_engine(params, 30) == text
    wanted = {
        1: [("a", 1), ("é", 3), ("€", 6), ("😀", 10), ("b", 11)],
        5: [("a", 1), ("é€", 6), ("😀b", 11)],
    }
    assert pieces == wanted[steps]


@pytest.mark.exhaustive
def test_a_reply_cut_within_a_character(tokenizer, scripted, hello, reply_of_engine):
    config, params = scripted(tokenizer, "aé€😀b")
    pieces = [piece.text for piece in streamed(params, config, tokenizer, hello, 8, 1)]
    assert pieces == ["a", "é", "€", "\N{REPLACEMENT CHARACTER}"]
    assert "".join(pieces) == reply_of_engine(params, 8)


@pytest.mark.parametrize(
    ("prompt", "limit", "settings", "named"),
    [
        ([], 5, {}, "got 0 tokens"),
        ([1], 0, {}, "got 1 tokens and limit 0"),
        ([1], 5, {"steps": 0}, "got 1 slots, 0 steps"),
        ([1, 48], 5, {}, "ids below 48, got 1 to 48"),
        ([1], 5, {"stop_ids": ()}, r"one or more stop ids.*got stop ids \[\]"),
        ([1], 5, {"stop_ids": (-1,)}, r"stop ids \[-1\]"),
        ([1] * 64, 5, {}, "the engine's 64 tokens, got 64 tokens"),
    ],
)
def test_bad_requests(params, prompt, limit, settings, named):
    with pytest.raises(InputError, match=named):  # at once, not at the first token
        stream_tokens(engine_of(params, CONFIG, **settings), prompt, max_new_tokens=limit)


@pytest.mark.exhaustive
def test_a_busy_engine(params):
    engine = engine_of(params, CONFIG)
    first = stream_tokens(engine, [1], max_new_tokens=3)
    with pytest.raises(InputError, match="expected an engine without requests, got one that is busy"):
        stream_tokens(engine, [2], max_new_tokens=3)
    assert list(first)
    assert list(stream_tokens(engine, [2], max_new_tokens=3))


def sentencepiece_like():
    """As in Llama 2: spaces are part of tokens and dropped at the beginning; unknown characters become tokens of bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    signs = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcé"]
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(signs)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def pieces_of(decode, ids, cuts):
    detokenizer = Detokenizer(decode)
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.add(ids[a:b]) for a, b in pairwise(bounds)]
    return pieces, detokenizer.end()


@given(
    text=st.text(st.sampled_from("ab c\n  é€😀日本語\u0301\u200d'"), max_size=20), cuts=st.lists(st.integers(0, 99), max_size=8)
)
def test_any_text_in_any_lists(tokenizer, text, cuts):
    for codec in (tokenizer._tokenizer.backend_tokenizer, sentencepiece_like()):
        ids = codec.encode(text, add_special_tokens=False).ids
        pieces, rest = pieces_of(codec.decode, ids, cuts)
        assert "".join(pieces) == codec.decode(ids)
        assert rest == ""
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@pytest.mark.exhaustive
@given(data=st.data())
def test_any_tokens_in_any_lists(tokenizer, data):
    """Special tokens, and bytes that are not characters."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    pieces, rest = pieces_of(tokenizer.decode, ids, data.draw(st.lists(st.integers(0, 99), max_size=8)))
    assert "".join([*pieces, rest]) == tokenizer.decode(ids)
    assert not any(text.endswith("\N{REPLACEMENT CHARACTER}") for text in pieces)
