"""The shapes of a run's models, from names, files and headers; no weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cycleqd_jax.config import RunConfig
from cycleqd_jax.models.files import peft
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.files.safetensors import read_json
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.plan.workload import AdapterRanks
from cycleqd_jax.types import InputError

__all__ = ["PUBLISHED", "adapters_of", "base_shape", "evaluated_shape"]

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


def base_shape(base: str | None, file: str | Path | None = None) -> LlamaConfig:
    """The shape of a base model.

    Args:
        base: a name in :data:`PUBLISHED`, a folder, or a repository; not needed with ``file``.
        file: a ``config.json`` to read instead.

    Raises:
        InputError: there is no such model or file.
    """
    if file is not None:
        return LlamaConfig.from_hf(read_json(Path(file)), str(file))
    assert base is not None
    name = base.partition("@")[0]
    if name in PUBLISHED and not Path(base).exists():
        return LlamaConfig.from_hf(dict(PUBLISHED[name]), base)
    try:
        return open_checkpoint(base, weights=False).config
    except InputError as error:
        raise InputError(f"{error}; or give its shape with --model-config config.json") from error


def evaluated_shape(run: RunConfig, base: LlamaConfig) -> LlamaConfig:
    """The shape in which base and experts are evaluated: with the config's dtype and vocabulary."""
    return base.replace(dtype=run.model.dtype or base.dtype, vocab_size=run.model.vocab_size or base.vocab_size)


def adapters_of(run: RunConfig, base: LlamaConfig) -> tuple[tuple[AdapterRanks | None, ...], list[str]]:
    """The LoRA adapters among the experts, from their headers.

    Args:
        run: the config.
        base: its base.

    Returns:
        The ranks of each expert's adapter (None where the expert is no adapter, or where it is not on this machine), and the
        names of the experts that are not on this machine.

    Raises:
        InputError: an adapter does not fit the base, or leaves of adapters and whole leaves are mixed.
    """
    found: list[AdapterRanks | None] = []
    absent = []
    for name in run.task_names:
        expert = (run.model.experts or {}).get(name)
        here = expert is not None and os.path.exists(expert)
        found.append(peft.check_adapter(expert, base) if expert is not None and here and peft.is_adapter(expert) else None)
        if expert is not None and not here:
            absent.append(name)
    given = [adapter for adapter in found if adapter is not None]
    paths = {path for adapter in given for path, rank in adapter.items() if rank is not None}
    whole = {path for adapter in given for path, rank in adapter.items() if rank is None}
    if given and (len(given) < len(found) or paths & whole) and not run.genome.densify:
        raise InputError(
            "expected experts that are all adapters, or all whole models, got leaves of both kinds; set genome.densify=true, "
            "which multiplies the adapters out"
        )
    return tuple(found), absent
