"""The bodies of requests: what is wrong or not supported is refused with its key."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from cycleqd_jax.serve.errors import ApiError
from cycleqd_jax.serve.parameters import (
    chat_messages,
    chat_parameters,
    completion_parameters,
    completion_prompts,
    parse_json,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_defaults_are_those_of_openai():
    found = chat_parameters(CHAT)
    assert (found.n, found.max_tokens, found.temperature, found.top_p, found.stop, found.stream) == (1, None, 1, 1, (), False)
    assert 0 <= found.seed < 2**32
    assert chat_parameters(CHAT).seed != found.seed
    assert completion_parameters({"model": "m", "prompt": "x"}).max_tokens == 16


def test_a_top_p_of_0_is_greedy():
    found = chat_parameters({**CHAT, "temperature": 1.5, "top_p": 0})
    assert (found.temperature, found.top_p) == (0.0, 1.0)


def test_values_are_taken():
    body = {**CHAT, "n": 3, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": 4, "stop": "x", "stream": True}
    found = chat_parameters({**body, "stream_options": {"include_usage": True}})
    assert (found.n, found.max_tokens, found.temperature, found.top_p, found.seed) == (3, 7, 0.0, 0.5, 4)
    assert (found.stop, found.stream, found.usage) == (("x",), True, True)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 0, "temperature": 99}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": 1.0}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 3}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 3}}, "include_usage"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"prompt": "x"}, "prompt"),
        ({"nothing": 1}, "nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_name_their_key(change, param):
    with pytest.raises(ApiError, match=r"^expected .*, got ") as caught:
        chat_parameters({**CHAT, **change})
    assert caught.value.status == 400
    error = caught.value.body()["error"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"n": 2, "best_of": 3}, "best_of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_completions_refuse_what_the_engine_lacks(change, param):
    with pytest.raises(ApiError, match=r"^expected ") as caught:
        completion_parameters({"model": "m", "prompt": "x", **change})
    assert caught.value.body()["error"]["param"] == param


def test_values_that_change_nothing_are_accepted():
    chat_parameters(
        {**CHAT, "user": "u", "logprobs": False, "tools": [], "frequency_penalty": 0, "response_format": {"type": "text"}}
    )
    completion_parameters({"model": "m", "prompt": "x", "echo": False, "suffix": None, "best_of": 1, "logprobs": None})


def test_log_probabilities():
    prompt = {"model": "m", "prompt": "x"}
    found = completion_parameters({**prompt, "logprobs": 0, "echo": True, "max_tokens": 0})
    assert (found.logprobs, found.echo, found.max_tokens) == (0, True, 0)
    assert completion_parameters({**prompt, "logprobs": 5}).logprobs == 5
    assert completion_parameters({**prompt, "logprobs": False}).logprobs is None
    assert chat_parameters({**CHAT, "logprobs": True}).logprobs == 0
    assert chat_parameters({**CHAT, "logprobs": True, "top_logprobs": 20}).logprobs == 20
    assert chat_parameters({**CHAT, "logprobs": False, "top_logprobs": 0}).logprobs is None


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        [3],
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_messages(messages):
    with pytest.raises(ApiError, match=r"^expected ") as caught:
        chat_messages({"messages": messages})
    assert caught.value.body()["error"]["param"].startswith("messages")


def test_parts_and_developers_are_texts_and_systems():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts, "name": "me"}]
    expected = [{"role": "system", "content": "d"}, {"role": "user", "content": "ab"}]
    assert chat_messages({"messages": messages}) == expected


def test_prompts():
    assert completion_prompts({"prompt": "x"}) == ["x"]
    assert completion_prompts({"prompt": ["x", "y"]}) == ["x", "y"]
    assert completion_prompts({"prompt": [1, 2]}) == [[1, 2]]
    assert completion_prompts({"prompt": [[1, 2], [3]]}) == [[1, 2], [3]]
    for prompt in (None, [], 3, {}, [1, "x"], [[1, "x"]], [[]], [True], "\ud800"):
        with pytest.raises(ApiError, match=r"^expected "):
            completion_prompts({"prompt": prompt})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff", b'{"a": NaN}', b"[" * 10**5, b"1" * 5000], ids=repr)
def test_malformed_bodies(body):
    with pytest.raises(ApiError, match=r"^expected a"):
        parse_json(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["model", "messages", "n", "stop", "temperature", "stream", "stream_options", "seed", "tools", "logprobs"]
)


@hypothesis.given(st.dictionaries(keys | st.text(max_size=4), values, max_size=6))
def test_any_body_is_taken_or_refused_as_an_error_of_the_api(body):
    body = parse_json(json.dumps({**CHAT, **body}).encode())
    for read in (chat_parameters, chat_messages, completion_parameters, completion_prompts):
        try:
            read(body)
        except ApiError as error:
            json.dumps(error.body(), allow_nan=False).encode("ascii")
