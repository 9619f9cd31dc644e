from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from cycleqd_jax.engine import ChatGenerator, Engine
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError


def model_of(tokenizer, max_len=128):
    config = llama.LlamaConfig(
        tokenizer.vocab_size,
        32,
        64,
        2,
        4,
        2,
        8,
        max_position_embeddings=max_len,
        initializer_range=0.4,
        tie_word_embeddings=True,
    )
    engine = Engine(config, slots=4, max_len=max_len, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    engine.load(llama.init_params(config, jax.random.key(0)))
    return engine


@pytest.mark.exhaustive
def test_conversations_in_replies_out(tokenizer):
    engine = model_of(tokenizer)
    conversations = [[{"role": "user", "content": text}] for text in ("hello", "1 + 1 = ", "x" * 500, "ls")]
    limits = [8, 30, 8, 1]
    replies = ChatGenerator(engine, tokenizer).generate(conversations, limits)
    assert [reply.finish == "refused" for reply in replies] == [False, False, True, False]
    assert (replies[2].text, replies[2].tokens) == ("", 0)
    wanted = engine.generate([tokenizer.encode(conversation) for conversation in conversations], limits)
    for reply, generation, limit in zip(replies, wanted, limits, strict=True):
        ids = generation.ids[:-1] if generation.finish == "stop" else generation.ids
        assert reply.text == tokenizer.decode(ids)
        assert reply.tokens == len(generation.ids) <= limit


@pytest.mark.exhaustive
def test_the_stop_token_is_counted_but_not_in_the_text(tokenizer):
    # The layers add nothing and the embeddings are all ones: the head decides alone, and always for the same token.
    config = model_of(tokenizer).config.replace(tie_word_embeddings=False)
    params = jax.tree.map(jnp.zeros_like, llama.init_params(config, jax.random.key(0)))
    params |= {"embed_tokens": params["embed_tokens"] + 1, "norm": params["norm"] + 1}
    engine = Engine(config, slots=2, max_len=64, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    letter = tokenizer._tokenizer.convert_tokens_to_ids("x")
    for token, expected in ((letter, ("xxxxx", 5, "length")), (tokenizer.stop_ids[-1], ("", 1, "stop"))):
        engine.load(params | {"lm_head": params["lm_head"].at[:, token].set(1.0)})
        (reply,) = ChatGenerator(engine, tokenizer).generate([[{"role": "user", "content": "hi"}]], [5])
        assert (reply.text, reply.tokens, reply.finish) == expected


def test_an_engine_with_other_stop_ids_is_refused(tokenizer):
    engine = model_of(tokenizer)
    other = Engine(engine.config, slots=4, max_len=64, stop_ids=(9,), pad_id=0)
    with pytest.raises(InputError, match=r"stop ids \[1, 4\], got \[9\]"):
        ChatGenerator(other, tokenizer)


@pytest.mark.exhaustive
@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.exhaustive), 16])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("WX",), ("UV", 4, "stop")),  # in two tokens
        (("YZ", "VWX"), ("U", 4, "stop")),
        (("U",), ("", 1, "stop")),
        (("ZU",), ("UVWXYZ", 7, "stop")),  # ended by the stop token
    ],
)
def test_stop_strings(tokenizer, scripted, hello, stop, expected, steps):
    config, params = scripted(tokenizer, "UVWXYZ")
    engine = Engine(config, slots=2, max_len=128, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, steps=steps)
    engine.load(params)
    (reply,) = ChatGenerator(engine, tokenizer, stop=stop).generate([hello], [20])
    assert (reply.text, reply.tokens, reply.finish) == expected


@pytest.mark.parametrize("stop", ["END", ("a", "")])
def test_bad_stop_strings(tokenizer, stop):
    with pytest.raises(InputError, match="list of strings that are not empty"):
        ChatGenerator(model_of(tokenizer), tokenizer, stop=stop)


def test_generate_after_a_bad_conversation(tokenizer):
    engine = model_of(tokenizer)
    generator = ChatGenerator(engine, tokenizer)
    good = [{"role": "user", "content": "hello"}]
    wanted = generator.generate([good], [4])
    with pytest.raises(Exception, match=r"content|role|messages"):
        generator.generate([good, [{"role": "user"}]], [4, 4])
    assert generator.generate([good], [4]) == wanted
    generator.submit("mine", good, 4)
    with pytest.raises(InputError, match="finish them with advance"):
        generator.generate([good], [4])
    assert generator.advance() == [("mine", wanted[0])]
    generator.release("mine")
    generator.submit("dropped", good, 4)
    generator.release("dropped")
    assert generator.generate([good], [4]) == wanted


@pytest.mark.exhaustive
def test_replies_report_the_tokens_cut_from_their_prompts(tokenizer):
    engine = model_of(tokenizer)
    short = Engine(
        engine.config, slots=1, max_len=32, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id, overflow="truncate"
    )
    short.load(llama.init_params(engine.config, jax.random.key(0)))
    conversation = [{"role": "user", "content": "a b c d " * 12}]
    (reply,) = ChatGenerator(short, tokenizer).generate([conversation], [8])
    assert reply.dropped == len(tokenizer.encode(conversation)) + 8 - 32 > 0
