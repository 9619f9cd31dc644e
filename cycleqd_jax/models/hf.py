"""Hugging Face folders in and out: ``config.json``, safetensors, tokenizer files, model card.

One table names every weight on both sides; reading, writing and checking all go through it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from cycleqd_jax.models import llama
from cycleqd_jax.models.chat import ChatTokenizer
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.weights_file import DTYPES, TensorInfo, all_finite, read_headers, read_json, read_tensor
from cycleqd_jax.types import InputError, Params, tree_paths

__all__ = ["check_compatible", "load", "read_config", "save"]

# Our path, Hugging Face's name ({} is the layer), and whether the matrix is transposed between the two.
_NAMES = (
    ("embed_tokens", "model.embed_tokens.weight", False),
    ("layers/input_norm", "model.layers.{}.input_layernorm.weight", False),
    ("layers/attn/q", "model.layers.{}.self_attn.q_proj.weight", True),
    ("layers/attn/k", "model.layers.{}.self_attn.k_proj.weight", True),
    ("layers/attn/v", "model.layers.{}.self_attn.v_proj.weight", True),
    ("layers/attn/o", "model.layers.{}.self_attn.o_proj.weight", True),
    ("layers/post_norm", "model.layers.{}.post_attention_layernorm.weight", False),
    ("layers/mlp/gate", "model.layers.{}.mlp.gate_proj.weight", True),
    ("layers/mlp/up", "model.layers.{}.mlp.up_proj.weight", True),
    ("layers/mlp/down", "model.layers.{}.mlp.down_proj.weight", True),
    ("norm", "model.norm.weight", False),
    ("lm_head", "lm_head.weight", True),
)
_HF_NAMES = {path: (name, transpose) for path, name, transpose in _NAMES}
_TIED_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load(folder: str | Path) -> tuple[LlamaConfig, Params]:
    """Reads a model.

    Args:
        folder: a Hugging Face folder with ``config.json`` and safetensors, in one file or sharded.

    Returns:
        The config, with the dtype that the tensors have, and the weights in that dtype, bit for bit.

    Raises:
        InputError: something is missing, superfluous, broken, of another shape, of mixed or unknown dtype, NaN or infinite.
    """
    config, headers = _inspect(Path(folder))

    def leaf(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        pattern, transpose = _HF_NAMES[path]
        array = np.empty(shape.shape, shape.dtype)
        views = array if "{}" in pattern else array[None]
        for i in range(len(views)):
            name = pattern.format(i)
            tensor = read_tensor(name, headers[name])
            views[i] = tensor.T if transpose else tensor
        return jnp.asarray(array)

    if config.tie_word_embeddings and _TIED_HEAD in headers:
        head, embedding = (read_tensor(name, headers[name]) for name in (_TIED_HEAD, _EMBEDDING))
        if not np.array_equal(head, embedding):
            raise InputError(
                f"expected {_TIED_HEAD} to equal {_EMBEDDING} in {folder}, whose config ties them, got different weights: set "
                "tie_word_embeddings to false or remove the head"
            )
    leaves = tree_paths(llama.abstract_params(config))
    treedef = jax.tree.structure(llama.abstract_params(config))
    return config, treedef.unflatten([leaf(path, shape) for path, shape in leaves])


def save(
    folder: str | Path,
    config: LlamaConfig,
    params: Params,
    *,
    dtype: str | None = None,
    tokenizer: ChatTokenizer | None = None,
    card: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model that ``transformers.AutoModelForCausalLM.from_pretrained`` reads.

    The folder appears whole or not at all: it is written beside its place and then renamed. A model that was there before is
    replaced.

    Args:
        folder: where to.
        config: of the model.
        params: the weights; a tied head is written once.
        dtype: cast to this one; as they are by default.
        tokenizer: its files and ``generation_config.json`` are written too, and its special tokens noted in the config.
        card: text of the model card, ``README.md``.
        max_shard_bytes: a file gets no more than this, unless one tensor is larger.

    Raises:
        InputError: ``folder`` is something other than a model folder, or weights are NaN or infinite (after the cast).
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))):
        raise InputError(
            f"expected a new place or a model folder to replace, got {folder} with other content: choose another place"
        )
    config = config.replace(dtype=dtype or config.dtype)
    if tokenizer is not None:
        defaults = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.stop_ids,
            "pad_token_id": tokenizer.pad_id,
        }
        config = config.replace(**{name: value for name, value in defaults.items() if getattr(config, name) is None})

    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        new = work / folder.name
        new.mkdir()
        _write_json(new / "config.json", config.to_hf())
        _write_weights(new, config, params, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(new)
        if card is not None:
            (new / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            os.rename(folder, work / "replaced")
        os.rename(new, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_config(folder: str | Path) -> LlamaConfig:
    """The config of a model folder, from its headers alone.

    Raises:
        InputError: the folder can't be read as a model.
    """
    return _inspect(Path(folder))[0]


def check_compatible(base: str | Path, experts: Sequence[str | Path]) -> None:
    """Checks that experts are fine-tunings of one base, from configs, headers and tokenizers alone: no weight is read.

    Args:
        base: folder of the base model.
        experts: folders of the experts; one without tokenizer files is taken to use the base's.

    Raises:
        InputError: a folder can't be read as a model; or an expert has another architecture, vocabulary, dtype or tokenizer
            than the base, with both values.
    """
    base = Path(base)
    config, _ = _inspect(base)
    vocabulary = _vocabulary(base)
    for expert in map(Path, experts):
        other, _ = _inspect(expert)
        for field in dataclasses.fields(LlamaConfig):
            if field.name.endswith("_token_id") or field.name in ("initializer_range", "max_position_embeddings"):
                continue  # neither changes what a weight means
            ours, theirs = getattr(config, field.name), getattr(other, field.name)
            if ours != theirs:
                raise InputError(
                    f"expected the expert {expert} to have the base's {field.name} {ours!r} ({base}), got {theirs!r}: all "
                    "models must "
                    "be fine-tunings of one base in one dtype"
                )
        theirs = _vocabulary(expert)
        if vocabulary is not None and theirs is not None and vocabulary != theirs:
            token = min(token for token in vocabulary.keys() | theirs.keys() if vocabulary.get(token) != theirs.get(token))
            raise InputError(
                f"expected the expert {expert} to have the tokenizer of the base {base}, got id {theirs.get(token)} for the "
                "token "
                f"{token!r} where the base has {vocabulary.get(token)}: all models must be fine-tunings of one base"
            )


def _inspect(folder: Path) -> tuple[LlamaConfig, dict[str, TensorInfo]]:
    """Config and tensor headers of a folder that fit each other."""
    if not folder.is_dir():
        raise InputError(f"expected a Hugging Face model folder, got {folder}, which is not a folder: correct the path")
    config = LlamaConfig.from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
    headers = read_headers(folder)
    expected = _expected_shapes(config)
    superfluous = [name for name in headers if name not in expected and not name.endswith("rotary_emb.inv_freq")]
    if config.tie_word_embeddings and _TIED_HEAD in superfluous:
        superfluous.remove(_TIED_HEAD)
    missing = [name for name in expected if name not in headers]
    if missing or superfluous:
        what = f"no {missing[0]}" if missing else f"an unknown {superfluous[0]} in {headers[superfluous[0]].file}"
        count = len(missing) + len(superfluous)
        raise InputError(
            f"expected the {len(expected)} tensors of the Llama model that {folder / 'config.json'} describes, got {what} "
            f"({count} such in all): correct the config or restore the weights"
        )
    for name, shape in expected.items():
        info = headers[name]
        if info.shape != shape:
            raise InputError(
                f"expected shape {list(shape)} for tensor {name} in {info.file}, got {list(info.shape)}: correct the config or "
                "restore "
                "the weights"
            )
        if info.dtype not in DTYPES:
            raise InputError(
                f"expected dtype {', '.join(DTYPES)} for tensor {name} in {info.file}, got {info.dtype}: use an unquantised "
                "checkpoint"
            )
    kinds = {headers[name].dtype: name for name in expected}
    if len(kinds) > 1:
        found = ", ".join(f"{dtype} for {name}" for dtype, name in sorted(kinds.items()))
        raise InputError(f"expected one dtype for all weights in {folder}, got {found}: convert the model to one dtype")
    return config.replace(dtype=DTYPES[next(iter(kinds))].name), headers


def _expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for path, leaf in tree_paths(llama.abstract_params(config)):
        pattern, transpose = _HF_NAMES[path]
        layers, shape = (leaf.shape[0], leaf.shape[1:]) if "{}" in pattern else (1, leaf.shape)
        for i in range(layers):
            shapes[pattern.format(i)] = shape[::-1] if transpose else shape
    return shapes


def _tensors(config: LlamaConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's tensors in its own order of layers, one at a time."""
    leaves = dict(tree_paths(params))
    dtype = jnp.dtype(config.dtype)

    def tensor(path: str, layer: int | None) -> tuple[str, np.ndarray]:
        pattern, transpose = _HF_NAMES[path]
        name = pattern.format(layer)
        array = np.asarray(leaves[path] if layer is None else leaves[path][layer]).astype(dtype)
        if not all_finite(array):
            raise InputError(f"expected finite weights, got NaN or Inf in tensor {name} as {dtype}: nothing was written")
        return name, np.ascontiguousarray(array.T if transpose else array)

    stacked = [path for path in leaves if path.startswith("layers/")]
    for path in leaves:
        if path not in stacked:
            yield tensor(path, None)
    for layer in range(config.num_hidden_layers):
        for path in stacked:
            yield tensor(path, layer)


def _write_weights(folder: Path, config: LlamaConfig, params: Params, max_shard_bytes: int) -> None:
    shard: dict[str, np.ndarray] = {}
    shards: list[list[str]] = []
    total = size = 0

    def flush() -> None:
        save_file(shard, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, array in _tensors(config, params):
        if shard and size + array.nbytes > max_shard_bytes:
            flush()
            size = 0
        shard[name] = array
        size += array.nbytes
        total += array.nbytes
    flush()
    if len(shards) == 1:
        os.rename(folder / "shard-0", folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"shard-{i}", folder / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Token → id of a fast tokenizer, added tokens included; ``None`` where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((token, i) for i, (token, _) in enumerate(vocabulary))
        return {**dict(pairs), **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"expected a tokenizers file with a vocabulary in {path}, got {error!r}: restore the file") from error
