"""One reply as it is generated: the host is told after every few tokens, and says them as text.

For somebody who reads along; :class:`cycleqd_jax.engine.Engine` with a single slot. The tokens are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError, Message, NonFiniteError, Params

__all__ = ["Detokenizer", "Piece", "stream_reply", "stream_tokens"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character, or not yet one


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
        config: of the model.
        prompt_ids: at least one token.
        max_new_tokens: the most tokens of the reply; fewer where the model's context ends first.
        stop_ids: tokens that end a reply.
        tokens_per_step: how many tokens the device decodes before the host is told.

    Returns:
        An iterator of new tokens, in lists that are not empty; the stop token is included. Its ``next`` raises
        :class:`NonFiniteError` when the model computes NaN or infinite logits.

    Raises:
        InputError: no prompt token, a size below one, no stop id, an id outside the vocabulary, or a prompt that leaves no room
            for a token.
    """
    if not len(prompt_ids) or min(max_new_tokens, tokens_per_step) < 1:
        raise InputError(
            f"expected at least one prompt token, and max_new_tokens and tokens_per_step of at least 1, got {len(prompt_ids)}, "
            f"{max_new_tokens} and {tokens_per_step}: correct the request"
        )
    if len(prompt_ids) >= config.context_length:
        raise InputError(
            f"expected a prompt that leaves room for a reply in the model's context of {config.context_length} tokens, got "
            f"{len(prompt_ids)} tokens: shorten it"
        )
    # One of a few sizes: a program serves prompts of many lengths.
    length = min(max(64, 1 << (len(prompt_ids) + max_new_tokens - 1).bit_length()), config.context_length)
    pad = stop_ids[0] if stop_ids else 0
    engine = Engine(config, slots=1, max_len=length, stop_ids=stop_ids, pad_id=pad, steps=tokens_per_step)
    engine.load(params)
    told: list[list[int]] = []
    engine.submit(prompt_ids, max_new_tokens, tell=lambda ids: told.append(list(ids)))

    def blocks() -> Iterator[list[int]]:
        while engine.busy:
            try:
                engine.advance()
            except NonFiniteError:
                yield from told  # what came before it
                raise
            yield from told
            told.clear()

    return blocks()


class Detokenizer:
    """Text of a growing list of tokens: never half a character, and what has been said is never changed.

    Text is held back while its end is U+FFFD, which is how a decoder shows the first bytes of a character whose other bytes are
    in tokens to come. Only the tokens of the last piece and those since are decoded: the former because some decoders drop the
    space that a text begins with.

    Args:
        decode: the text of token ids, such as :meth:`cycleqd_jax.models.tokenizer.ChatTokenizer.decode`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._said: list[int] = []  # tokens of the last piece
        self._held: list[int] = []  # tokens since

    def add(self, ids: Sequence[int]) -> str:
        """The text that can be said now that these tokens have come; it may be empty."""
        said = ""
        for i in ids:  # one by one: a list may end within a character, and what comes before is not held back for it
            self._held.append(i)
            text = self._new_text()
            if text and not text.endswith(REPLACEMENT):
                said += text
                self._said, self._held = self._held, []
        return said

    def end(self) -> str:
        """What is still held back, when no more tokens will come."""
        return self._new_text()

    def _new_text(self) -> str:
        return self._decode(self._said + self._held)[len(self._decode(self._said)) :]


class Piece(NamedTuple):
    """Some more of a reply.

    Attributes:
        text: what is to be said after the pieces before; not empty.
        tokens: how many tokens have been generated so far.
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
    """The greedy reply to a conversation, as it is generated; together the pieces are what :class:`ChatGenerator` replies.

    Args:
        params: the weights.
        config: of the model.
        tokenizer: of the same model.
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
