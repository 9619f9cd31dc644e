"""Models in and out, tensor by tensor: never more of one on the host than its largest stacked weight."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cycleqd_jax.models import llama
from cycleqd_jax.models.chat import ChatTokenizer
from cycleqd_jax.models.checkpoint import Checkpoint, open_checkpoint
from cycleqd_jax.models.config import LlamaConfig
from cycleqd_jax.models.names import EMBEDDING, HEAD, NAMES
from cycleqd_jax.models.weights_file import DTYPES, INDEX, Tensor, all_finite, transpose, write_safetensors
from cycleqd_jax.types import InputError, Params, tree_paths

__all__ = ["load", "save"]

_CHUNK = 8 << 20  # bytes read at once


def load(
    model: str | Path | Checkpoint,
    *,
    dtype: str | None = None,
    vocab_size: int | None = None,
    shardings: Any = None,
) -> tuple[LlamaConfig, Params]:
    """Reads a model.

    Weights are read in pieces and go to the devices one stacked weight at a time; each device's part is read once.

    Args:
        model: see :func:`~cycleqd_jax.models.checkpoint.open_checkpoint`.
        dtype: of the weights; that of the files by default, bit for bit.
        vocab_size: keep the first rows of the embedding and the head, for vocabularies that were padded; all by default.
        shardings: where the weights go: a tree of ``jax.sharding.Sharding`` like the weights
            (:func:`cycleqd_jax.sharding.shardings`), or a function that makes it of the config; JAX's default device if none.

    Returns:
        The config, with the dtype and the vocabulary that the weights have, and the weights.

    Raises:
        InputError: what :func:`~cycleqd_jax.models.checkpoint.open_checkpoint` raises; or weights are NaN or infinite, or have
            different dtypes and none is asked for; or ``vocab_size`` is more than there are.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    config, tensors = checkpoint.config, checkpoint.tensors
    kinds = {tensors[name].dtype: name for name in checkpoint.names}
    if len(kinds) > 1 and dtype is None:
        found = ", ".join(f"{kind} for {name}" for kind, name in sorted(kinds.items()))
        raise InputError(
            f"expected one dtype for all weights in {checkpoint.where}, got {found}: say which dtype to read them in"
        )
    if vocab_size is not None and not 0 < vocab_size <= config.vocab_size:
        raise InputError(
            f"expected a vocab_size from 1 to the {config.vocab_size} rows of {checkpoint.where}, got {vocab_size}: choose the "
            "smallest vocabulary of base and experts"
        )
    config = config.replace(dtype=dtype or config.dtype, vocab_size=vocab_size or config.vocab_size)
    if config.tie_word_embeddings and HEAD in tensors:
        _check_tied(tensors[HEAD], tensors[EMBEDDING])
    shapes = llama.abstract_params(config)
    target = shardings(config) if callable(shardings) else shardings
    targets = [None] * len(jax.tree.leaves(shapes)) if target is None else jax.tree.leaves(target)
    leaves = [_leaf(tensors, path, leaf, where) for (path, leaf), where in zip(tree_paths(shapes), targets, strict=True)]
    return config, jax.tree.unflatten(jax.tree.structure(shapes), leaves)


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
    """Writes a model that transformers, vLLM and what else reads Hugging Face folders can load.

    The folder appears whole or not at all: it is written beside its place and then renamed. A model that was there before is
    replaced.

    Args:
        folder: where to.
        config: of the model.
        params: the weights; a tied head is written once.
        dtype: cast to this one; as they are by default.
        tokenizer: its files (those it was read from, byte for byte) and ``generation_config.json`` are written too, and its
            special tokens noted in the config.
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


# --------------------------------------------------------------------------------------------------------------------
# Reading


def _leaf(tensors: Any, path: str, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """One of our weights, from the tensors of its layers."""
    pattern, transposed = NAMES[path]
    stacked = NAMES[path].stacked

    def block(index: tuple[slice, ...]) -> np.ndarray:
        ranges = [slice(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)]
        array = np.empty([part.stop - part.start for part in ranges], leaf.dtype)
        if not stacked:
            _read(pattern, tensors[pattern], array, ranges, transposed)
            return array
        for i, view in zip(range(ranges[0].start, ranges[0].stop), array, strict=True):
            name = pattern.format(i)
            _read(name, tensors[name], view, ranges[1:], transposed)
        return array

    whole = (slice(None),) * len(leaf.shape)
    if sharding is None:
        return jax.block_until_ready(jax.device_put(block(whole)))
    # One block at a time is on the host: devices that hold the same part get it together.
    parts: dict[Any, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        key = tuple((part.start, part.stop) for part in index or whole)
        parts.setdefault(key, []).append(device)
    arrays = []
    for key, devices in parts.items():
        array = block(tuple(slice(*bounds) for bounds in key))
        arrays += [jax.block_until_ready(jax.device_put(array, device)) for device in devices]
        del array
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _read(name: str, tensor: Tensor, target: np.ndarray, ranges: list[slice], transposed: bool) -> None:
    """Fills ``target`` with a part of a tensor, in chunks, cast to its dtype."""
    rows, *columns = ranges[::-1] if transposed else ranges
    step = max(1, _CHUNK // (math.prod(tensor.shape[1:]) * DTYPES[tensor.dtype].itemsize))
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        part = tensor.read(start, stop)
        if not all_finite(part):
            raise InputError(
                f"expected finite weights, got NaN or Inf in tensor {name} of {tensor.file}: use a sound checkpoint"
            )
        part = part[(slice(None), *columns)]
        with np.errstate(over="ignore"):
            cast = part.astype(target.dtype, copy=False)
        if cast is not part and not all_finite(cast):
            raise InputError(
                f"expected weights within the range of {target.dtype}, got larger ones in tensor {name} of {tensor.file}: "
                "choose another dtype"
            )
        here = slice(start - rows.start, stop - rows.start)
        if transposed:
            transpose(cast, target[:, here])
        else:
            target[here] = cast


def _check_tied(head: Tensor, embedding: Tensor) -> None:
    """Refuses a head that differs from the embedding it is said to be."""
    step = max(1, _CHUNK // (head.shape[1] * 4))
    for start in range(0, head.shape[0], step):
        stop = min(start + step, head.shape[0])
        if not np.array_equal(head.read(start, stop), embedding.read(start, stop)):
            raise InputError(
                f"expected {HEAD} to equal {EMBEDDING} in {head.file}, whose config ties them, got different weights: set "
                "tie_word_embeddings to false or remove the head"
            )


# --------------------------------------------------------------------------------------------------------------------
# Writing


def _tensors(config: LlamaConfig, params: Params) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Hugging Face's tensors in its own order of layers: name, shape there, and what fetches it."""
    leaves = dict(tree_paths(params))
    dtype = np.dtype(config.dtype)

    def entry(path: str, layer: int | None) -> tuple[str, tuple[int, ...], Any]:
        pattern, transposed = NAMES[path]
        name, leaf = pattern.format(layer), leaves[path]
        shape = leaf.shape if layer is None else leaf.shape[1:]

        def fetch() -> np.ndarray:
            with np.errstate(over="ignore"):
                array = np.asarray(leaf if layer is None else leaf[layer]).astype(dtype, copy=False)
            if not all_finite(array):
                raise InputError(f"expected finite weights, got NaN or Inf in tensor {name} as {dtype}: nothing was written")
            if not transposed:
                return array
            target = np.empty(shape[::-1], dtype)
            transpose(array, target)
            return target

        return name, shape[::-1] if transposed else shape, fetch

    stacked = [path for path in leaves if NAMES[path].stacked]
    for path in leaves:
        if path not in stacked:
            yield entry(path, None)
    for layer in range(config.num_hidden_layers):
        for path in stacked:
            yield entry(path, layer)


def _write_weights(folder: Path, config: LlamaConfig, params: Params, max_shard_bytes: int) -> None:
    dtype = np.dtype(config.dtype)
    shards: list[list[tuple[str, tuple[int, ...], Any]]] = [[]]
    total = size = 0
    for entry in _tensors(config, params):
        nbytes = math.prod(entry[1]) * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += nbytes
        total += nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        shapes = {name: shape for name, shape, _ in shard}
        write_safetensors(folder / file, shapes, dtype, (fetch() for _, _, fetch in shard))
        weight_map |= dict.fromkeys(shapes, file)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
