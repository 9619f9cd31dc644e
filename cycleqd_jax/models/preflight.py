"""Checks that base and experts are compatible, from configs, headers and tokenizers.

No weights are downloaded, and none are read except an output head that should be the embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.models import llama
from cycleqd_jax.models.agreement import UsedTokenizer, differences
from cycleqd_jax.models.files import hub, peft
from cycleqd_jax.models.files.checkpoint import (
    Checkpoint,
    check_tied,
    equal_head,
    open_checkpoint,
    with_head,
)
from cycleqd_jax.models.files.gguf_tokenizer import gguf_tokenizer
from cycleqd_jax.models.folder import read_json, tokenizer_files
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import InputError

__all__ = ["Preflight", "check_same_config", "local_folder", "preflight"]

# Fields that don't change the meaning of a weight, or that have a check of their own: texts are no longer than the context of
# any model, and so than its sliding window.
_NOT_COMPARED = {"source", "initializer_range", "max_position_embeddings", "sliding_window", "dtype", "vocab_size"}
_NOT_COMPARED |= {"bos_token_id", "eos_token_id", "pad_token_id"}


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Compatible models.

    Attributes:
        config: the base's, with the dtype and vocabulary size in which all models will be loaded.
        base: the base.
        experts: the experts, in order; an adapter is given by its folder.
        warnings: differences between tokenizers that the choice of a tokenizer allows.
    """

    config: LlamaConfig
    base: Checkpoint
    experts: tuple[Checkpoint | Path, ...]
    warnings: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The base and all experts except adapters."""
        return [model for model in (self.base, *self.experts) if isinstance(model, Checkpoint)]

    @property
    def context_length(self) -> int:
        """The context length that all models support."""
        return min(model.config.context_length for model in self.checkpoints)

    @property
    def download_bytes(self) -> int:
        """The bytes of weights that have not been downloaded."""
        return sum(model.nbytes for model in self.checkpoints if not model.here)

    @property
    def model_bytes(self) -> int:
        """The bytes of the weights of one loaded model."""
        return llama.num_params(self.config) * np.dtype(self.config.dtype).itemsize


def local_folder(model: str | Path, *, weights: bool) -> Path:
    """The folder (or ``.gguf`` file) of a model; a repository of the hub is downloaded.

    Args:
        model: a path, ``owner/name`` or ``owner/name@revision``.
        weights: download the weights too; those of an adapter are small and always downloaded.

    Raises:
        InputError: there is no such model, or it can't be read.
    """
    if os.path.exists(model) or not hub.is_repository(model):  # unlike Path.exists, no error for a name that is too long
        return Path(model)
    folder = hub.download(str(model))
    if peft.is_adapter(folder):
        hub.download_weights(str(model), folder)
        return folder
    return open_checkpoint(model).where if weights else folder


def preflight(
    base: str | Path,
    experts: Sequence[str | Path],
    *,
    dtype: str | None = None,
    vocab_size: int | None = None,
    tokenizer: str | Path | None = None,
    tools: bool = False,
) -> Preflight:
    """Checks that experts are fine-tunings of one base.

    Args:
        base: the base model: see :func:`~cycleqd_jax.models.files.checkpoint.open_checkpoint`.
        experts: models, or folders of LoRA adapters. An expert without tokenizer files uses the base's tokenizer.
        dtype: the dtype that all weights will be cast to; by default all models must have the same dtype.
        vocab_size: the number of rows that all embeddings and heads will be cut to; larger ids are not compared. By default
            all models must have the same vocabulary size.
        tokenizer: the model whose tokenizer and chat template will be used. The others may have other templates, and tokenizers
            that split text otherwise or have other added tokens: such differences become warnings, unless a token has two
            ids. By default it is the base, and all models must have the same tokenizer and template in use.
        tools: compare the templates with tools too.

    Raises:
        InputError: a model can't be read; or an expert differs from the base in architecture, vocabulary, dtype, tokenizer or
            chat template. The message has both values.
    """
    checkpoint = open_checkpoint(base, weights=False)
    config = checkpoint.config
    if checkpoint.here:
        check_tied(checkpoint)
    open_tokenizer = _Tokenizers()
    own = open_tokenizer(base)
    chosen = own if tokenizer is None else open_tokenizer(tokenizer)
    if tokenizer is not None and chosen is None:
        raise InputError(f"expected tokenizer files in {tokenizer}, got none; choose the tokenizer of another model")

    agreed: set[int] = set()  # tokenizers of equal files are one object

    def compare(theirs: UsedTokenizer | None, model: str | Path) -> list[str]:
        if id(theirs) in agreed:
            return []
        found = _same_tokenizer(chosen, theirs, (tokenizer or base, model), vocab_size, tokenizer is not None, tools)
        if not found:
            agreed.add(id(theirs))
        return found

    warnings = compare(own, base)
    models: list[Checkpoint | Path] = []
    sizes = {str(base): config.vocab_size}
    for expert in experts:
        folder = local_folder(expert, weights=False)
        if peft.is_adapter(folder):
            peft.check_adapter(folder, config)
            models.append(folder)
        else:
            other = open_checkpoint(expert, weights=False)
            if other.here:
                check_tied(other)
            other = _same_head(checkpoint, other)
            check_same_config(checkpoint, other, dtype)
            sizes[str(expert)] = other.config.vocab_size
            models.append(other)
        warnings += compare(open_tokenizer(expert), expert)
    smallest = min(sizes, key=lambda name: sizes[name])
    if vocab_size is None and len(set(sizes.values())) > 1:
        other = next(name for name in sizes if sizes[name] != config.vocab_size)
        raise InputError(
            f"expected vocab_size {config.vocab_size} of the base {base}, got {sizes[other]} in the expert {other}; if only "
            f"the padding differs, set model.vocab_size={sizes[smallest]} to cut all models to it"
        )
    if vocab_size is not None and vocab_size > sizes[smallest]:
        raise InputError(
            f"expected a vocab_size of at most {sizes[smallest]}, as in {smallest}, got {vocab_size}; choose a smaller one"
        )
    last = max(chosen.vocabulary.values()) if chosen else 0
    if last >= (vocab_size or config.vocab_size):
        raise InputError(
            f"expected token ids below vocab_size = {vocab_size or config.vocab_size}, got id {last} in the tokenizer of "
            f"{tokenizer or base}, for which the models have no row; set model.tokenizer to a model whose tokenizer fits, or "
            "resize the embeddings of all models"
        )
    config = config.replace(dtype=dtype or config.dtype, vocab_size=vocab_size or config.vocab_size)
    return Preflight(config, checkpoint, tuple(models), tuple(dict.fromkeys(warnings)))


def _same_head(base: Checkpoint, expert: Checkpoint) -> Checkpoint:
    """The expert with a head that is tied as the base's, where that changes nothing.

    Raises:
        InputError: one of them ties its head, and the other has a head of its own.
    """
    ours, theirs = base.config.tie_word_embeddings, expert.config.tie_word_embeddings
    if theirs and not ours and not (base.here and equal_head(base)):
        raise InputError(
            f"expected tie_word_embeddings False of the base {base.name}, got True in the expert {expert.name}; save the "
            "expert with tie_word_embeddings false and a copy of its embedding as the head, or use fine-tunings of one base"
        )
    return with_head(expert, tied=ours)


def check_same_config(base: Checkpoint, expert: Checkpoint, dtype: str | None) -> None:
    """Checks that an expert has the base's architecture; vocabularies may differ in size.

    Args:
        base: the base.
        expert: the expert, whose head is tied as the base's is.
        dtype: see :func:`preflight`.

    Raises:
        InputError: they differ. The message has both values.
    """
    for field in dataclasses.fields(LlamaConfig):
        if field.name in _NOT_COMPARED and (field.name != "dtype" or dtype is not None):
            continue
        ours, theirs = getattr(base.config, field.name), getattr(expert.config, field.name)
        if ours != theirs:
            advice = "set model.dtype to cast all models" if field.name == "dtype" else "use fine-tunings of one base"
            raise InputError(
                f"expected {field.name} {ours!r} of the base {base.name}, got {theirs!r} in the expert {expert.name}; {advice}"
            )


# --------------------------------------------------------------------------------------------------------------------
# Tokenizers


@dataclasses.dataclass
class _Tokenizers:
    """Opens the tokenizers of models; equal files are opened once."""

    opened: dict[Any, UsedTokenizer] = dataclasses.field(default_factory=dict)

    def __call__(self, model: str | Path) -> UsedTokenizer | None:
        """The tokenizer of a model or adapter; None for one without tokenizer files."""
        folder = local_folder(model, weights=False)
        if folder.suffix == ".gguf":
            if folder not in self.opened:
                opened = gguf_tokenizer(folder, template_required=False)  # another tokenizer may be chosen
                self.opened[folder] = UsedTokenizer(opened.transformers_tokenizer, None)
            return self.opened[folder]
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return None
        files = {name: hashlib.sha256((folder / name).read_bytes()).digest() for name in tokenizer_files(folder)}
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        key = json.dumps([config.get("model_type"), config.get("eos_token_id")]), tuple(sorted(files.items()))
        if key not in self.opened:
            self.opened[key] = UsedTokenizer.open(folder)
        return self.opened[key]


def _same_tokenizer(
    ours: UsedTokenizer | None,
    theirs: UsedTokenizer | None,
    names: tuple[str | Path, str | Path],
    vocab_size: int | None,
    chosen: bool,
    tools: bool,
) -> list[str]:
    """Compares the tokenizer of the run with that of a model.

    Args:
        ours: the run's.
        theirs: the model's.
        names: the names of the models that they come from.
        vocab_size: see :func:`preflight`.
        chosen: whether ``model.tokenizer`` names the run's.
        tools: see :func:`preflight`.

    Returns:
        Warnings about differences that ``model.tokenizer`` allows.

    Raises:
        InputError: they differ otherwise.
    """
    if ours is None or theirs is None:
        return []
    base, other = names
    warnings = []
    for kind, what, here, there in differences(ours, theirs, vocab_size=vocab_size, template=not chosen, tools=tools):
        if kind == "template":
            raise InputError(
                f"expected the chat template of {base} with {here}, got {there} in {other}; set model.tokenizer to the model "
                "whose tokenizer and template will be used"
            )
        if kind == "stops":
            raise InputError(
                f"expected the stop tokens {here} of {base}, got {there} in {other}; set model.tokenizer to the model whose "
                "tokenizer and stop tokens will be used"
            )
        found = f"expected {here} {what}, as in the tokenizer of {base}, got {there} in {other}"
        if kind == "swapped":
            raise InputError(f"{found}; use fine-tunings of one base")
        if not chosen:
            advice = f"set model.tokenizer to {base} or {other}, whose tokenizer all models will use"
            if kind in ("missing", "renamed"):
                owner = other if here == "none" else base
                advice = f"set model.tokenizer={owner} to keep the token" if kind == "missing" else advice
                advice += ", or model.vocab_size to cut the rows of such tokens"
            raise InputError(f"{found}; use fine-tunings of one base, or {advice}")
        warnings.append(f"warning: {found}; all models use the tokenizer of {base}")
    return warnings
