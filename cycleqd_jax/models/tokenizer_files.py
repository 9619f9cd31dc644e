"""Opens the tokenizer files of model folders with ``transformers``, which is imported when it is first needed."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.models.folder import read_json
from cycleqd_jax.types import InputError

__all__ = [
    "is_token",
    "open_tokenizer",
    "pad_below",
    "read_stop_tokens",
    "set_parts",
    "shortened",
    "stop_ids_of",
    "transformers",
]


def open_tokenizer(folder: Path, *, plain: bool = False) -> Any:
    """The tokenizer that ``transformers`` opens for a folder, which may lack a chat template.

    Args:
        folder: the folder of a model, an adapter, or a tokenizer alone.
        plain: take ``tokenizer.json`` as it is, whatever class of tokenizers the folder names.

    Raises:
        InputError: transformers can't read it.
    """
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")  # the message of transformers does not name the file
    kind = transformers().PreTrainedTokenizerFast if plain else _tokenizer_class(folder)
    if not (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file():
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        if settings.get("tokenizer_class") is None:  # AutoTokenizer would look for the model's type
            kind = transformers().PreTrainedTokenizerFast
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types of exceptions
        raise InputError(
            f"expected a tokenizer that transformers can read in {folder}, got {type(error).__name__}: "
            f"{shortened(str(error))}; restore tokenizer.json and the other tokenizer files"
        ) from error


def read_stop_tokens(folder: Path, tokenizer: Any) -> tuple[Any, Path]:
    """The stop tokens of a model as transformers resolves them, and the file that names them; they are not checked.

    They are ``eos_token_id`` of ``generation_config.json``, else of ``config.json``, else the tokenizer's own. Ids for which
    the tokenizer has no token end no reply; they are left out of a list that has others, and those of ``config.json`` always.

    Args:
        folder: the folder of the model.
        tokenizer: its tokenizer, of ``transformers``.

    Returns:
        The id of a token, or a list of ids, or what stands in the file instead; None if there is none.

    Raises:
        InputError: a file is corrupt.
    """
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    if found is not None:
        listed = isinstance(found, list) and all(type(i) is int and i >= 0 for i in found)
        known = [i for i in found if is_token(tokenizer, i)] if listed else []
        return known or found, path
    path = folder / "config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    known = [i for i in (found if isinstance(found, list) else [found]) if is_token(tokenizer, i)]
    if known:
        return known, path
    return tokenizer.eos_token_id, folder / "tokenizer_config.json"


def _tokenizer_class(folder: Path) -> Any:
    """What ``AutoTokenizer`` returns for a folder, or ``AutoTokenizer`` itself.

    ``AutoTokenizer`` imports the code of all models, and PyTorch where it is installed: that takes up to 8 s of CPU time. For
    Llama models with a plain ``tokenizer.json`` it always returns ``PreTrainedTokenizerFast``.
    """
    plain = False
    with contextlib.suppress(InputError):
        config, model = read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json")
        plain = (
            config.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
            and "auto_map" not in config
            and model.get("model_type") == "llama"
            and (folder / "tokenizer.json").is_file()
        )
    return getattr(transformers(), "PreTrainedTokenizerFast" if plain else "AutoTokenizer")


def transformers() -> Any:
    """The package, imported when it is needed: an import statement would cost type checkers half a minute."""
    return importlib.import_module("transformers")


def stop_ids_of(eos: Any, tokenizer: Any, where: str) -> tuple[int, ...]:
    """The ids of :func:`read_stop_tokens`, checked.

    Args:
        eos: an id, or a list of ids.
        tokenizer: the transformers tokenizer.
        where: the file that names them, for messages.

    Raises:
        InputError: there is none, or one is not the id of a token.
    """
    stop_ids = eos if isinstance(eos, list) else [eos]
    if not stop_ids or not all(is_token(tokenizer, i) for i in stop_ids):
        raise InputError(
            f"expected the id of a token, or a list of ids, as eos_token_id in {where}, got {shortened(json.dumps(eos))} "
            f"where the tokenizer has {len(tokenizer)} tokens; name the token that ends a reply"
        )
    return tuple(stop_ids)


def pad_below(pad: int | None, stop_ids: Sequence[int], rows: int) -> int:
    """A token to pad with: the pad token, or else a stop token.

    Args:
        pad: the tokenizer's pad token. It may have been added without a row of weights.
        stop_ids: the tokens that end a reply.
        rows: the number of rows of the embedding.
    """
    return next((i for i in (pad, *stop_ids) if i is not None and i < rows), 0)


def is_token(tokenizer: Any, i: Any) -> bool:
    """Whether this is the id of a token. The ids of added tokens may have gaps."""
    return type(i) is int and (0 <= i < len(tokenizer) or i in tokenizer.added_tokens_decoder)


def shortened(text: str) -> str:
    """A text in one line, at most 300 characters of it."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def set_parts(tokenizer: Any, **parts: Any) -> None:
    """Sets the normalizer, pre-tokenizer, post-processor or decoder of a ``tokenizers.Tokenizer``."""
    for name, part in parts.items():
        setattr(tokenizer, name, part)
