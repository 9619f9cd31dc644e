"""Log-probabilities of tokens in the forms of OpenAI's API."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from cycleqd_jax.engine import REPLACEMENT, Detokenizer
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.serve.jobs import Scored

__all__ = ["chat_logprobs", "completion_logprobs", "token_text"]


@functools.lru_cache(2**16)
def token_text(tokenizer: ChatTokenizer, token: int) -> str:
    r"""A token as a text: a special one by its name, and bytes that are not a character as ``bytes:\xf0\x9f``."""
    name, text = tokenizer.token(token), tokenizer.decode([token])
    if name and name.startswith("\u2581"):  # SentencePiece's sign for a space, which decoders drop at the beginning
        return name.replace("\u2581", " ")
    if not text:
        return name or ""
    if REPLACEMENT in text and (found := _bytes(name)) is not None:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
    return text


def completion_logprobs(
    tokenizer: ChatTokenizer, scored: Scored, count: int, text: str, before: Sequence[int] = ()
) -> dict[str, Any]:
    """The object ``logprobs`` of a completion.

    Args:
        tokenizer: the tokenizer of the model.
        scored: the tokens; with those of the prompt if it is echoed.
        count: alternatives of each token. The token itself is among them, or follows them.
        text: what comes before the tokens of the reply in the text of the completion.
        before: the tokens of the prompt.
    """
    tops: list[dict[str, float] | None] = []
    for token, logprob, top in zip(scored.ids, scored.logprobs, scored.top, strict=True):
        found: dict[str, float] = {}
        for other, value in (*top[:count], *([] if logprob is None else [(token, logprob)])):
            found.setdefault(token_text(tokenizer, other), value)  # of two tokens with the same text the likelier one
        tops.append(None if logprob is None else found)
    offsets = [
        *_offsets(tokenizer, scored.ids[: scored.given], text),
        *(len(text) + place for place in _offsets(tokenizer, scored.ids[scored.given :], "", before)),
    ]
    return {
        "tokens": [token_text(tokenizer, token) for token in scored.ids],
        "token_logprobs": list(scored.logprobs),
        "top_logprobs": tops if count else None,
        "text_offset": offsets,
    }


def chat_logprobs(tokenizer: ChatTokenizer, scored: Scored, count: int) -> dict[str, Any]:
    """The object ``logprobs`` of a chat completion, with ``count`` alternatives of each token."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text, shown = tokenizer.decode([token]), token_text(tokenizer, token)
        raw = _bytes(tokenizer.token(token)) if REPLACEMENT in text else None
        if raw is None:  # a special token has no text
            raw = shown.encode() if text or shown.startswith(" ") else b""
        return {"token": shown, "logprob": logprob, "bytes": list(raw)}

    content = [
        one(token, logprob) | {"top_logprobs": [one(*other) for other in top[:count]]}
        for token, logprob, top in zip(scored.ids, scored.logprobs, scored.top, strict=True)
    ]
    return {"content": content, "refusal": None}


def _offsets(tokenizer: ChatTokenizer, ids: Sequence[int], text: str, before: Sequence[int] = ()) -> Iterator[int]:
    """Where each token begins in their text. Special tokens are in it where ``text`` has their names."""
    detokenizer, start = Detokenizer(tokenizer.decode, before), 0
    for token in ids:
        yield start
        name = tokenizer.token(token)
        if name and text.startswith(name, start) and not tokenizer.decode([token]):
            start += len(name)
        else:
            start += len(detokenizer.add([token]))


def _bytes_of_characters() -> dict[str, int]:
    """The bytes behind the characters of byte-level vocabularies: GPT-2's table, the other way round."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _bytes_of_characters()


def _bytes(token: str | None) -> bytes | None:
    """The bytes of a token of a vocabulary of bytes (``<0xF0>``, or byte-level BPE); None for other tokens."""
    if token is None:
        return None
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return bytes(BYTES[character] for character in token) if all(character in BYTES for character in token) else None
