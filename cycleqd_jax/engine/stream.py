"""One reply as it is generated, a few tokens or a piece of text at a time.

This is :class:`cycleqd_jax.engine.Engine` with a single slot and few steps between two host syncs; the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError, Message, NonFiniteError, Params

__all__ = ["Detokenizer", "Piece", "stream_reply", "stream_tokens"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # the decoder's text for bytes that are not a (complete) character


def stream_tokens(
    params: Params,
    config: llama.LlamaConfig,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    tokens_per_step: int = 4,
) -> Iterator[list[int]]:
    """The greedy continuation of one prompt, a few tokens at a time.

    Args:
        params: the weights.
        config: the config of the model.
        prompt_ids: the prompt, at least one token.
        max_new_tokens: the most tokens of the reply; fewer where the model's context ends first.
        stop_ids: tokens that end a reply.
        tokens_per_step: decode steps between two host syncs.

    Returns:
        An iterator of non-empty lists of new tokens, including the stop token. Its ``next`` raises :class:`NonFiniteError` when
        the model computes NaN or infinite logits.

    Raises:
        InputError: no prompt token, a size below one, no stop id, an id outside the vocabulary, or a prompt that leaves no room
            for a token.
    """
    if not len(prompt_ids) or min(max_new_tokens, tokens_per_step) < 1:
        raise InputError(
            f"expected at least one prompt token, and max_new_tokens and tokens_per_step of at least 1, got {len(prompt_ids)}, "
            f"{max_new_tokens} and {tokens_per_step}; correct the request"
        )
    if len(prompt_ids) >= config.context_length:
        raise InputError(
            f"expected a prompt that leaves room for a reply in the model's context of {config.context_length} tokens, got "
            f"{len(prompt_ids)} tokens; shorten it"
        )
    # One of a few sizes, so that few programs are compiled.
    length = min(max(64, 1 << (len(prompt_ids) + max_new_tokens - 1).bit_length()), config.context_length)
    pad = stop_ids[0] if stop_ids else 0
    engine = Engine(config, slots=1, max_len=length, stop_ids=stop_ids, pad_id=pad, steps=tokens_per_step)
    engine.load(params)
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


class Detokenizer:
    """The text of a growing list of tokens, in pieces that never end within a character and are never changed.

    Text that ends with U+FFFD is held back: that is how a decoder shows the first bytes of a character whose other bytes
    are in the next tokens. Only the tokens of the last piece and the ones after it are decoded. The last piece is included
    because some decoders drop a space at the beginning of a text.

    Args:
        decode: the text of token ids, such as :meth:`cycleqd_jax.models.tokenizer.ChatTokenizer.decode`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._last: list[int] = []  # tokens of the last piece
        self._held: list[int] = []  # tokens after it

    def add(self, ids: Sequence[int]) -> str:
        """The new text after these tokens; it may be empty."""
        new = ""
        for i in ids:  # one at a time: text before an incomplete character at the end of the list is not held back
            self._held.append(i)
            text = self._held_text()
            if text and not text.endswith(REPLACEMENT):
                new += text
                self._last, self._held = self._held, []
        return new

    def end(self) -> str:
        """The text that is held back, when no more tokens will come."""
        return self._held_text()

    def _held_text(self) -> str:
        return self._decode(self._last + self._held)[len(self._decode(self._last)) :]


class Piece(NamedTuple):
    """A part of a reply.

    Attributes:
        text: follows the text of the pieces before; not empty.
        tokens: the number of tokens generated so far.
    """

    text: str
    tokens: int


def stream_reply(
    params: Params,
    config: llama.LlamaConfig,
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    max_new_tokens: int,
    tokens_per_step: int = 4,
) -> Iterator[Piece]:
    """The greedy reply to a conversation, piece by piece; together they equal the reply of :class:`ChatGenerator`.

    Args:
        params: the weights.
        config: the config of the model.
        tokenizer: the tokenizer of the same model.
        messages: a conversation that ends with a user message.
        max_new_tokens: the most tokens of the reply; fewer where the model's context ends first.
        tokens_per_step: see :func:`stream_tokens`.

    Returns:
        An iterator of pieces; its ``next`` raises :class:`NonFiniteError` when the model computes NaN or infinite logits.

    Raises:
        InputError: as :func:`stream_tokens`, or the template refuses the conversation.
    """
    stops = tokenizer.stop_ids
    steps = stream_tokens(
        params,
        config,
        tokenizer.encode(messages),
        max_new_tokens=max_new_tokens,
        stop_ids=stops,
        tokens_per_step=tokens_per_step,
    )

    def pieces() -> Iterator[Piece]:
        detokenizer = Detokenizer(tokenizer.decode)
        count = 0
        for ids in steps:
            count += len(ids)
            if text := detokenizer.add(ids[:-1] if ids[-1] in stops else ids):
                yield Piece(text, count)
        if text := detokenizer.end():
            yield Piece(text, count)

    return pieces()
