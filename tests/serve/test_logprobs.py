"""Log-probabilities over HTTP: those of the engine, in OpenAI's forms."""

from __future__ import annotations

import openai
import pytest

from cycleqd_jax.engine import ReplyText
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.serve.jobs import Scored
from cycleqd_jax.serve.logprobs import chat_logprobs, completion_logprobs, token_text

from .small_server import MAX_LEN, SLOTS, SeveralModels

HELLO = [{"role": "user", "content": "hello world"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def engine(models, few_programs):
    engine = SeveralModels(models).engine(SLOTS, MAX_LEN)
    engine.load(models["one"].params)
    return engine


def test_an_echo_is_scored(client, engine, tokenizer):
    prompts = [[5, 6, 7, 8, 9], [11], [5, 6, 7, 20] * (MAX_LEN // 4)]
    expected = engine.token_logprobs(prompts, top=2)
    found = client.completions.create(model="one", prompt=prompts, echo=True, max_tokens=0, logprobs=2)
    assert found.usage.completion_tokens == 0
    for prompt, one, choice in zip(prompts, expected, found.choices, strict=True):
        assert (choice.text, choice.finish_reason) == (tokenizer.decode(prompt), "length")
        scored = choice.logprobs
        assert scored.tokens == [token_text(tokenizer, i) for i in prompt]
        assert scored.token_logprobs[0] is scored.top_logprobs[0] is None
        assert scored.token_logprobs[1:] == pytest.approx(one.logprobs, abs=1e-4)
        for token, logprob, alternatives, top in zip(
            scored.tokens[1:], scored.token_logprobs[1:], scored.top_logprobs[1:], one.top, strict=True
        ):
            assert alternatives[token] == logprob
            assert 2 <= len(alternatives) <= 3
            assert max(alternatives.values()) == pytest.approx(top[0][1], abs=1e-4)
        assert len(scored.text_offset) == len(prompt)
        if prompt != prompts[-1]:
            assert [scored.text_offset[0], *sorted(scored.text_offset)] == [0, *scored.text_offset]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1.3, "top_p": 0.8, "seed": 3}], ids=["greedy", "drawn"]
)
def test_replies_are_scored_at_temperature_one(client, engine, tokenizer, options):
    options |= {"model": "one", "prompt": "hello", "max_tokens": 9}
    plain = client.completions.create(**options)
    found = client.completions.create(**options, logprobs=1, n=2)
    echoed = client.completions.create(**options, logprobs=1, echo=True)
    choice, both = found.choices[0], echoed.choices[0]
    assert found.usage.prompt_tokens == echoed.usage.prompt_tokens == plain.usage.prompt_tokens
    assert choice.text == plain.choices[0].text
    assert both.text == "hello" + choice.text
    count = echoed.usage.completion_tokens
    assert both.logprobs.tokens[-count:] == choice.logprobs.tokens
    assert both.logprobs.token_logprobs[-count:] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)
    assert both.logprobs.text_offset[-count:] == [at + len("hello") for at in choice.logprobs.text_offset]
    ids = list(
        engine.generate(
            [tokenizer.encode_text("hello")], [9], **{k: options[k] for k in options if k in ("temperature", "top_p", "seed")}
        )[0].ids
    )
    (expected,) = engine.token_logprobs([[*tokenizer.encode_text("hello"), *ids]])
    assert choice.logprobs.token_logprobs == pytest.approx(expected.logprobs[-count:], abs=1e-4)
    if options["temperature"] == 0:
        for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True):
            assert list(top) == [token]
    chunks = list(client.completions.create(**options, logprobs=1, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == both.text
    assert [chunk.choices[0].logprobs is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices[0].logprobs.tokens == both.logprobs.tokens


def test_chat(client):
    options = {"model": "one", "messages": HELLO, "temperature": 0, "max_tokens": 7, "logprobs": True}
    found = client.chat.completions.create(**options, top_logprobs=3)
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.token == one.top_logprobs[0].token
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob, abs=1e-6)
        assert one.logprob <= 0
    *_, last = client.chat.completions.create(**options, stream=True)
    assert [one.token for one in last.choices[0].logprobs.content] == [one.token for one in content]
    assert last.choices[0].logprobs.content[0].top_logprobs == []


def test_what_is_not_supported_is_refused_by_its_name(client):
    for options in ({"best_of": 2}, {"suffix": "x"}, {"logprobs": 6}, {"max_tokens": 0}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="one", prompt="x", **options)
        assert caught.value.param == next(iter(options))
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="one", prompt=[5] * (MAX_LEN + 1), echo=True, max_tokens=0)
    assert caught.value.code == "context_length_exceeded"


def test_tokens_that_are_no_text(tokenizer):
    euro = tokenizer.encode_text("€")[-3:]  # its bytes
    assert [token_text(tokenizer, i) for i in euro] == [r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac"]
    stop = tokenizer.stop_ids[0]
    assert token_text(tokenizer, stop) == tokenizer.token(stop) != ""
    scored = Scored((*euro, stop), (None, -1.0, -2.0, -0.5), ((), ((5, -0.1),), ((euro[2], -2.0),), ()), 3)
    found = completion_logprobs(tokenizer, scored, 1, "€")
    assert found["text_offset"] == [0, 0, 0, 1]
    assert found["top_logprobs"][:1] == [None]
    assert found["top_logprobs"][2:] == [{r"bytes:\xac": -2.0}, {tokenizer.token(stop): -0.5}]
    assert completion_logprobs(tokenizer, scored, 0, "€")["top_logprobs"] is None
    content = chat_logprobs(tokenizer, scored, 0)["content"]
    assert [one["bytes"] for one in content[:3]] == [[0xE2], [0x82], [0xAC]]


@pytest.fixture(scope="module")
def with_spaces():
    """A tokenizer as in Llama 2: a token may begin with a space, which decoders drop at the beginning of a text."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁The", "▁cat", "s"]
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(["<s>", "</s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return ChatTokenizer(fast, [1], 1, None), {token: i for i, token in enumerate(tokens)}


def test_spaces_of_sentencepiece_tokens(with_spaces):
    tokenizer, ids = with_spaces
    reply = (ids["▁cat"], ids["s"], ids["▁"], ids["</s>"])
    scored = Scored(reply, (-1.0,) * 4, ((),) * 4, 0)
    content = chat_logprobs(tokenizer, scored, 0)["content"]
    assert [one["token"] for one in content] == [" cat", "s", " ", "</s>"]
    assert [bytes(one["bytes"]) for one in content] == [b" cat", b"s", b" ", b""]
    found = completion_logprobs(tokenizer, scored, 0, "", [ids["<s>"], ids["▁The"]])
    assert found["text_offset"] == [0, 4, 5, 6]
    text = ReplyText(tokenizer.decode, (), (1,), [ids["<s>"], ids["▁The"]])
    assert text.take(reply)[0] + text.end() == " cats "


def test_offsets_in_an_echo_with_special_tokens(tokenizer):
    stop = tokenizer.token(tokenizer.stop_ids[0])
    prompt = f"hello{stop}a€b"
    ids = tokenizer.encode_text(prompt)
    scored = Scored((*ids, 40), (None, *[-1.0] * len(ids)), ((),) * (len(ids) + 1), len(ids))
    found = completion_logprobs(tokenizer, scored, 0, prompt)
    whole = prompt + tokenizer.decode([40])
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:") and token in prompt:
            assert whole[offset:].startswith(token), (token, offset)
    assert found["text_offset"][-1] == len(prompt)
    assert found["text_offset"][found["tokens"].index(stop)] == len("hello")
