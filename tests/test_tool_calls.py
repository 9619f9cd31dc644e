"""Tool calls in the text of replies: all formats that models print, and any other text."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.tool_calls import MOST_CALLS, Call, function_tool, read_calls, reply_message, tool_message, write_call

SQL = Call("execute_sql", {"query": "SELECT 1"})
END = Call("finish", {})
NAMES = ("execute_sql", "finish")
TOOLS = [function_tool(name, "Does it.", "query", {"type": "string"}) for name in NAMES]
ONE = '{"name": "execute_sql", "arguments": {"query": "SELECT 1"}}'
LLAMA = ONE.replace("arguments", "parameters")
TEXT = '{"name": "execute_sql", "arguments": "{\\"query\\": \\"SELECT 1\\"}"}'
OPENAI = '{"type": "function", "function": {"name": "execute_sql", "arguments": {"query": "SELECT 1"}}}'
SCHEMA = json.dumps(TOOLS[0])
SPREAD = json.dumps(json.loads(ONE), indent=2)


def quoted(text: str) -> str:
    return json.dumps({"name": "x", "arguments": {"a": text}})


@pytest.mark.parametrize(
    ("reply", "calls", "content"),
    [
        # Llama 3.1
        (LLAMA, [SQL], ""),
        (f"<|python_tag|>{LLAMA}", [SQL], ""),
        (f"{LLAMA}; {LLAMA}", [SQL, SQL], ""),
        ('{"type": "function", "name": "execute_sql", "parameters": {"query": "SELECT 1"}}', [SQL], ""),
        # Hermes, Qwen
        (f"<tool_call>\n{ONE}\n</tool_call>", [SQL], ""),
        (f"I look.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{ONE}</tool_call> Done.", [SQL, SQL], "I look."),
        (f"<tool_call>{ONE}", [SQL], ""),
        (f"<tool_call>[{ONE}, {ONE}]</tool_call>", [SQL, SQL], ""),
        (f"As {LLAMA} says: <tool_call>{ONE}</tool_call>", [SQL], f"As {LLAMA} says:"),
        # Mistral, OpenAI, plain and fenced JSON
        (f"[TOOL_CALLS] [{ONE}]", [SQL], ""),
        (f" [{ONE}, {ONE}]", [SQL, SQL], ""),
        (OPENAI, [SQL], ""),
        (f'{{"content": null, "tool_calls": [{OPENAI}, {ONE}]}}', [SQL, SQL], ""),
        ('{"thought": "{", "name": "finish", "arguments": {}}', [END], ""),
        (TEXT, [SQL], ""),
        (SPREAD, [SQL], ""),
        (f"First I look.\n\n```json\n{SPREAD}\n```\nThen I go on.", [SQL], "First I look."),
        (f"```\n{ONE}\n```", [SQL], ""),
        (f"The set {{x | x > 3}} and {{}} and [1, 2]: {ONE}", [SQL], "The set {x | x > 3} and {} and [1, 2]:"),
        ('{"name": "finish"}', [END], ""),
        ('{"name": "finish", "arguments": {}, "parameters": {"a": 1}}', [END], ""),
        ('{"name": "other", "parameters": null}', [Call("other", None)], ""),
        ('{"name": "other", "parameters": [1]}', [Call("other", [1])], ""),
        # thoughts
        (f"<think>{ONE}</think>\n{LLAMA}", [SQL], f"<think>{ONE}</think>"),
        (f"{ONE}</think>\n{LLAMA}", [SQL], f"{ONE}</think>"),
        (f"<think>{ONE}</think>", [], None),
        (f"<think>\n{ONE}", [], None),
        (f"<think>a</think><think>{ONE}</think>{LLAMA}", [SQL], f"<think>a</think><think>{ONE}</think>"),
        (f"<thinking>{ONE}</thinking>{LLAMA}", [SQL], f"<thinking>{ONE}</thinking>"),
        (f"<reasoning>{ONE}\n<tool_call>{ONE}</tool_call></reasoning>", [], None),
        (f"<think>a</think>{ONE}<think>{ONE}</think>\n{LLAMA}", [SQL, SQL], "<think>a</think>"),
        (f"<think>a</think><think>{ONE}", [], None),
        (f"<think>The tag </think> ends it. {ONE}</think>{LLAMA}", [SQL], f"<think>The tag </think> ends it. {ONE}</think>"),
        (f"<think>a</think>{ONE}</think>\n", [SQL], "<think>a</think>"),
        (f"A <think> tag: {ONE}", [SQL], "A <think> tag:"),
        # tags in texts of JSON, and tags that are only mentioned
        (quoted("</think>"), [Call("x", {"a": "</think>"})], ""),
        (f"<think>a</think>{quoted('</think>')}", [Call("x", {"a": "</think>"})], "<think>a</think>"),
        (f"<tool_call>{quoted('</think>')}</tool_call>", [Call("x", {"a": "</think>"})], ""),
        (quoted("<think>"), [Call("x", {"a": "<think>"})], ""),
        (quoted("<tool_call>"), [Call("x", {"a": "<tool_call>"})], ""),
        (f"{quoted('<tool_call>')}\n{ONE}", [Call("x", {"a": "<tool_call>"}), SQL], ""),
        (f"<tool_call>{quoted('<tool_call>{}')}</tool_call><tool_call>{ONE}", [Call("x", {"a": "<tool_call>{}"}), SQL], ""),
        (f"I use <tool_call> now: <tool_call>{ONE}</tool_call>", [SQL], "I use <tool_call> now:"),
        (f"I use `<tool_call>`: `<tool_call>`{ONE}", [SQL], "I use `<tool_call>`: `"),
        (f"In <tool_call>...</tool_call>: <tool_call>{ONE}</tool_call>", [SQL], "In <tool_call>...</tool_call>:"),
        (f"<tool_call>execute_sql</tool_call><tool_call>{ONE}</tool_call>", [], None),
        # schemas and data
        (f"The tool {SCHEMA} helps. {ONE}", [SQL], f"The tool {SCHEMA} helps."),
        (f"{SCHEMA}\n{ONE}", [SQL], SCHEMA),
        (SCHEMA, [], None),
        ('{"name": "finish", "description": "Ends."}', [], None),
        ('{"name": "finish", "parameters": {"type": "object", "properties": {}}}', [], None),
        ('{"name": "finish", "description": "I end.", "arguments": {}}', [END], ""),
        (f'The row {{"name": "Bob", "parameters": {{"x": 1}}}} exists. {ONE}', [SQL],
         'The row {"name": "Bob", "parameters": {"x": 1}} exists.'),
        ('As {"name": "Bob", "parameters": 1} says', [], None),
        (f'{ONE}; {{"name": "x", "parameters": 1}};\n{{"name": "y", "parameters": 2}}', [SQL, Call("x", 1), Call("y", 2)], ""),
        ('```json\n{"name": "x", "parameters": 1}\n```', [Call("x", 1)], ""),
        # values
        ('{"name": "x", "parameters": {"a": 1, "a": 2}}', [Call("x", {"a": 2})], ""),
        ('{"name": "x", "parameters": {"a": 1e999, "b": -Infinity}}', [Call("x", {"a": "inf", "b": "-inf"})], ""),
        ('{"name": "x\\ud800", "parameters": {"\\udfff": ["\\ud83d\\ude00"]}}', [Call("x?", {"?": ["😀"]})], ""),
        ('{"name": "x", "parameters": "3"}', [Call("x", 3)], ""),
        # no calls
        ("", [], None),
        ("SELECT 1", [], None),
        ('{"name": "Bob", "age": 3}', [], None),
        ('{"name": "Bob"}', [], None),
        ('{"name": 3, "arguments": {}}', [], None),
        ('{"tool": "execute_sql", "arguments": {}}', [], None),
        (f"[{ONE}, 3]", [], None),
        (f"<tool_call>{ONE[:-1]}</tool_call>", [], None),
        (f"<tool_call></tool_call>{ONE}", [], None),
        ("<tool_call>", [], None),
        ('{"name": "execute_sql", "arguments": {"query": "two\nlines"}}', [], None),
        ("{'name': 'execute_sql', 'arguments': {}}", [], None),
        ('{"name": "x", "parameters": {"a": ' + "9" * 5000 + "}}", [], None),
        # only what comes before a broken call
        (f'{ONE} {{"name": "x", "arguments": oops}} {ONE}', [SQL], ""),
        (f"<tool_call>{ONE}</tool_call><tool_call>{ONE[:-2]}</tool_call><tool_call>{ONE}</tool_call>", [SQL], ""),
    ],
)  # fmt: skip
def test_calls(reply, calls, content):
    assert read_calls(reply, NAMES) == (reply if content is None else content, calls)


def test_arguments_that_are_not_json():
    ((_, (call,)), (_, (deep,))) = (
        read_calls(json.dumps({"name": "x", "arguments": arguments})) for arguments in ('{"query": ', nested(60))
    )
    assert (call.name, call.arguments) == ("x", '{"query": ')
    assert "Expecting value" in call.error
    assert (deep.arguments, deep.error) == ({}, "expected at most 40 levels of nested JSON, got more")


def nested(depth: int):
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_too_many_calls_are_cut():
    assert len(read_calls(ONE * 100, NAMES)[1]) == MOST_CALLS
    assert len(read_calls(f"<tool_call>{ONE}</tool_call>" * 100, NAMES)[1]) == MOST_CALLS


@pytest.mark.parametrize(
    "call", [("execute_sql", {"query": 'a "b" \\ ß\n\ud83d\ude00'}), ("x", {}), ("x", {"a": [1, None, {"b": True}]})]
)
def test_written_calls_are_read(call):
    ((_, (read,))) = (read_calls(write_call(*call)),)[0]
    assert read.name == call[0]


@pytest.mark.parametrize(
    "piece",
    ["{", "[", "[{", '{"a":', '{"name":', '{"a":[', '{"x":"', '{"x', "<tool_call>", "<tool_call>{", "```json\n",
     pytest.param("</think>", marks=pytest.mark.exhaustive),
     "[ ", " ", "{ ", ONE, f"<tool_call>{ONE}", "[[1],", '{"a":{"b":1},', "{x", "<think>", "<think>a</think>",
     pytest.param('{"name": "</think>', marks=pytest.mark.exhaustive), f"<tool_call>.</tool_call>{ONE}", f"{SCHEMA}</think>"],
)  # fmt: skip
def test_megabytes_are_quick(piece):
    for end in ("", "}", "x"):
        began = time.process_time()
        read_calls(piece * (1_000_000 // len(piece)) + end, NAMES)
        assert time.process_time() - began < 5


# ------------------------------------------------------------------------------------------------ messages


def test_messages():
    opening = [{"role": "user", "content": "?", "tools": TOOLS}]
    first = reply_message(opening, f"I look. {ONE} {LLAMA}")
    assert first["content"] == "I look."
    assert [call["id"] for call in first["tool_calls"]] == ["call00001", "call00002"]
    assert first["tool_calls"][0]["function"] == {"name": "execute_sql", "arguments": {"query": "SELECT 1"}}
    result = tool_message(2, "execute_sql", "[]")
    assert result == {"role": "tool", "tool_call_id": "call00002", "name": "execute_sql", "content": "[]"}
    second = reply_message([*opening, first, result], ONE)
    assert [call["id"] for call in second["tool_calls"]] == ["call00003"]
    assert reply_message(opening, "I am done.") == {"role": "assistant", "content": "I am done."}


def test_without_tools_a_reply_is_its_text():
    assert reply_message([{"role": "user", "content": "?"}], ONE) == {"role": "assistant", "content": ONE}
    assert reply_message([], ONE) == {"role": "assistant", "content": ONE}


def test_a_tool():
    assert function_tool("a", "b", "c", {"type": "string"})["function"] == {
        "name": "a",
        "description": "b",
        "parameters": {
            "type": "object",
            "properties": {"c": {"type": "string"}},
            "required": ["c"],
            "additionalProperties": False,
        },
    }


# ------------------------------------------------------------------------------------------------ fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(
    lambda name, key, arguments, quoted: json.dumps({"name": name, key: json.dumps(arguments) if quoted else arguments}),
    st.sampled_from(NAMES) | JSON,
    st.sampled_from(("arguments", "parameters", "args")),
    st.dictionaries(st.sampled_from(("query", "answers")), JSON, max_size=2) | JSON,
    st.booleans(),
)
PIECES = st.sampled_from(
    ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "```json\n", "\n```", "<think>", "</think>", SCHEMA, "{",
     "}", "[", "]", '"', ":", ",", '{"name": ', '"arguments": ', "\\ud800", "1e999", "-", "9" * 4400, "[" * 3000,
     '{"a":' * 3000, "\0", "\ud800")
)  # fmt: skip
REPLIES = st.lists(CALLS | PIECES | st.text(st.characters(), max_size=20), max_size=8).map("".join)


def read(reply: str) -> None:
    text, calls = read_calls(reply, NAMES)
    assert (text == reply) or calls
    assert len(calls) <= MOST_CALLS
    message = reply_message([{"role": "user", "content": "?", "tools": TOOLS}], reply)
    assert len(message.get("tool_calls", ())) == len(calls)
    stored = json.dumps(message.get("tool_calls", ()), allow_nan=False, ensure_ascii=False)
    stored.encode()
    for call in calls:
        str(call.arguments)
        assert call.error is None or call.error


@settings(max_examples=100, deadline=None)
@given(REPLIES)
def test_any_reply_is_read(reply):
    read(reply)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=100_000, deadline=None)
@given(REPLIES)
def test_any_reply_is_read_100_000(reply):
    read(reply)
