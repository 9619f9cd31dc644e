"""Conversations with tools in chat templates: those with support for tools, and the JSON fallback for all others."""

from __future__ import annotations

import json

import pytest

from cycleqd_jax.models.agreement import UsedTokenizer, differences
from cycleqd_jax.models.files import gguf_tokenizer
from cycleqd_jax.models.tokenizer import LLAMA3_TEMPLATE, ChatTokenizer, train_tiny_tokenizer
from cycleqd_jax.models.tool_templates import ToolSupport, tool_support
from cycleqd_jax.tasks.dbbench.tools import TOOLS
from cycleqd_jax.tool_calls import reply_message, tool_message, write_call

from .chat_templates import LLAMA31, LLAMA32, QWEN25

NATIVE = {"llama 3.1": LLAMA31, "llama 3.2": LLAMA32, "qwen 2.5": QWEN25}
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role ~ ': ' ~ m.content ~ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
SYSTEM = {"role": "system", "content": "You operate a database."}
USER = {"role": "user", "content": "How old is 'Éva'?"}
QUERY = write_call("execute_sql", {"query": 'SELECT age FROM `t` WHERE name = "Éva" AND x > 1e3;\n'})
COMMIT = write_call("commit_final_answer", {"answers": ["41", "ß"]})


def play(*replies, system=True):
    """A conversation with tools; every call gets its number as the result."""
    first, *others = [SYSTEM, USER] if system else [USER]
    messages, calls = [{**first, "tools": list(TOOLS)}, *others], 0
    for reply in replies:
        messages.append(reply_message(messages, reply))
        for call in messages[-1].get("tool_calls", ()):
            calls += 1
            messages.append(tool_message(calls, call["function"]["name"], f"[('result {calls}',)]"))
        if "tool_calls" not in messages[-1] and messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": "Call a tool."})
    return messages


CONVERSATIONS = [play(), play(system=False), play(QUERY), play(f"I look.\n{QUERY}", "hm", QUERY), play(QUERY, COMMIT)]
SEVERAL = play(f"Both.\n{QUERY}\n{QUERY}", COMMIT)


def tokenizer_with(template: str) -> ChatTokenizer:
    words = train_tiny_tokenizer(["a few words"], 400)
    theirs = words.transformers_tokenizer
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    theirs.chat_template = template
    stop = theirs.convert_tokens_to_ids("<|im_end|>")
    return ChatTokenizer(theirs, [*words.stop_ids, stop], words.pad_id)


@pytest.fixture(scope="module", params=NATIVE)
def native(request):
    return tokenizer_with(NATIVE[request.param])


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    return gguf_tokenizer.gguf_tokenizer(smollm2_gguf)


def rendered(tokenizer: ChatTokenizer, messages) -> str:
    return tokenizer.transformers_tokenizer.decode(tokenizer.encode(messages), skip_special_tokens=False)


def plain(messages):
    return [{key: value for key, value in message.items() if key != "tools"} for message in messages]


# ------------------------------------------------------------------------------------------------ native


def test_support_is_found_by_rendering():
    assert tokenizer_with(LLAMA31).tool_support == ToolSupport(native=True, several=False, system=True)
    assert tokenizer_with(LLAMA32).tool_support == ToolSupport(native=True, several=False, system=True)
    assert tokenizer_with(QWEN25).tool_support == ToolSupport(native=True, several=True, system=True)
    assert tokenizer_with(LLAMA3_TEMPLATE).tool_support == ToolSupport(native=False, several=False, system=True)
    assert tokenizer_with(NO_SYSTEM).tool_support == ToolSupport(native=False, several=False, system=False)


@pytest.mark.parametrize(
    "spoil",
    [
        (
            "{% for tool in tools %}{{ '\n' ~ tool | tojson }}{% endfor %}",
            "{% for t in tools %}{{ t.function.name }}{% endfor %}",
        ),
        ("{{ '<|im_start|>system\n' ~ system }}", "{{ '<|im_start|>system\n' ~ ('' if tools else system) }}"),
        ("call.function.arguments | tojson", "''"),
        ("~ message.content ~ '\n</tool_response>'", "~ '\n</tool_response>'"),
        ("call.function.name", "call.function.nothing.name"),
    ],
)
def test_half_a_support_is_none(spoil):
    assert QWEN25.count(spoil[0]) == 1
    assert not tokenizer_with(QWEN25.replace(*spoil)).tool_support.native


@pytest.mark.parametrize(
    "written",
    [
        "<tool_call>\n<function={name}>\n<parameter=probe_argument>\n{value}\n</parameter>\n</function>\n</tool_call>",
        '[TOOL_CALLS]{name}[ARGS]{{"probe_argument": "{value}"}}',
        '[{name}(probe_argument="{value}")]',
        '<function={name}>{{"probe_argument": "{value}"}}</function>',
        "<tool_call>{name}\n<arg_key>probe_argument</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
        'Action: {name}\nAction Input: {{"probe_argument": "{value}"}}',
    ],
)
def test_a_format_of_calls_that_can_not_be_read_is_none(written):
    def render(messages, tools, call=written):
        parts = [json.dumps(tools)] if tools else []
        for message in messages:
            for function in [called["function"] for called in message.get("tool_calls", ())]:
                parts.append(call.format(name=function["name"], value=function["arguments"]["probe_argument"]))
            parts.append(f"{message['role']}: {message['content']}")
        return "\n".join(parts)

    assert tool_support(render) == ToolSupport(native=False, several=False, system=True)
    read = '<tool_call>{{"name": "{name}", "arguments": {{"probe_argument": "{value}"}}}}</tool_call>'
    assert tool_support(lambda messages, tools: render(messages, tools, read)) == ToolSupport(True, True, True)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_ids_are_those_of_transformers(native, messages, prompt):
    theirs = native.transformers_tokenizer
    want = theirs.apply_chat_template(plain(messages), tools=list(TOOLS), add_generation_prompt=prompt, return_dict=False)
    assert native.encode(messages, prompt) == want
    assert native.encode(messages, prompt) == want  # the second time from the cache


def test_several_calls_are_those_of_transformers():
    tokenizer = tokenizer_with(QWEN25)
    want = tokenizer.transformers_tokenizer.apply_chat_template(
        plain(SEVERAL), tools=list(TOOLS), add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.encode(SEVERAL) == want
    assert rendered(tokenizer, SEVERAL).count("<tool_call>\n{") == 4  # one in the instructions


def test_llama_gets_one_call_per_message():
    tokenizer = tokenizer_with(LLAMA31)
    text = rendered(tokenizer, SEVERAL)
    order = [text.index(part) for part in ("SELECT", "result 1", "SELECT", "result 2", 'commit_final_answer",', "result 3")]
    last = text.rindex("SELECT")
    assert order[0] < order[1] < last < order[3] < order[5]
    assert text.count("<|start_header_id|>assistant<|end_header_id|>") == 4
    assert text.count("<|start_header_id|>ipython<|end_header_id|>") == 3
    unanswered = [message for message in SEVERAL if message.get("tool_call_id") != "call00002"]  # as in OS interaction
    assert rendered(tokenizer, unanswered).count('{"name": "execute_sql", "parameters"') == 1
    assert "result 1" in rendered(tokenizer, unanswered)
    without = SEVERAL[:3]
    assert rendered(tokenizer, without).count('{"name": "execute_sql", "parameters"') == 1


def test_the_cache_distinguishes_tools_and_arguments(native):
    first, second = play(QUERY), play(QUERY.replace("age", "size"))
    assert native.encode(first) != native.encode(second)
    assert native.encode(play()) != native.encode(plain(play()))
    assert native.encode(plain(play())) == native.encode([SYSTEM, USER])


# ------------------------------------------------------------------------------------------------ fallback


@pytest.mark.parametrize("messages", [*CONVERSATIONS, SEVERAL])
def test_the_fallback_lists_the_schemas_and_writes_json(messages):
    for tokenizer in (tokenizer_with(LLAMA3_TEMPLATE), tokenizer_with(NO_SYSTEM)):
        check_fallback(tokenizer, messages)


@pytest.mark.exhaustive
def test_smollm2_gets_the_fallback(smollm2):
    assert smollm2.tool_support == ToolSupport(native=False, several=False, system=True)
    for messages in (*CONVERSATIONS, SEVERAL):
        check_fallback(smollm2, messages)


def check_fallback(tokenizer, messages):
    text = rendered(tokenizer, messages)
    for tool in TOOLS:
        assert json.dumps(tool, indent=4) in text
    assert 'format {"name": function name, "arguments": dictionary' in text
    assert "How old is 'Éva'?" in text
    assert (SYSTEM["content"] in text) == (messages[0]["role"] == "system")
    for message in messages:
        for call in message.get("tool_calls", ()):
            assert write_call(**call["function"]) in text
        if message["role"] == "tool":
            assert message["content"] in text


def test_the_fallback_is_plain_messages():
    tokenizer = tokenizer_with("{{ messages | tojson }}")
    messages = json.loads(tokenizer.decode(tokenizer.encode(play(f"I look.\n{QUERY} {QUERY}", "hm"))))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"].startswith(SYSTEM["content"] + "\n\nYou have access to the following functions.")
    assert messages[2]["content"] == f"I look.\n{QUERY}\n{QUERY}"
    assert messages[3]["content"] == "[('result 1',)]\n[('result 2',)]"
    assert all(set(message) == {"role", "content"} for message in messages)


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", [*NATIVE, "fallback"])
def test_training_learns_the_calls(name):
    tokenizer = tokenizer_with(NATIVE.get(name, LLAMA3_TEMPLATE))
    messages = play(QUERY, COMMIT)[:-1]
    ids, mask = tokenizer.encode_for_training(messages)
    assert ids == tokenizer.encode(messages, add_generation_prompt=False)
    learned = tokenizer.decode([i for i, learn in zip(ids, mask, strict=True) if learn])
    key = "parameters" if name.startswith("llama") else "arguments"
    assert f'"{key}": {{"answers": ["41", "ß"]}}' in learned
    assert "SELECT age" in learned
    assert "result" not in learned
    assert "function" not in learned
    for i, message in enumerate(messages):
        if message["role"] == "assistant":  # the tokens before a learned one are the prompt when the model generates it
            prompt = tokenizer.encode(messages[:i])
            assert ids[: len(prompt)] == prompt
            assert mask[len(prompt)]


# ------------------------------------------------------------------------------------------------ agreement


def test_templates_are_compared_with_tools_if_asked():
    ours, theirs = (
        UsedTokenizer(tokenizer_with(t).transformers_tokenizer, None) for t in (QWEN25, QWEN25.replace("# Tools", "#"))
    )
    assert list(differences(ours, theirs)) == []
    (found,) = differences(ours, theirs, tools=True)
    assert found.kind == "template"
    assert "# Tools" in found.here
    assert list(differences(ours, ours, tools=True)) == []
