"""Checks that base and experts are compatible, from configs, headers and tokenizers; no weights are read or downloaded."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hub, peft
from cycleqd_jax.models.files.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from cycleqd_jax.models.folder import read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import InputError

__all__ = ["Preflight", "local_folder", "preflight"]

# Fields that don't change the meaning of a weight, or that have a check of their own.
_NOT_COMPARED = {"source", "initializer_range", "max_position_embeddings", "dtype", "vocab_size"}
_NOT_COMPARED |= {"bos_token_id", "eos_token_id", "pad_token_id"}


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Compatible models.

    Attributes:
        config: the base's, with the dtype and vocabulary size in which all models will be loaded.
        base: the base.
        experts: the experts, in order; an adapter is given by its folder.
    """

    config: LlamaConfig
    base: Checkpoint
    experts: tuple[Checkpoint | Path, ...]

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
) -> Preflight:
    """Checks that experts are fine-tunings of one base.

    Args:
        base: the base model: see :func:`~cycleqd_jax.models.files.checkpoint.open_checkpoint`.
        experts: models, or folders of LoRA adapters. An expert without tokenizer files uses the base's tokenizer.
        dtype: the dtype that all weights will be cast to; by default all models must have the same dtype.
        vocab_size: the number of rows that all embeddings and heads will be cut to; larger ids are not compared. By default
            all models must have the same vocabulary size.
        tokenizer: the model whose tokenizer and chat template will be used; the others may have other templates. By default
            it is the base, and all models must have the same template.

    Raises:
        InputError: a model can't be read; or an expert differs from the base in architecture, vocabulary, dtype, tokenizer or
            chat template. The message has both values.
    """
    checkpoint = open_checkpoint(base, weights=False)
    config = checkpoint.config
    facts = _tokenizer_facts(base, tokenizer is None)
    chosen = facts if tokenizer is None else _tokenizer_facts(tokenizer, False)
    if tokenizer is not None and chosen is None:
        raise InputError(f"expected tokenizer files in {tokenizer}, got none; choose the tokenizer of another model")
    _same_tokenizer(facts, chosen, base, tokenizer or base, vocab_size)
    models: list[Checkpoint | Path] = []
    sizes = {str(base): config.vocab_size}
    for expert in experts:
        folder = local_folder(expert, weights=False)
        if peft.is_adapter(folder):
            peft.check_adapter(folder, config)
            models.append(folder)
        else:
            other = open_checkpoint(expert, weights=False)
            _same_config(checkpoint, other, dtype)
            sizes[str(expert)] = other.config.vocab_size
            models.append(other)
        _same_tokenizer(chosen, _tokenizer_facts(expert, tokenizer is None), tokenizer or base, expert, vocab_size)
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
    last = max(chosen["vocabulary"].values()) if chosen else 0
    if last >= (vocab_size or config.vocab_size):
        raise InputError(
            f"expected token ids below vocab_size = {vocab_size or config.vocab_size}, got id {last} in the tokenizer of "
            f"{tokenizer or base}; use the model's own tokenizer"
        )
    config = config.replace(dtype=dtype or config.dtype, vocab_size=vocab_size or config.vocab_size)
    return Preflight(config, checkpoint, tuple(models))


def _same_config(base: Checkpoint, expert: Checkpoint, dtype: str | None) -> None:
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


def _tokenizer_facts(model: str | Path, template: bool) -> dict[str, Any] | None:
    """The parts of a tokenizer that determine the ids of a text; ``None`` for a model without tokenizer files.

    Args:
        model: a model or adapter.
        template: include the chat template and the stop tokens.
    """
    folder = local_folder(model, weights=False)
    if folder.suffix == ".gguf":
        tokenizer = load_tokenizer(folder)
        content, chat = tokenizer.backend_json(), tokenizer.chat_template
    elif (folder / "tokenizer.json").is_file():
        content, chat = read_json(folder / "tokenizer.json"), _chat_template(folder)
    elif any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        tokenizer = load_tokenizer(folder)
        content, chat = tokenizer.backend_json(), tokenizer.chat_template
    else:
        return None
    try:
        entries = content["model"]["vocab"]
        pairs = entries.items() if isinstance(entries, dict) else ((token, i) for i, (token, _) in enumerate(entries))
        facts = {
            "vocabulary": {**dict(pairs), **{token["content"]: token["id"] for token in content.get("added_tokens") or []}},
            "merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"].get("merges") or []],
            **{part: content.get(part) for part in ("pre_tokenizer", "normalizer", "decoder")},
            # a missing entry means the same as null or false
            "model": {key: value for key, value in content["model"].items() if key not in ("vocab", "merges") and value},
            "added tokens": sorted(
                [token["content"], *(bool(token.get(flag)) for flag in ("special", "lstrip", "rstrip", "normalized"))]
                for token in content.get("added_tokens") or []
            ),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected a tokenizer with a vocabulary in {folder}, got {error!r}; restore tokenizer.json"
        ) from error
    return {**facts, "chat template": chat, "stop tokens": _stop_tokens(folder)} if template else facts


def _chat_template(folder: Path) -> str | None:
    """The chat template of a folder, from any of its three places."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name).get("chat_template")
            if isinstance(found, list):  # several templates with names
                found = {item.get("name"): item.get("template") for item in found}.get("default")
            if found is not None:
                return str(found)
    return None


def _stop_tokens(folder: Path) -> Any:
    """``eos_token_id`` of a folder's generation_config.json."""
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    return sorted(found, key=str) if isinstance(found, list) else found if found is None else [found]


def _same_tokenizer(
    ours: dict[str, Any] | None, theirs: dict[str, Any] | None, base: str | Path, other: str | Path, vocab_size: int | None
) -> None:
    if ours is None or theirs is None:
        return

    def differ(what: str, here: Any, there: Any) -> InputError:
        return InputError(
            f"expected {here} {what}, as in the tokenizer of {base}, got {there} in {other}; use fine-tunings of one base"
        )

    known, found = ours["vocabulary"], theirs["vocabulary"]
    for token in sorted(known.keys() | found.keys()):
        here, there = known.get(token), found.get(token)
        if here != there and any(i is not None and (vocab_size is None or i < vocab_size) for i in (here, there)):
            raise differ(f"for the token {token!r}", *("none" if i is None else f"id {i}" for i in (here, there)))
    parts = ["merges", "pre_tokenizer", "normalizer", "decoder", "model"]  # the post_processor is not used for chats
    for what in parts if vocab_size is not None else [*parts, "added tokens"]:
        if ours[what] != theirs[what]:
            here, there = _difference(json.dumps(ours[what]), json.dumps(theirs[what]))
            raise differ(f"as its {what}", here, there)
    if "chat template" in ours and "chat template" in theirs and ours["chat template"] != theirs["chat template"]:
        here, there = _difference(ours["chat template"], theirs["chat template"])
        raise InputError(
            f"expected the chat template of {base} with {here}, got {there} in {other}; set model.tokenizer to the model whose "
            "tokenizer and template will be used"
        )

    here, there = ours.get("stop tokens"), theirs.get("stop tokens")
    if here is not None and there is not None and here != there:
        raise InputError(
            f"expected the stop tokens {here} of {base}, got {there} in generation_config.json of {other}; set model.tokenizer "
            "to the model whose tokenizer and stop tokens will be used"
        )


def _difference(ours: str | None, theirs: str | None) -> tuple[str, str]:
    """Short quotations from two texts around their first difference."""
    if ours is None or theirs is None:
        return "none" if ours is None else repr(ours[:60]), "none" if theirs is None else repr(theirs[:60])
    start = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return repr(ours[max(0, start - 20) : start + 40]), repr(theirs[max(0, start - 20) : start + 40])
