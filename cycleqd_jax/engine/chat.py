"""The engine behind a chat template."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from cycleqd_jax.engine.engine import Engine, Generation
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError, Message, Reply

__all__ = ["ChatGenerator"]


class ChatGenerator:
    """A :class:`cycleqd_jax.types.Generator`: conversations in, replies out.

    Args:
        engine: with the weights loaded.
        tokenizer: of the same model.
        stop: strings that end a reply; neither they nor what follows them is part of it.
        temperature: 0 is greedy.
        top_p: draw from the likeliest tokens that have this probability together.
        seed: of what is drawn: with the same seed a conversation is always continued alike.

    Raises:
        InputError: the engine does not stop at the tokenizer's stop tokens, or a stop string is empty.
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
                f"{sorted(engine.stop_ids)}: build it with stop_ids=tokenizer.stop_ids"
            )
        if isinstance(stop, str) or not all(stop):
            raise InputError(f"expected stop to be a list of strings that are not empty, got {stop!r}: correct it")
        self.engine = engine
        self.tokenizer = tokenizer
        self._stop = tuple(stop)
        self._options = {"temperature": temperature, "top_p": top_p, "seed": seed}
        self._asked: dict[int, Hashable] = {}

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int, *, individual: int = 0) -> None:
        """Asks for a reply.

        Args:
            conversation: names it until :meth:`release`; its next turn computes its new tokens alone.
            messages: all of it, ending with a user message.
            max_new_tokens: the most tokens of the reply.
            individual: whose weights, where several individuals are loaded.
        """
        number = self.engine.submit(
            self.tokenizer.encode(messages),
            max_new_tokens,
            conversation=conversation,
            individual=individual,
            ends=self._ends() if self._stop else None,
            **self._options,
        )
        self._asked[number] = conversation

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Decodes for a while.

        Returns:
            Conversations and replies that are complete.

        Raises:
            NonFiniteError: the model computes NaN or infinite logits; all requests are gone.
        """
        try:
            done = self.engine.advance()
        except BaseException:
            self._asked.clear()
            raise
        return [(self._asked.pop(number), self._reply(generation)) for number, generation in done if number in self._asked]

    def release(self, conversation: Hashable) -> None:
        """A conversation is over; a reply that is still being said is dropped."""
        self.engine.release(conversation)
        self._asked = {number: asked for number, asked in self._asked.items() if asked != conversation}

    def generate(self, conversations: Sequence[Sequence[Message]], max_new_tokens: Sequence[int]) -> list[Reply]:
        """One reply for each conversation.

        Args:
            conversations: messages, each list ending with a user message.
            max_new_tokens: the most tokens of each reply.

        Returns:
            The replies, in order.

        Raises:
            InputError: other replies have been asked for and are not there yet.
            NonFiniteError: the model computes NaN or infinite logits.
        """
        if self._asked:
            raise InputError("expected a generator without requests: finish them with advance() before generate()")
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
        ids = generation.ids
        text = self.tokenizer.decode(ids[:-1] if ids and ids[-1] in self.engine.stop_ids else ids)
        cut = min((at for at in (text.find(s) for s in self._stop) if at >= 0), default=len(text))
        return Reply(text[:cut], len(ids), generation.finish, generation.dropped)

    def _ends(self) -> Callable[[Sequence[int]], int | None]:
        """For one request: how many of its tokens it takes to say the first stop string."""

        def ends(ids: Sequence[int]) -> int | None:
            text = self.tokenizer.decode(ids)
            if not any(s in text for s in self._stop):
                return None
            low, high = 1, len(ids)  # the fewest tokens whose text has one
            while low < high:
                middle = (low + high) // 2
                if any(s in self.tokenizer.decode(ids[:middle]) for s in self._stop):
                    high = middle
                else:
                    low = middle + 1
            return low

        return ends
