"""The bodies of requests: JSON, checked key by key.

Unknown and unsupported parameters are refused instead of ignored.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from cycleqd_jax.serve.errors import invalid, unsupported
from cycleqd_jax.types import Message

__all__ = ["Sampling", "chat_messages", "chat_parameters", "completion_parameters", "completion_prompts", "parse_json"]

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 256
SEEDS = 2**32

COMMON = {
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "metadata", "model", "n", "presence_penalty", "seed",
    "service_tier", "stop", "store", "stream", "stream_options", "temperature", "top_p", "user",
}  # fmt: skip
CHAT = COMMON | {
    "max_completion_tokens", "messages", "modalities", "parallel_tool_calls", "prompt_cache_key", "reasoning_effort",
    "response_format", "safety_identifier", "tool_choice", "tools", "top_logprobs", "verbosity",
}  # fmt: skip
COMPLETION = COMMON | {"best_of", "echo", "prompt", "suffix"}
MOST_LOGPROBS = {"logprobs": 5, "top_logprobs": 20}
"""The most alternatives of a token: of completions, and of chat."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What chat and completions have in common.

    Attributes:
        model: the name of the model.
        n: replies for each prompt.
        max_tokens: the most tokens of a reply; None is as many as there is room for.
        temperature: 0 is greedy.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: the seed of the first reply; those after it have the next seeds.
        stop: strings that end a reply.
        stream: whether the reply is streamed.
        usage: whether a stream ends with the number of tokens.
        logprobs: how many alternatives of each token to return with its log-probability; None returns neither.
        echo: whether the prompt precedes the reply.
    """

    model: str
    n: int
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: int | None = None
    echo: bool = False


def parse_json(body: bytes) -> dict[str, Any]:
    """The object of a body.

    Raises:
        ApiError: it is not JSON, or no object.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(None, f"expected a body of JSON, got one that can't be read ({reason:.200}); correct it") from None
    if not isinstance(found, dict):
        raise invalid(None, f"expected a JSON object as body, got {_kind(found)}; correct it")
    return found


def chat_parameters(body: Mapping[str, Any]) -> Sampling:
    """The parameters of a chat completion.

    Raises:
        ApiError: a value is wrong or not supported.
    """
    _check_known(body, CHAT)
    for key in ("tools", "tool_choice"):
        if body.get(key) not in (None, [], "none"):
            raise unsupported(key, f"expected no {key}, got some, which this server does not support; leave the key out")
    kind = body.get("response_format")
    if kind is not None and not (isinstance(kind, dict) and kind.get("type") == "text"):
        raise unsupported("response_format", "expected response_format text, got another; this server does not enforce forms")
    if body.get("modalities") not in (None, ["text"]):
        raise unsupported("modalities", "expected modalities ['text'], got others; leave the key out")
    logprobs, top = _flag(body, "logprobs"), _alternatives(body, "top_logprobs")
    if top and not logprobs:
        raise invalid("top_logprobs", "expected top_logprobs with logprobs true only, got it without; set logprobs")
    both = [key for key in ("max_tokens", "max_completion_tokens") if body.get(key) is not None]
    if len(both) == 2 and body[both[0]] != body[both[1]]:
        raise invalid(both[0], "expected max_tokens or max_completion_tokens, got both with different values; give one of them")
    return _sampling(body, limit=_limit(body, both[-1]) if both else None, logprobs=top if logprobs else None)


def completion_parameters(body: Mapping[str, Any]) -> Sampling:
    """The parameters of a completion.

    Raises:
        ApiError: a value is wrong or not supported.
    """
    _check_known(body, COMPLETION)
    logprobs = None
    if body.get("logprobs") is not None and body["logprobs"] is not False:  # 0 asks for those of the tokens alone
        logprobs = _alternatives(body, "logprobs")
    echo = _flag(body, "echo")
    if body.get("suffix") not in (None, ""):
        raise unsupported("suffix", "expected no suffix, got one, which this server does not support; leave the key out")
    limit = 16 if body.get("max_tokens") is None else _limit(body, "max_tokens", least=0 if echo else 1)
    found = _sampling(body, limit=limit, logprobs=logprobs, echo=echo)
    if body.get("best_of") is not None and (isinstance(body["best_of"], bool) or body["best_of"] != found.n):
        raise unsupported("best_of", "expected best_of to equal n, got another value; this server returns all replies")
    return found


def chat_messages(body: Mapping[str, Any]) -> list[Message]:
    """The conversation of a chat completion.

    Raises:
        ApiError: it is not a list of messages of text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", f"expected messages to be a list of at least one message, got {_kind(messages)}; correct it")
    return [_message(i, message) for i, message in enumerate(messages)]


def completion_prompts(body: Mapping[str, Any]) -> Sequence[str | list[int]]:
    """The prompts of a completion: texts, or lists of token ids.

    Raises:
        ApiError: they are something else.
    """
    prompt = body.get("prompt")
    prompts: list[Any] = prompt if isinstance(prompt, list) and prompt and not _is_ids(prompt) else [prompt]
    for one in prompts:
        if isinstance(one, str):
            _check_text("prompt", one)
        elif not (isinstance(one, list) and _is_ids(one)):
            raise invalid(
                "prompt", f"expected prompt to be a text, token ids, or a list of either, got {_kind(one)}; correct it"
            )
    return prompts


def _message(i: int, message: Any) -> Message:
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        raise invalid(where, f"expected an object for {where}, got {_kind(message)}; correct it")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise invalid(
            f"{where}.role", f"expected the role system, developer, user or assistant for {where}, got {role!r:.50}; correct it"
        )
    extra = sorted(key for key, value in message.items() if key not in ("role", "content", "name") and value not in (None, []))
    if extra:
        raise unsupported(where, f"expected role and content only for {where}, got {extra[0]!r:.50} too; leave it out")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise invalid(f"{where}.content", f"expected parts of type text in {where}, got another; send text")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise invalid(f"{where}.content", f"expected a text as content of {where}, got {_kind(content)}; correct it")
    _check_text(f"{where}.content", content)
    return {"role": "system" if role == "developer" else role, "content": content}


def _sampling(body: Mapping[str, Any], *, limit: int | None, logprobs: int | None, echo: bool = False) -> Sampling:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model", f"expected the name of a model, got {_kind(model)}; GET /v1/models lists the names")
    for key in ("frequency_penalty", "presence_penalty"):
        if body.get(key) not in (None, 0):
            raise unsupported(key, f"expected {key} 0, got another value; this server has no penalties")
    if body.get("logit_bias") not in (None, {}):
        raise unsupported("logit_bias", "expected no logit_bias, got one, which is not supported; leave the key out")
    seed = body.get("seed")
    if seed is None:
        seed = secrets.randbelow(SEEDS)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid("stream_options", f"expected an object for stream_options, got {_kind(options)}; correct it")
    stream = _flag(body, "stream")
    if options and not stream:
        raise invalid("stream_options", "expected stream_options with stream true only, got it without; leave it out")
    temperature = _number(body, "temperature", 0.0, 2.0)
    top_p = _number(body, "top_p", 0.0, 1.0)  # 0 leaves the likeliest token only
    return Sampling(
        model,
        _whole(body, "n", 1, MOST_CHOICES, default=1),
        limit,
        temperature if top_p else 0.0,
        top_p or 1.0,
        _whole({"seed": seed}, "seed", 0, SEEDS - 1, default=0),
        _stops(body.get("stop")),
        stream,
        _flag(options or {}, "include_usage"),
        logprobs,
        echo,
    )


def _stops(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops: Sequence[Any] = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else [None]
    if len(stops) > MOST_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MOST_STOP_CHARACTERS for s in stops):
        raise invalid(
            "stop",
            f"expected stop to be a text or up to {MOST_STOPS} of them, of 1 to {MOST_STOP_CHARACTERS} characters each, got "
            "something else; correct it",
        )
    return tuple(stops)


def _limit(body: Mapping[str, Any], key: str, *, least: int = 1) -> int:
    return _whole(body, key, least, 2**31 - 1, default=1)


def _alternatives(body: Mapping[str, Any], key: str) -> int:
    return _whole(body, key, 0, MOST_LOGPROBS[key], default=0)


def _whole(body: Mapping[str, Any], key: str, low: int, high: int, *, default: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise invalid(key, f"expected {key} to be a whole number from {low} to {high}, got {_shown(value)}; correct it")
    return value


def _number(body: Mapping[str, Any], key: str, low: float, high: float) -> float:
    value = body.get(key)
    if value is None:
        return 1.0
    if type(value) not in (int, float) or not low <= value <= high:
        raise invalid(key, f"expected {key} to be a number from {low:g} to {high:g}, got {_shown(value)}; correct it")
    return float(value)


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise invalid(key, f"expected {key} to be true or false, got {_shown(value)}; correct it")
    return bool(value)


def _check_known(body: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(body) - known)
    if unknown:
        raise invalid(
            unknown[0][:50], f"expected known keys in the request, got {unknown[0][:50]!a}; leave it out", "unknown_parameter"
        )


def _check_text(where: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid(where, f"expected Unicode text for {where}, got half of a surrogate pair; correct it") from None


def _is_ids(values: Sequence[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    found = kinds[type(value)]
    return f"an empty {found.split()[-1]}" if value in ("", [], {}) else found


def _shown(value: Any) -> str:
    return repr(value)[:50] if type(value) in (bool, float) or (type(value) is int and abs(value) < 10**30) else _kind(value)
