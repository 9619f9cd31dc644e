"""One reply as it is generated: the host is told after every few tokens, and says them as text.

:class:`cycleqd_jax.engine.Engine` decodes whole batches and returns when they are done; this is for somebody who reads along.
The tokens are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.engine.generate import NonFiniteError, default_buckets
from cycleqd_jax.models import llama
from cycleqd_jax.models.chat import ChatTokenizer
from cycleqd_jax.types import Array, Bool, InputError, Int, Message, Params

__all__ = ["Detokenizer", "Piece", "stream_reply", "stream_tokens"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character, or not yet one


class _State(NamedTuple):
    cache: llama.KVCache
    token: Int[Array, ""]  # the last one, not yet in the cache
    position: Int[Array, ""]  # where it goes
    left: Int[Array, ""]  # how many tokens may follow


class _Block(NamedTuple):
    """What the host is told; the state itself stays on the device and is donated."""

    ids: Int[Array, " steps"]
    count: Int[Array, ""]
    ended: Bool[Array, ""]
    finite: Bool[Array, ""]


def _choose(
    params: Params, config: llama.LlamaConfig, hidden: Array, left: Array, stop_ids: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """The next token, how many may follow it, and whether the logits are numbers."""
    logits = llama.unembed(params, config, hidden)  # [vocab]
    token = jnp.argmax(logits).astype(jnp.int32)
    finite = jnp.isfinite(logits).all()
    stopped = (token == jnp.asarray(stop_ids, jnp.int32)).any()
    return token, jnp.where(stopped | ~finite, 0, left - 1), finite


@functools.partial(jax.jit, static_argnames=("config", "new", "stop_ids"))
def _prefill(
    params: Params,
    tokens: Int[Array, "1 prompt"],
    length: Int[Array, ""],
    limit: Int[Array, ""],
    *,
    config: llama.LlamaConfig,
    new: int,
    stop_ids: tuple[int, ...],
) -> tuple[_State, _Block]:
    """The first token, and a cache with room for ``new`` more."""
    cache = llama.init_cache(config, 1, tokens.shape[1])
    hidden, cache = llama.hidden_states(params, config, tokens, cache=cache, lengths=length[None])
    assert cache is not None
    token, left, finite = _choose(params, config, hidden[0, length - 1], limit, stop_ids)
    return _State(llama.extend_cache(cache, new), token, length, left), _Block(token[None], jnp.int32(1), left == 0, finite)


@functools.partial(jax.jit, static_argnames=("config", "steps", "stop_ids"), donate_argnames=("state",))
def _advance(
    params: Params, state: _State, *, config: llama.LlamaConfig, steps: int, stop_ids: tuple[int, ...]
) -> tuple[_State, _Block]:
    """Up to ``steps`` more tokens."""

    def body(carry: tuple[_State, _Block]) -> tuple[_State, _Block]:
        (cache, token, position, left), (ids, count, _, _) = carry
        hidden, cache = llama.hidden_states(params, config, token[None, None], position[None, None], cache=cache)
        assert cache is not None
        token, left, finite = _choose(params, config, hidden[0, 0], left, stop_ids)
        return _State(cache, token, position + 1, left), _Block(ids.at[count].set(token), count + 1, left == 0, finite)

    empty = _Block(jnp.zeros(steps, jnp.int32), jnp.int32(0), jnp.bool_(False), jnp.bool_(True))
    return jax.lax.while_loop(lambda carry: (carry[1].count < steps) & ~carry[1].ended, body, (state, empty))


def stream_tokens(
    params: Params,
    config: llama.LlamaConfig,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    tokens_per_step: int = 4,
) -> Iterator[list[int]]:
    """Decodes one prompt greedily and yields the tokens of :meth:`Engine.generate` as they come.

    Two programs are compiled for each pair of prompt and reply bucket (:func:`default_buckets` of the model's context), once in
    a process, whatever the weights.

    Args:
        params: the weights.
        config: of the model.
        prompt_ids: at least one token.
        max_new_tokens: the most tokens of the reply; fewer where the model's context ends first.
        stop_ids: tokens that end the reply.
        tokens_per_step: how many tokens the device decodes before the host is told.

    Returns:
        An iterator of new tokens: a list of one, then lists of ``tokens_per_step`` or, at the end, fewer; the stop token is
        included. Its ``next`` raises :class:`NonFiniteError` when the model computes NaN or infinite logits.

    Raises:
        InputError: no prompt token, a size below one, no stop id, an id outside the vocabulary, or a prompt that leaves no room
            for a token.
    """
    if not len(prompt_ids) or min(max_new_tokens, tokens_per_step) < 1:
        raise InputError(
            f"expected at least one prompt token, and max_new_tokens and tokens_per_step of at least 1, got {len(prompt_ids)}, "
            f"{max_new_tokens} and {tokens_per_step}: correct the request"
        )
    outside = [i for i in (*prompt_ids, *stop_ids) if not 0 <= i < config.vocab_size]
    if outside or not stop_ids:
        raise InputError(
            f"expected prompt ids and one or more stop ids below the model's vocabulary size {config.vocab_size}, got "
            f"{outside or 'no stop id'}: check that the tokenizer belongs to the model"
        )
    limit = min(max_new_tokens, config.context_length - len(prompt_ids))
    if limit < 1:
        raise InputError(
            f"expected a prompt that leaves room for a reply in the model's context of {config.context_length} tokens, got "
            f"{len(prompt_ids)} tokens: shorten it"
        )
    buckets = default_buckets(config.context_length)
    width, new = (next(bucket for bucket in buckets if bucket >= size) for size in (len(prompt_ids), limit))
    tokens = np.full((1, width), stop_ids[0], np.int32)  # what pads is masked
    tokens[0, : len(prompt_ids)] = prompt_ids
    length, stops = np.int32(len(prompt_ids)), tuple(stop_ids)

    def blocks() -> Iterator[list[int]]:
        state, block = _prefill(params, tokens, length, np.int32(limit), config=config, new=new, stop_ids=stops)
        while True:
            ids, count, ended, finite = jax.device_get(block)
            if not finite:
                raise NonFiniteError("the model's logits are not finite: its weights are broken")
            yield ids[:count].tolist()
            if ended:
                return
            state, block = _advance(params, state, config=config, steps=tokens_per_step, stop_ids=stops)

    return blocks()


class Detokenizer:
    """Text of a growing list of tokens: never half a character, and what has been said is never changed.

    Text is held back while its end is U+FFFD, which is how a decoder shows the first bytes of a character whose other bytes are
    in tokens to come. Only the tokens of the last piece and those since are decoded: the former because some decoders drop the
    space that a text begins with.

    Args:
        decode: the text of token ids, such as :meth:`cycleqd_jax.models.chat.ChatTokenizer.decode`.
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
