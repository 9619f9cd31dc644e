"""Conversations with tools, in the form that a chat template can render.

A template that supports tools gets their schemas as ``tools``, calls as ``tool_calls`` and results as messages of the role
``tool``, as ``transformers`` documents it. Templates without that support often ignore ``tools`` without an error, so
:func:`tool_support` renders a probe, looks for the schema and the result, and reads the call as :mod:`cycleqd_jax.tool_calls`
reads those in replies. For other templates the system prompt lists the schemas, a call is JSON in the text of the assistant,
and a result is a user message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cycleqd_jax.tool_calls import Call, read_calls
from cycleqd_jax.types import Message

__all__ = [
    "PROBE_TOOL",
    "MessageKey",
    "Render",
    "Rendered",
    "ToolSupport",
    "conversation_for_template",
    "message_key",
    "messages_of",
    "probe_calls",
    "tool_support",
]

MessageKey = tuple[str, ...]
"""A message that can be hashed: role and content, and JSON of its other keys if it has any."""

Rendered = dict[str, Any]
"""A message as a template gets it."""

Render = Callable[[Sequence[Rendered], Sequence[Any] | None], str]
"""Renders messages and tools; a template that refuses them raises any exception."""


class ToolSupport(NamedTuple):
    """What a chat template can render.

    Attributes:
        native: schemas, a call in a format that :func:`cycleqd_jax.tool_calls.read_calls` reads, and its result.
        several: several calls in one message.
        system: a system message.
    """

    native: bool
    several: bool
    system: bool


PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "Probes a template.",
        "parameters": {
            "type": "object",
            "properties": {"probe_argument": {"type": "string", "description": "What to probe."}},
            "required": ["probe_argument"],
        },
    },
}
"""The tool of the probes."""

_OPENING: list[Rendered] = [
    {"role": "system", "content": "Probe the system."},
    {"role": "user", "content": "Probe the user."},
]

# In the words of Llama 3.1's template, with the key of the other formats.
_LISTING = (
    "You have access to the following functions. To call a function, respond with JSON for a function call, in the format "
    '{{"name": function name, "arguments": dictionary of argument name and its value}}. Do not use variables.\n\n{}'
)


def message_key(message: Message) -> MessageKey:
    """The message as a key of a cache."""
    if len(message) == 2:
        return message["role"], message["content"]
    others = {key: value for key, value in message.items() if key not in ("role", "content")}
    return message["role"], message["content"], json.dumps(others)


def messages_of(keys: Sequence[MessageKey]) -> list[Rendered]:
    """The messages of which ``keys`` are the :func:`message_key`."""
    return [{"role": role, "content": content, **(json.loads(rest[0]) if rest else {})} for role, content, *rest in keys]


def probe_calls(count: int) -> list[Rendered]:
    """A conversation in which the assistant calls the tool of the probes ``count`` times in one message, with the results."""
    calls: list[Rendered] = []
    results: list[Rendered] = []
    for n in range(1, count + 1):
        function = {"name": "probe_tool", "arguments": {"probe_argument": f"value-{n}"}}
        calls.append({"id": f"call{n:05d}", "type": "function", "function": function})
        results.append({"role": "tool", "tool_call_id": f"call{n:05d}", "name": "probe_tool", "content": f"result-{n}"})
    return [*_OPENING, {"role": "assistant", "content": "", "tool_calls": calls}, *results]


def tool_support(render: Render) -> ToolSupport:
    """Finds out what a template can render, with probes.

    Args:
        render: renders with the template.
    """
    schema = ("probe_tool", "Probes a template.", "probe_argument", "What to probe.")
    opening = _text(render, _OPENING, [PROBE_TOOL])
    native = all(part in opening for part in (*schema, "Probe the system.", "Probe the user.")) and _shows(render, 1)
    plain = _text(render, _OPENING, None)
    return ToolSupport(native, native and _shows(render, 2), "Probe the system." in plain and "Probe the user." in plain)


def conversation_for_template(
    messages: Sequence[Rendered], support: ToolSupport
) -> tuple[list[Rendered], Sequence[Any] | None]:
    """The messages and the tools for a template.

    Args:
        messages: a conversation with tools (:class:`cycleqd_jax.types.Message`).
        support: what the template can render.

    Returns:
        Messages without the key ``tools``, and the tools; None for the tools if the messages contain all.
    """
    tools = messages[0].get("tools")
    stripped = [{key: value for key, value in message.items() if key != "tools"} for message in messages]
    if not support.native:
        return _as_text(stripped, tools or (), support.system), None
    return stripped if support.several else list(_one_call_each(stripped)), tools


def _text(render: Render, messages: Sequence[Rendered], tools: Sequence[Any] | None) -> str:
    try:
        return render(messages, tools)
    except Exception:  # a template is a program that may raise anything
        return ""


def _shows(render: Render, count: int) -> bool:
    """Whether a template shows ``count`` calls in one message, so that they can be read, and their results."""
    _, _, answer = _text(render, probe_calls(count), [PROBE_TOOL]).rpartition("Probe the user.")
    written = answer.partition("result-1")[0]
    calls = [Call("probe_tool", {"probe_argument": f"value-{n}"}) for n in range(1, count + 1)]
    return all(f"result-{n}" in answer for n in range(1, count + 1)) and read_calls(written, ["probe_tool"])[1] == calls


def _one_call_each(messages: Sequence[Rendered]) -> Iterable[Rendered]:
    """The messages with every further call of an assistant in a message of its own, followed by its result.

    Llama 3's template refuses several calls in one message. Calls without a result are left out, the first one excepted.
    """
    results = {message["tool_call_id"]: message for message in messages if "tool_call_id" in message}
    moved: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls", ())
        if len(calls) > 1:
            kept = [call for call in calls if call.get("id") in results] or calls[:1]
            for number, call in enumerate(kept):
                yield {**message, "content": "" if number else message["content"], "tool_calls": [call]}
                if call.get("id") in results:
                    moved.add(call["id"])
                    yield results[call["id"]]
        elif message.get("tool_call_id") not in moved:
            yield message


def _as_text(messages: Sequence[Rendered], tools: Sequence[Any], system: bool) -> list[Rendered]:
    """The conversation in plain messages of the roles system, user and assistant."""
    plain: list[Rendered] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if message.get("tool_calls"):
            content = "\n".join([*([content] if content else []), *map(_written, message["tool_calls"])])
        follows_result = role == "tool" and plain and plain[-1]["role"] == "tool"
        if follows_result:  # some templates demand that roles alternate
            plain[-1] = {"role": "tool", "content": plain[-1]["content"] + "\n" + content}
        else:
            plain.append({"role": role, "content": content})
    plain = [{**message, "role": "user" if message["role"] == "tool" else message["role"]} for message in plain]
    if not tools:
        return plain
    head = [_LISTING.format("\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools))]
    if plain[0]["role"] == "system":
        head.insert(0, plain.pop(0)["content"])
    if system:
        return [{"role": "system", "content": "\n\n".join(head)}, *plain]
    if plain and plain[0]["role"] == "user":
        head.append(plain.pop(0)["content"])
    return [{"role": "user", "content": "\n\n".join(head)}, *plain]


def _written(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
