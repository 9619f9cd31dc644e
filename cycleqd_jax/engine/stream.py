"""One reply as it is generated, a few tokens or a piece of text at a time.

The engine should have a single slot and few steps between two host syncs; the tokens do not depend on either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cycleqd_jax.engine.detokenizer import Detokenizer
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError, Message, NonFiniteError

__all__ = ["Piece", "stream_reply", "stream_tokens"]


def stream_tokens(engine: Engine, prompt_ids: Sequence[int], *, max_new_tokens: int) -> Iterator[list[int]]:
    """The greedy continuation of one prompt, a few tokens at a time.

    Args:
        engine: an engine with loaded weights and no other requests.
        prompt_ids: the prompt, at least one token.
        max_new_tokens: the most tokens of the reply; fewer where the engine's ``max_len`` ends first.

    Returns:
        An iterator of non-empty lists of new tokens, including the stop token: those of one prefill, then those between two
        host syncs. Its ``next`` raises :class:`NonFiniteError` when the model computes NaN or infinite logits.

    Raises:
        InputError: the engine is busy, there is no prompt token, ``max_new_tokens`` is below one, an id is outside the
            vocabulary, or the prompt leaves no room for a token.
    """
    if engine.busy:
        raise InputError("expected an engine without requests, got one that is busy; finish them, or use another engine")
    if len(prompt_ids) >= engine.max_len:
        raise InputError(
            f"expected a prompt that leaves room for a reply in the engine's {engine.max_len} tokens, got {len(prompt_ids)} "
            "tokens; shorten it"
        )
    new: list[list[int]] = []
    engine.submit(prompt_ids, max_new_tokens, on_tokens=lambda ids: new.append(list(ids)))

    def blocks() -> Iterator[list[int]]:
        while engine.busy:
            try:
                engine.advance()
            except NonFiniteError:
                yield from new  # the tokens before the error
                raise
            yield from new
            new.clear()

    return blocks()


class Piece(NamedTuple):
    """A part of a reply.

    Attributes:
        text: follows the text of the pieces before; not empty.
        tokens: the number of tokens generated so far.
    """

    text: str
    tokens: int


def stream_reply(
    engine: Engine, tokenizer: ChatTokenizer, messages: Sequence[Message], *, max_new_tokens: int
) -> Iterator[Piece]:
    """The greedy reply to a conversation, piece by piece; together they equal the reply of :class:`ChatGenerator`.

    Args:
        engine: an engine with loaded weights and no other requests, which stops at the tokenizer's stop ids.
        tokenizer: the tokenizer of the same model.
        messages: a conversation that ends with a user message.
        max_new_tokens: the most tokens of the reply; fewer where the engine's ``max_len`` ends first.

    Returns:
        An iterator of pieces; its ``next`` raises :class:`NonFiniteError` when the model computes NaN or infinite logits.

    Raises:
        InputError: as :func:`stream_tokens`, or the template refuses the conversation.
    """
    steps = stream_tokens(engine, tokenizer.encode(messages), max_new_tokens=max_new_tokens)

    def pieces() -> Iterator[Piece]:
        detokenizer = Detokenizer(tokenizer.decode)
        count = 0
        for ids in steps:
            count += len(ids)
            if text := detokenizer.add(ids[:-1] if ids[-1] in engine.stop_ids else ids):
                yield Piece(text, count)
        if text := detokenizer.end():
            yield Piece(text, count)

    return pieces()
