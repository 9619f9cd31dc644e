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
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cycleqd_jax.types import Message, Tool

__all__ = ["MOST_CALLS", "Call", "function_tool", "read_calls", "reply_message", "tool_message", "write_call"]

MOST_CALLS = 16
"""The most calls that are read from one reply; later ones are ignored."""

_DEEPEST = 40  # levels of nested JSON; far below what overflows the stack of a template or of ``str``
_DECODER = json.JSONDecoder()
_TAG = re.compile(r"<tool_call>")
_JSON_AFTER_TAG = re.compile(r"[\s`]*(?=[\[{])")
_EMPTY_TAGS = re.compile(r"\W*</tool_call>")
_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning|reflection|scratchpad)>")
_MOST_FAILURES = 100  # the position of an error costs json linear time
_OPENING = re.compile(r'(?:\[\s*)?\{\s*"')
_INTENDED = re.compile(r'\[?\s*\{\s*"(?:name|type|function)"\s*:')
# What may stand between the text of a reply and its first call.
_LEAD = re.compile(r"(?:```[a-z]*|<\|python_tag\|>|\[TOOL_CALLS\])\s*$")
# What may stand on the lines of an object whose name is unknown, before and after it.
_BEFORE_CALL = re.compile(r"(?:^|[\]}>\n])[ \t;,\[]*$")
_AFTER_CALL = re.compile(r"[ \t;,.\]]*(?:[\n<\[{`]|$)")


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

    - Hermes and Qwen 2.5: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``; the last tag need not be closed. In a
      reply with such tags nothing else is a call. A tag that text only mentions is skipped.
    - Llama 3.1: ``{"name": …, "parameters": {…}}``, with or without ``<|python_tag|>``; several are separated by any text.
    - Mistral and OpenAI: a list of calls, alone or as ``tool_calls``, and calls of the form ``{"type": "function",
      "function": {…}}``.
    - Any of these in a fenced block or inside other text.

    Arguments may be an object or a text with its JSON. An object without arguments is a call only if its name is known. An
    object of an unknown name is a call only in tags or if no other text stands on its lines. The schema of a tool is no
    call. Thoughts hold no calls: they stand in tags such as ``<think>``, or before a tag that closes them. Tags inside JSON
    are part of its texts. Reading ends at the first object that begins like a call and is not valid JSON, so that the calls
    after a broken one are not executed without it. Of a repeated key the last value counts. Lone surrogates are replaced, and
    numbers that are not finite become texts. After a hundred objects that are not valid JSON, the rest of a reply is not read.

    Args:
        reply: any text.
        names: names of the tools that are offered; if there are none, every name counts as known.

    Returns:
        The text before the first call, and the calls, at most :data:`MOST_CALLS`. The text is the reply if there is no call.
    """
    text = _blank_thoughts(reply)
    tagged = next(_outside_json(_TAG, text), None)
    begin, calls = _untagged(text, names) if tagged is None else _tagged(text, names)
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


def _outside_json(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The matches of a pattern that are not part of a JSON object or a list of objects."""
    position, end, failures = 0, 0, 0
    for match in pattern.finditer(text):
        while failures <= _MOST_FAILURES and (opening := _OPENING.search(text, position, match.start())):
            try:
                position = end = _DECODER.raw_decode(text, opening.start())[1]
            except json.JSONDecodeError as error:
                failures += 1
                position = max(opening.start() + 1, min(error.pos, match.end()))
            except (ValueError, RecursionError):
                failures += 1
                position = opening.end()
        if end <= match.start():
            position = max(position, match.end())
            yield match


def _blank_thoughts(reply: str) -> str:
    """A reply with spaces in place of its thoughts."""
    thoughts: list[tuple[int, int]] = []
    opened: int | None = None
    for tag in _outside_json(_THOUGHT, reply):
        if not tag.group(1):
            opened = tag.start() if opened is None else opened
        elif opened is not None:
            thoughts.append((opened, tag.end()))
            opened = None
        elif not thoughts or reply[tag.end() :].strip():  # the prompt, or a mention of a closing tag, ended the thought
            thoughts = [(0, tag.end())]
    if opened is not None and not _without(reply[:opened], thoughts).strip():  # the reply ends within its thoughts
        thoughts.append((opened, len(reply)))
    return _without(reply, thoughts)


def _without(text: str, parts: Sequence[tuple[int, int]]) -> str:
    pieces, position = [], 0
    for begin, end in parts:
        pieces += [text[position:begin], " " * (end - begin)]
        position = end
    return "".join([*pieces, text[position:]])


def _tagged(text: str, names: Collection[str]) -> tuple[int, list[Call]]:
    """The position of the first call, and the calls in tags, up to the first that is not valid."""
    first, calls = len(text), []
    for tag in _outside_json(_TAG, text):
        begin = _JSON_AFTER_TAG.match(text, tag.end())
        if begin is None:
            following = text.find("<tool_call>", tag.end())
            if "</tool_call>" not in text[tag.end() : following if following >= 0 else len(text)]:
                continue  # a mention of the tag
            if _EMPTY_TAGS.match(text, tag.end()):
                continue
            break
        try:
            found = _calls(_DECODER.raw_decode(text, begin.end())[0], names)
        except (ValueError, RecursionError):
            break
        if not found:
            break
        first = first if calls else tag.start()
        calls += found
        if len(calls) >= MOST_CALLS:
            break
    return first, calls


def _untagged(text: str, names: Collection[str]) -> tuple[int, list[Call]]:
    """The position of the first call, and the calls, among all JSON objects and lists of objects in a text."""
    begin, position, calls, failures = len(text), 0, [], 0
    while len(calls) < MOST_CALLS and (opening := _OPENING.search(text, position)):
        start = opening.start()
        try:
            value, position = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            failures += 1
            if failures > _MOST_FAILURES or _INTENDED.match(text, start):
                break
            position = max(start + 1, error.pos)
            continue
        except (ValueError, RecursionError):  # an integer of thousands of digits, or too deep nesting
            break
        found = _calls(value, names)
        if names and any(call.name not in names for call in found) and not _stands_alone(text, start, position):
            continue
        if found and not calls:
            begin = start
        calls += found
    return begin, calls


def _stands_alone(text: str, begin: int, end: int) -> bool:
    """Whether no prose stands on the lines of a part of a text, before or after it."""
    before = text[max(0, begin - 100) : begin]
    return _BEFORE_CALL.search(before) is not None and _AFTER_CALL.match(text, end) is not None


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
    if not isinstance(name, str) or (key is None and name not in names) or (key != "arguments" and _is_schema(value)):
        return None
    name, arguments = _text(name), {} if key is None else value[key]
    try:
        return Call(name, _plain(json.loads(arguments) if isinstance(arguments, str) else arguments))
    except (ValueError, RecursionError) as error:
        return Call(name, _text(arguments) if isinstance(arguments, str) else {}, str(error) or "too deep nesting")


def _is_schema(value: Mapping[str, Any]) -> bool:
    """Whether an object with a name describes a tool, instead of calling it."""
    parameters = value.get("parameters")
    return isinstance(value.get("description"), str) or (isinstance(parameters, dict) and parameters.get("type") == "object")


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
