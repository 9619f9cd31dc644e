"""The engine behind a chat template."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from cycleqd_jax.engine.detokenizer import reply_text, stops_at
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.engine.requests import Generation
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError, Message, Reply

__all__ = ["ChatGenerator"]


class ChatGenerator:
    """A :class:`cycleqd_jax.types.Generator`: conversations in, replies out.

    Args:
        engine: an engine with loaded weights.
        tokenizer: the tokenizer of the same model.
        stop: strings that end a reply; the reply is cut before the first of them.
        temperature: 0 is greedy.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: the seed of the draws: with the same seed the reply to a conversation is always the same.

    Raises:
        InputError: the engine does not stop at the tokenizer's stop tokens, or a stop string is empty.

    >>> import jax
    >>> from cycleqd_jax.engine import ChatGenerator, Engine
    >>> from cycleqd_jax.models import llama
    >>> from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
    >>> tokenizer = train_tiny_tokenizer(["What is 2 + 3?"], 280)
    >>> config = llama.LlamaConfig(tokenizer.vocab_size, 16, 16, 1, 2, 1, 8)  # a tiny model with random weights
    >>> params = llama.init_params(config, jax.random.key(0))
    >>> ends = {"stop_ids": tokenizer.stop_ids, "pad_id": tokenizer.pad_id}
    >>> engine = Engine(config, slots=1, max_len=64, steps=4, share_prefixes=False, **ends)
    >>> engine.load(params)
    >>> questions = [[{"role": "user", "content": f"What is {n} + 3?"}] for n in (2, 4)]
    >>> replies = ChatGenerator(engine, tokenizer).generate(questions, [4, 4])
    >>> [0 < reply.tokens <= 4 for reply in replies]
    [True, True]
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        *,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        if set(engine.stop_ids) != set(tokenizer.stop_ids):
            raise InputError(
                f"expected an engine with the tokenizer's stop ids {sorted(tokenizer.stop_ids)}, got "
                f"{sorted(engine.stop_ids)}; build it with stop_ids=tokenizer.stop_ids"
            )
        if isinstance(stop, str) or not all(stop):
            raise InputError(f"expected stop to be a list of strings that are not empty, got {stop!r}; correct it")
        self.engine = engine
        self.tokenizer = tokenizer
        self._stop = tuple(stop)
        self._options = {"temperature": temperature, "top_p": top_p, "seed": seed}
        self._names: dict[int, Hashable] = {}

    def submit(
        self,
        conversation: Hashable,
        messages: Sequence[Message],
        max_new_tokens: int,
        *,
        individual: int = 0,
        drafts: Sequence[Sequence[int]] = (),
    ) -> None:
        """Queues a request for one reply.

        Args:
            conversation: names the conversation until :meth:`release`; its next turn computes only the new tokens.
            messages: the whole conversation, ending with a user message.
            max_new_tokens: the most tokens of the reply.
            individual: whose weights to use, where those of several individuals are loaded.
            drafts: token ids of replies that this one may repeat in part (:meth:`cycleqd_jax.engine.Engine.submit`).
        """
        number = self.engine.submit(
            self.tokenizer.encode(messages),
            max_new_tokens,
            conversation=conversation,
            individual=individual,
            drafts=drafts,
            stop_when=stops_at(self.tokenizer.decode, self._stop) if self._stop else None,
            **self._options,
        )
        self._names[number] = conversation

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Decodes until the next host sync.

        Returns:
            Conversations whose replies are complete, and the replies.

        Raises:
            NonFiniteError: the model computes NaN or infinite logits; all requests are dropped.
        """
        try:
            done = self.engine.advance()
        except BaseException:
            self._names.clear()
            raise
        return [(self._names.pop(number), self._reply(generation)) for number, generation in done if number in self._names]

    def release(self, conversation: Hashable) -> None:
        """Ends a conversation; a reply that is being generated is dropped."""
        self.engine.release(conversation)
        self._names = {number: name for number, name in self._names.items() if name != conversation}

    def generate(self, conversations: Sequence[Sequence[Message]], max_new_tokens: Sequence[int]) -> list[Reply]:
        """One reply for each conversation.

        Args:
            conversations: messages, each list ending with a user message.
            max_new_tokens: the most tokens of each reply.

        Returns:
            The replies, in order.

        Raises:
            InputError: the generator has other requests.
            NonFiniteError: the model computes NaN or infinite logits.
        """
        if self._names:
            raise InputError("expected a generator without requests, got one that is busy; finish them with advance() first")
        names = [object() for _ in conversations]
        replies: dict[Hashable, Reply] = {}
        try:
            for name, messages, limit in zip(names, conversations, max_new_tokens, strict=True):
                self.submit(name, messages, limit)
            while len(replies) < len(names):
                for name, reply in self.advance():
                    replies[name] = reply
                    self.release(name)
        finally:
            for name in names:
                self.release(name)
        return [replies[name] for name in names]

    def _reply(self, generation: Generation) -> Reply:
        text = reply_text(self.tokenizer.decode, generation.ids, self._stop, self.engine.stop_ids)
        return Reply(text, len(generation.ids), generation.finish, generation.dropped, generation.ids)
