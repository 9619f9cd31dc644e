"""A model that generates replies: weights and tokenizer behind an engine with one slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.engine.stream import stream_reply
from cycleqd_jax.models import model
from cycleqd_jax.types import InputError, Message

__all__ = ["Model", "load_model"]


class Model(model.Model):
    """A model in memory that generates replies; see :func:`load_model`."""

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """The reply to one conversation. For many at once, use :class:`~cycleqd_jax.engine.ChatGenerator`.

        Args:
            prompt: a user message, or messages that end with one.
            max_new_tokens: most tokens of the reply; fewer where the model's context ends first.
            stop: strings that end the reply and are not part of it.
            temperature: 0 is greedy decoding.
            top_p: sample from the likeliest tokens whose probabilities sum up to this.
            seed: the seed of sampling.

        Returns:
            The text of the reply.

        Raises:
            InputError: the prompt does not fit the model's context, or an argument is out of range.
            NonFiniteError: the model computes NaN or infinite logits.
        """
        messages = _messages(prompt)
        length = min(len(self.tokenizer.encode(messages)) + max_new_tokens, self.config.context_length)
        engine = Engine(
            self.config,
            slots=1,
            max_len=max(length, 2),
            stop_ids=self.tokenizer.stop_ids,
            pad_id=self.tokenizer.pad_id,
        )
        engine.load(self.params)
        generator = ChatGenerator(engine, self.tokenizer, stop=stop, temperature=temperature, top_p=top_p, seed=seed)
        (reply,) = generator.generate([messages], [max_new_tokens])
        if reply.finish == "refused":
            raise InputError(
                f"expected a prompt that leaves room in the model's {self.config.context_length} positions, got a longer one; "
                "shorten it"
            )
        return reply.text

    def stream(self, prompt: str | Sequence[Message], *, max_new_tokens: int = 256) -> Iterator[str]:
        """The greedy reply as it is generated, in pieces of text.

        Args:
            prompt: a user message, or messages that end with one.
            max_new_tokens: most tokens of the reply.

        Raises:
            InputError: see :meth:`generate`.
        """
        pieces = stream_reply(self.params, self.config, self.tokenizer, _messages(prompt), max_new_tokens=max_new_tokens)
        return (piece.text for piece in pieces)


def load_model(path: str | Path, *, dtype: str | None = None) -> Model:
    """Loads a model with its tokenizer.

    Args:
        path: a Hugging Face folder, a ``.gguf`` file, or a repository of the hub (``owner/name`` or ``owner/name@revision``),
            which is downloaded.
        dtype: cast the weights to this dtype; by default they keep theirs.

    Returns:
        The model: ``.config``, ``.params``, ``.tokenizer``, ``.generate()``, ``.stream()`` and ``.save()``.

    Raises:
        InputError: there is no such model, it is not supported or corrupt, or it has no tokenizer with a chat template.
    """
    return Model.load(path, dtype=dtype)


def _messages(prompt: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
