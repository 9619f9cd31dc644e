"""Tool calls: read from the text of a reply, and written as messages of a conversation.

A conversation offers tools if its first message has the key ``tools``. The reply of a model is text. :func:`reply_message`
reads the calls in it, so that the conversation holds them as structured messages, which a chat template can render:

- ``{"role": "assistant", "content": text, "tool_calls": [...]}``
- ``{"role": "tool", "tool_call_id": …, "name": …, "content": text}`` for each result

The keys are those of OpenAI's chat API and of ``transformers``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cycleqd_jax.types import Message, Tool

__all__ = ["MOST_CALLS", "Call", "function_tool", "read_calls", "reply_message", "tool_message", "write_call"]

MOST_CALLS = 16
"""The most calls that are read from one reply; later ones are ignored."""

_DEEPEST = 40  # levels of nested JSON; far below what overflows the stack of a template or of ``str``
_DECODER = json.JSONDecoder()
_TAG = "<tool_call>"
_MOST_FAILURES = 100  # the position of an error costs json linear time
_OPENING = re.compile(r'(?:\[\s*)?\{\s*"')
_INTENDED = re.compile(r'\[?\s*\{\s*"(?:name|type|function)"\s*:')
# What may stand between the text of a reply and its first call.
_LEAD = re.compile(r"(?:```[a-z]*|<\|python_tag\|>|\[TOOL_CALLS\])\s*$")


@dataclasses.dataclass(frozen=True)
class Call:
    """One tool call of a reply.

    Attributes:
        name: name of the tool; it may be unknown.
        arguments: the arguments as JSON, which should be an object; the text as it was written if it is not valid JSON; an
            empty object if they are nested too deeply.
        error: what is wrong with the arguments, if they can't be read; else None.
    """

    name: str
    arguments: Any
    error: str | None = None


def function_tool(name: str, description: str, parameter: str, schema: Mapping[str, Any]) -> Tool:
    """A tool with one required parameter, in the JSON schema of OpenAI's chat API.

    Args:
        name: name of the tool.
        description: what it does.
        parameter: name of its parameter.
        schema: JSON schema of the parameter.
    """
    parameters = {
        "type": "object",
        "properties": {parameter: dict(schema)},
        "required": [parameter],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a reply that is one call, in a form that :func:`read_calls` reads."""
    return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)


def read_calls(reply: str, names: Collection[str] = ()) -> tuple[str, list[Call]]:
    """The tool calls in a reply, in the formats that models print.

    - Hermes and Qwen: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``; the last tag need not be closed. In a reply
      with such tags nothing else is a call.
    - Llama 3.1: ``{"name": …, "parameters": {…}}``, with or without ``<|python_tag|>``; several are separated by any text.
    - Mistral and OpenAI: a list of calls, alone or as ``tool_calls``, and calls of the form ``{"type": "function",
      "function": {…}}``.
    - Any of these in a fenced block or inside other text.

    Arguments may be an object or a text with its JSON. An object without arguments is a call only if its name is known.
    Thoughts that end with ``</think>`` hold no calls. Reading ends at the first object that begins like a call and is not
    valid JSON, so that the calls after a broken one are not executed without it. Of a repeated key the last value counts.
    Lone surrogates are replaced, and numbers that are not finite become texts. After a hundred objects that are not valid
    JSON, the rest of a reply is not read.

    Args:
        reply: any text.
        names: names of the tools that are offered.

    Returns:
        The text before the first call, and the calls, at most :data:`MOST_CALLS`. The text is the reply if there is no call.
    """
    start = reply.find("</think>") + len("</think>")
    if start < len("</think>"):
        start = 0
        if reply.lstrip().startswith("<think>"):
            return reply, []
    tagged = reply.find(_TAG, start)
    begin, calls = _untagged(reply, start, names) if tagged < 0 else (tagged, _tagged(reply, tagged, names))
    if not calls:
        return reply, []
    return _LEAD.sub("", reply[:begin].rstrip()).rstrip(), calls[:MOST_CALLS]


def reply_message(messages: Sequence[Message], reply: str) -> Message:
    """The assistant's message of a reply; it has ``tool_calls`` if the conversation offers tools and the reply calls some.

    Ids of calls are unique in a conversation. They have nine letters and digits, as Mistral's template demands.

    Args:
        messages: the conversation before the reply.
        reply: the text of the model.
    """
    tools = messages[0].get("tools") if messages else None
    text, calls = read_calls(reply, [tool["function"]["name"] for tool in tools]) if tools else (reply, [])
    if not calls:
        return {"role": "assistant", "content": reply}
    first = sum(len(message.get("tool_calls", ())) for message in messages) + 1
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [
            {"id": _id(number), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for number, call in enumerate(calls, start=first)
        ],
    }


def tool_message(number: int, name: str, content: str) -> Message:
    """The result of a call.

    Args:
        number: number of the call in the conversation, from 1 on; all calls of all replies count.
        name: name of the tool.
        content: what the tool returned.
    """
    return {"role": "tool", "tool_call_id": _id(number), "name": name, "content": content}


def _id(number: int) -> str:
    return f"call{number:05d}"


def _tagged(reply: str, position: int, names: Collection[str]) -> list[Call]:
    """The calls in tags, up to the first that is not valid."""
    calls: list[Call] = []
    while position >= 0 and len(calls) < MOST_CALLS:
        begin = position + len(_TAG)
        while begin < len(reply) and reply[begin].isspace():
            begin += 1
        try:
            value, end = _DECODER.raw_decode(reply, begin)
        except (ValueError, RecursionError):
            break
        found = _calls(value, names)
        if not found:
            break
        calls += found
        position = reply.find(_TAG, end)
    return calls


def _untagged(reply: str, position: int, names: Collection[str]) -> tuple[int, list[Call]]:
    """The position of the first call, and the calls, among all JSON objects and lists of objects in a text."""
    begin, calls, failures = len(reply), [], 0
    while len(calls) < MOST_CALLS and (opening := _OPENING.search(reply, position)):
        start = opening.start()
        try:
            value, position = _DECODER.raw_decode(reply, start)
        except json.JSONDecodeError as error:
            failures += 1
            if failures > _MOST_FAILURES or _INTENDED.match(reply, start):
                break
            position = max(start + 1, error.pos)
            continue
        except (ValueError, RecursionError):  # an integer of thousands of digits, or too deep nesting
            break
        found = _calls(value, names)
        if found and not calls:
            begin = start
        calls += found
    return begin, calls


def _calls(value: Any, names: Collection[str]) -> list[Call]:
    """The calls that a JSON value is; none if it, or an item of it, is something else."""
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    calls = [_call(item, names) for item in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call(value: Any, names: Collection[str]) -> Call | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    key = next((key for key in ("arguments", "parameters") if key in value), None)
    if not isinstance(name, str) or (key is None and name not in names):
        return None
    name, arguments = _text(name), {} if key is None else value[key]
    try:
        return Call(name, _plain(json.loads(arguments) if isinstance(arguments, str) else arguments))
    except (ValueError, RecursionError) as error:
        return Call(name, _text(arguments) if isinstance(arguments, str) else {}, str(error) or "too deep nesting")


def _plain(value: Any, depth: int = 0) -> Any:
    """A JSON value that can be encoded, stored as strict JSON and rendered; raises ValueError if it is nested too deeply."""
    if depth > _DEEPEST:
        raise ValueError(f"expected at most {_DEEPEST} levels of nested JSON, got more")
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_text(key): _plain(item, depth + 1) for key, item in value.items()}
    return value


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
