"""A model in memory: config, weights and tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import Params

__all__ = ["Model", "load_model"]

M = TypeVar("M", bound="Model")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in memory. A subclass may add methods; its :meth:`load` returns the subclass.

    Attributes:
        config: the architecture.
        params: the weights (see :mod:`cycleqd_jax.models.llama.params`).
        tokenizer: the tokenizer with its chat template.
    """

    config: LlamaConfig
    params: Params
    tokenizer: ChatTokenizer

    @classmethod
    def load(cls: type[M], path: str | Path, *, dtype: str | None = None) -> M:
        """Loads a model: see :func:`load_model`."""
        tokenizer = load_tokenizer(path)  # first, because an error here should come before gigabytes are read
        config, params = hf.load(path, dtype=dtype)
        return cls(config, params, tokenizer)

    def save(self, folder: str | Path, card: str | None = None) -> None:
        """Writes a Hugging Face folder with weights, config and tokenizer, atomically.

        Args:
            folder: a new place, or a model folder, which is replaced.
            card: text of the model card, ``README.md``.

        Raises:
            InputError: see :func:`cycleqd_jax.models.files.hf.save`.
        """
        hf.save(folder, self.config, self.params, tokenizer=self.tokenizer, card=card)


def load_model(path: str | Path, *, dtype: str | None = None) -> Model:
    """Loads a model with its tokenizer.

    Args:
        path: a Hugging Face folder, a ``.gguf`` file, or a repository of the hub (``owner/name`` or ``owner/name@revision``),
            which is downloaded.
        dtype: cast the weights to this dtype; by default they keep theirs.

    Raises:
        InputError: there is no such model, it is not supported or corrupt, or it has no tokenizer with a chat template.
    """
    return Model.load(path, dtype=dtype)
