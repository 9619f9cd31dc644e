"""``cycleqd generate``: one answer of one model."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.engine import ChatGenerator, Engine
from cycleqd_jax.models import chat, hf
from cycleqd_jax.types import InputError, Message

__all__ = ["generate"]


def generate(folder: str | Path, prompt: str, max_new_tokens: int) -> None:
    """Prints a model's greedy answer to one user message.

    Args:
        folder: Hugging Face folder.
        prompt: the user's message.
        max_new_tokens: most tokens of the answer.

    Raises:
        InputError: when the folder can't be read, or the prompt does not fit the model.
    """
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be positive, but is {max_new_tokens}.")
    config, params = hf.load(folder)
    tokenizer = chat.ChatTokenizer.load(folder)
    messages: list[Message] = [{"role": "user", "content": prompt}]
    length = len(tokenizer.encode(messages)) + max_new_tokens
    engine = Engine(config, slots=1, max_len=length, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    engine.load(params)
    print(ChatGenerator(engine, tokenizer).generate([messages], [max_new_tokens])[0].text)
