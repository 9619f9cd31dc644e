"""Whether base and experts belong together, from configs, headers and tokenizers alone: nothing large is read or downloaded."""

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
from cycleqd_jax.models.files.safetensors import read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import InputError

__all__ = ["Preflight", "local_folder", "preflight"]

# Fields that don't change what a weight means, or are compared by themselves.
_NOT_COMPARED = {"source", "initializer_range", "max_position_embeddings", "dtype", "vocab_size"}
_NOT_COMPARED |= {"bos_token_id", "eos_token_id", "pad_token_id"}


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Models that belong together.

    Attributes:
        config: of every model of the run: the base's, with the dtype and vocabulary they will be read in.
        base: the base.
        experts: experts, in order; an adapter is its folder.
    """

    config: LlamaConfig
    base: Checkpoint
    experts: tuple[Checkpoint | Path, ...]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Base and experts, but for adapters."""
        return [model for model in (self.base, *self.experts) if isinstance(model, Checkpoint)]

    @property
    def context_length(self) -> int:
        """Most tokens that every model can read."""
        return min(model.config.context_length for model in self.checkpoints)

    @property
    def download_bytes(self) -> int:
        """Weights that are still to be downloaded."""
        return sum(model.nbytes for model in self.checkpoints if not model.here)

    @property
    def model_bytes(self) -> int:
        """Weights of one model of the run."""
        return llama.num_params(self.config) * np.dtype(self.config.dtype).itemsize


def local_folder(model: str | Path, *, weights: bool) -> Path:
    """The folder (or ``.gguf`` file) of a model that may be a repository of the hub, which is then downloaded.

    Args:
        model: a path, ``owner/name`` or ``owner/name@revision``.
        weights: download the weights too; those of an adapter, which is small, are downloaded in any case.

    Raises:
        InputError: there is no such model, or it can't be read.
    """
    if os.path.exists(model) or not hub.is_repository(model):  # Path.exists raises for a name that is too long
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
        experts: the experts, likewise, or folders of LoRA adapters. One without tokenizer files is taken to use the base's.
        dtype: all weights will be cast to this one; by default all must have the same.
        vocab_size: all embeddings and heads will be cut to so many rows, and ids beyond are not compared; by default all must
            have the same.
        tokenizer: the model whose tokenizer and chat template will be used, whatever templates the others have; the
            base by default, and all must have the same template.

    Raises:
        InputError: a model can't be read; or an expert has another architecture, vocabulary, dtype, tokenizer or chat template
            than the base, with both values.
    """
    checkpoint = open_checkpoint(base, weights=False)
    config = checkpoint.config
    facts = _tokenizer_facts(base, tokenizer is None)
    chosen = facts if tokenizer is None else _tokenizer_facts(tokenizer, False)
    if tokenizer is not None and chosen is None:
        raise InputError(f"expected tokenizer files in {tokenizer}, got none: choose another model's tokenizer")
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
            f"expected the expert {other} to have the base's vocab_size {config.vocab_size} ({base}), got {sizes[other]}: if "
            f"only padding differs, set model.vocab_size={sizes[smallest]} to cut all models to it"
        )
    if vocab_size is not None and vocab_size > sizes[smallest]:
        raise InputError(
            f"expected a vocab_size of at most {sizes[smallest]}, which is what {smallest} has, got {vocab_size}: choose a "
            "smaller one"
        )
    last = max(chosen["vocabulary"].values()) if chosen else 0
    if last >= (vocab_size or config.vocab_size):
        raise InputError(
            f"expected a vocabulary that holds every id of the tokenizer in {tokenizer or base}, got id {last} where "
            f"vocab_size is {vocab_size or config.vocab_size}: use the tokenizer that belongs to the model"
        )
    config = config.replace(dtype=dtype or config.dtype, vocab_size=vocab_size or config.vocab_size)
    return Preflight(config, checkpoint, tuple(models))


def _same_config(base: Checkpoint, expert: Checkpoint, dtype: str | None) -> None:
    for field in dataclasses.fields(LlamaConfig):
        if field.name in _NOT_COMPARED and (field.name != "dtype" or dtype is not None):
            continue
        ours, theirs = getattr(base.config, field.name), getattr(expert.config, field.name)
        if ours != theirs:
            advice = (
                "set model.dtype to cast all to one" if field.name == "dtype" else "all models must be fine-tunings of one base"
            )
            raise InputError(
                f"expected the expert {expert.name} to have the base's {field.name} {ours!r} ({base.name}), got {theirs!r}: "
                f"{advice}"
            )


# --------------------------------------------------------------------------------------------------------------------
# Tokenizers


def _tokenizer_facts(model: str | Path, template: bool) -> dict[str, Any] | None:
    """What text becomes which ids; ``None`` for a model without tokenizer files.

    Args:
        model: a model or adapter.
        template: take the chat template and the stop tokens along.
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
            # what is left out and what is null or false mean the same
            "model": {key: value for key, value in content["model"].items() if key not in ("vocab", "merges") and value},
            "added tokens": sorted(
                [token["content"], *(bool(token.get(flag)) for flag in ("special", "lstrip", "rstrip", "normalized"))]
                for token in content.get("added_tokens") or []
            ),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected a tokenizer with a vocabulary in {folder}, got {error!r}: restore tokenizer.json"
        ) from error
    return {**facts, "chat template": chat, "stop tokens": _stop_tokens(folder)} if template else facts


def _chat_template(folder: Path) -> str | None:
    """The chat template of a folder, wherever it is written."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name).get("chat_template")
            if isinstance(found, list):  # several, by name
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
            f"expected {other} to have the tokenizer of {base}, got {there} {what} where the latter has {here}: all models "
            "must be fine-tunings of one base"
        )

    known, found = ours["vocabulary"], theirs["vocabulary"]
    for token in sorted(known.keys() | found.keys()):
        here, there = known.get(token), found.get(token)
        if here != there and any(i is not None and (vocab_size is None or i < vocab_size) for i in (here, there)):
            raise differ(f"for the token {token!r}", *("none" if i is None else f"id {i}" for i in (here, there)))
    parts = ["merges", "pre_tokenizer", "normalizer", "decoder", "model"]  # no chat uses the post_processor
    for what in parts if vocab_size is not None else [*parts, "added tokens"]:
        if ours[what] != theirs[what]:
            here, there = _difference(json.dumps(ours[what]), json.dumps(theirs[what]))
            raise differ(f"as its {what}", here, there)
    if "chat template" in ours and "chat template" in theirs and ours["chat template"] != theirs["chat template"]:
        here, there = _difference(ours["chat template"], theirs["chat template"])
        raise InputError(
            f"expected {other} to have the chat template of {base}, got {there} where the latter has {here}: set "
            "model.tokenizer to the model whose tokenizer and template all shall use"
        )

    here, there = ours.get("stop tokens"), theirs.get("stop tokens")
    if here is not None and there is not None and here != there:
        raise InputError(
            f"expected {other} to have the stop tokens of {base} in generation_config.json, got {there} where the latter has "
            f"{here}: set model.tokenizer to the model whose tokenizer and stop tokens all shall use"
        )


def _difference(ours: str | None, theirs: str | None) -> tuple[str, str]:
    """Where two texts begin to differ, as two short quotations."""
    if ours is None or theirs is None:
        return tuple("none" if text is None else repr(text[:60]) for text in (ours, theirs))  # type: ignore[return-value]
    start = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return repr(ours[max(0, start - 20) : start + 40]), repr(theirs[max(0, start - 20) : start + 40])
