"""The shapes of a run's models, from names, files and headers; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.folder import read_json
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.sam import SamConfig, VitConfig, read_config
from cycleqd_jax.types import InputError

__all__ = ["PUBLISHED", "PUBLISHED_SAM", "base_shape", "sam_shape"]

_LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
_8B = {**_LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
_70B = {**_LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
PUBLISHED: Mapping[str, Mapping[str, object]] = {
    "meta-llama/Meta-Llama-3-8B": _8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _8B,
    "meta-llama/Meta-Llama-3-70B": _70B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _70B,
}
"""Published shapes of models whose repositories ask users to accept a licence: a plan for them needs no download."""


_VITS = {
    "base": VitConfig(),
    "large": VitConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        mlp_dim=4096,
        global_attn_indexes=(5, 11, 17, 23),
    ),
    "huge": VitConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        mlp_dim=5120,
        global_attn_indexes=(7, 15, 23, 31),
    ),
}
PUBLISHED_SAM: Mapping[str, SamConfig] = {f"facebook/sam-vit-{size}": SamConfig(vision=vit) for size, vit in _VITS.items()}
"""Published shapes of Segment Anything."""


def sam_shape(base: str, file: str | Path | None = None) -> SamConfig:
    """The shape of a base model that segments images.

    Args:
        base: a name in :data:`PUBLISHED_SAM`, or a folder; not used with ``file``.
        file: a ``config.json`` to read instead.

    Raises:
        InputError: there is no such model or file.
    """
    if file is not None:
        return SamConfig.from_hf(_read_shape(Path(file)), str(file))
    if not Path(base).exists() and base in PUBLISHED_SAM:
        return PUBLISHED_SAM[base]
    if not Path(base).is_dir():
        raise InputError(
            f"expected a folder of Segment Anything or one of {', '.join(PUBLISHED_SAM)}, got {base}; correct model.base, or "
            "give its shape with --model-config config.json"
        )
    return read_config(base)


def base_shape(base: str | None, file: str | Path | None = None) -> LlamaConfig:
    """The shape of a base model.

    Args:
        base: a name in :data:`PUBLISHED`, a folder, or a repository; not needed with ``file``.
        file: a ``config.json`` to read instead.

    Raises:
        InputError: there is no such model or file.
    """
    if file is not None:
        return LlamaConfig.from_hf(_read_shape(Path(file)), str(file))
    assert base is not None
    name = base.partition("@")[0]
    if name in PUBLISHED and not Path(base).exists():
        return LlamaConfig.from_hf(dict(PUBLISHED[name]), base)
    try:
        return open_checkpoint(base, weights=False).config
    except InputError as error:
        raise InputError(f"{error}; or give its shape with --model-config config.json") from error


def _read_shape(file: Path) -> dict[str, Any]:
    """The contents of the ``config.json`` that stands for a model."""
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no such file"
        raise InputError(f"expected the config.json of a model for --model-config, got {got}: {file}; correct the path")
    return read_json(file)
