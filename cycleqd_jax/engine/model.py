"""A model in memory that generates replies: config, weights and tokenizer behind an engine with one slot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.engine.stream import Piece, stream_reply
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer, open_checkpoint
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError, Message, Params

__all__ = ["Model", "load_model"]

STEPS = 4
"""Decode steps between two host syncs: few, so that a stream is smooth and little is decoded after the end of a reply."""

MIN_LENGTH = 64
"""Fewest tokens of prompt and reply that an engine is built for."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model in memory; see :func:`load_model`. Two models are equal only if they are the same object.

    The engine of the last reply is kept, with its own copy of the weights.

    Attributes:
        config: the architecture.
        params: the weights (see :mod:`cycleqd_jax.models.llama.params`).
        tokenizer: the tokenizer with its chat template.

    >>> import jax
    >>> from cycleqd_jax.engine import Model
    >>> from cycleqd_jax.models import llama
    >>> from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
    >>> tokenizer = train_tiny_tokenizer(["What is 2 + 3?"], 280)
    >>> config = llama.LlamaConfig(tokenizer.vocab_size, 16, 16, 1, 2, 1, 8)  # a tiny model with random weights
    >>> params = llama.init_params(config, jax.random.key(0))
    >>> model = Model(config, params, tokenizer)
    >>> model
    Model(llama, 1 layers of width 16, 10,544 parameters, float32)
    >>> type(model.generate("What is 2 + 3?", max_new_tokens=4))
    <class 'str'>
    """

    config: llama.LlamaConfig
    params: Params
    tokenizer: ChatTokenizer
    _kept: list[Engine] = dataclasses.field(default_factory=list, init=False)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Model({config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
            f"{llama.num_params(config):,} parameters, {config.dtype})"
        )

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
        engine = self._engine_for(messages, max_new_tokens)
        generator = ChatGenerator(engine, self.tokenizer, stop=stop, temperature=temperature, top_p=top_p, seed=seed)
        (reply,) = generator.generate([messages], [max_new_tokens])
        return reply.text

    def stream(self, prompt: str | Sequence[Message], *, max_new_tokens: int = 256) -> Iterator[str]:
        """The greedy reply as it is generated, in pieces of text.

        Args:
            prompt: a user message, or messages that end with one.
            max_new_tokens: most tokens of the reply.

        Raises:
            InputError: see :meth:`generate`.
        """
        return (piece.text for piece in self.stream_pieces(prompt, max_new_tokens=max_new_tokens))

    def stream_pieces(self, prompt: str | Sequence[Message], *, max_new_tokens: int = 256) -> Iterator[Piece]:
        """The greedy reply as :meth:`stream` gives it, with the number of tokens generated so far."""
        messages = _messages(prompt)
        engine = self._engine_for(messages, max_new_tokens)
        return stream_reply(engine, self.tokenizer, messages, max_new_tokens=max_new_tokens)

    def save(self, folder: str | Path, card: str | None = None) -> None:
        """Writes a Hugging Face folder with weights, config and tokenizer, atomically.

        Args:
            folder: a new place, or a model folder, which is replaced.
            card: text of the model card, ``README.md``.

        Raises:
            InputError: see :func:`cycleqd_jax.models.files.hf.save`.
        """
        hf.save(folder, self.config, self.params, tokenizer=self.tokenizer, card=card)

    def _engine_for(self, messages: Sequence[Message], max_new_tokens: int) -> Engine:
        """An engine without requests that has room for a prompt and its reply.

        Lengths are rounded up to powers of two, so that few programs are compiled. The last engine is used again where it has
        the same size and no reply is under way.

        Raises:
            InputError: the prompt does not fit the model's context.
        """
        if type(max_new_tokens) is not int:
            raise InputError(f"expected max_new_tokens to be a whole number, got {max_new_tokens!r}; correct it")
        tokens, most = len(self.tokenizer.encode(messages)), self.config.context_length
        if tokens >= most:
            raise InputError(
                f"expected a prompt that leaves room for a reply in the model's {most} positions, got {tokens} tokens; "
                "shorten it"
            )
        length = min(max(MIN_LENGTH, 1 << (tokens + max_new_tokens - 1).bit_length()), most)
        if not self._kept or self._kept[0].max_len != length or self._kept[0].busy:
            self._kept.clear()  # frees its weights before they are copied again
            engine = Engine(
                self.config,
                slots=1,
                max_len=length,
                stop_ids=self.tokenizer.stop_ids,
                pad_id=self.tokenizer.pad_below(self.config.vocab_size),
                steps=STEPS,
            )
            engine.load(self.params)
            self._kept.append(engine)
        return self._kept[0]


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
    open_checkpoint(path, weights=False)  # so that a folder without a model is not reported as one without a tokenizer
    tokenizer = load_tokenizer(path)  # before gigabytes are downloaded and read
    config, params = hf.load(path, dtype=dtype)
    return Model(config, params, tokenizer)


def _messages(prompt: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
