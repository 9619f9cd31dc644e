"""The engine behind a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd_jax.engine.generate import Engine
from cycleqd_jax.models.chat import ChatTokenizer
from cycleqd_jax.types import InputError, Message, Reply

__all__ = ["ChatGenerator"]


class ChatGenerator:
    """A :class:`cycleqd_jax.types.Generator`: conversations in, replies out.

    Args:
        engine: with the weights loaded.
        tokenizer: of the same model.

    Raises:
        InputError: the engine does not stop at the tokenizer's stop tokens.
    """

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer) -> None:
        if set(engine.stop_ids) != set(tokenizer.stop_ids):
            raise InputError(
                f"expected an engine with the tokenizer's stop ids {sorted(tokenizer.stop_ids)}, got "
                f"{sorted(engine.stop_ids)}: "
                "build it with stop_ids=tokenizer.stop_ids"
            )
        self.engine = engine
        self.tokenizer = tokenizer

    def generate(self, conversations: Sequence[Sequence[Message]], max_new_tokens: Sequence[int]) -> list[Reply]:
        """One greedy reply for each conversation.

        Args:
            conversations: messages, each list ending with a user message.
            max_new_tokens: the most tokens of each reply.

        Returns:
            The replies, in order.

        Raises:
            NonFiniteError: the model computes NaN or infinite logits.
        """
        prompts = [self.tokenizer.encode(messages) for messages in conversations]
        replies = []
        for generation in self.engine.generate(prompts, max_new_tokens):
            said = generation.ids[:-1] if generation.finish == "stop" else generation.ids
            replies.append(Reply(self.tokenizer.decode(said), len(generation.ids), generation.finish))
        return replies
