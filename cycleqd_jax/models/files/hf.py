"""Loads and saves models tensor by tensor; the host never holds more than the largest stacked weight."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cycleqd_jax.files import replacing_folder
from cycleqd_jax.models import llama
from cycleqd_jax.models.files.checkpoint import Checkpoint, check_tied, open_checkpoint
from cycleqd_jax.models.files.names import NAMES
from cycleqd_jax.models.files.safetensors import (
    Entry,
    Tensor,
    all_finite,
    read_finite,
    row_chunks,
    transpose,
    write_shards,
)
from cycleqd_jax.models.folder import PROCESSOR_FILES, TEMPLATE_FOLDER, code_files, is_tokenizer_file, read_json
from cycleqd_jax.models.llama.config import DTYPES, LlamaConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.sharding import Shardings
from cycleqd_jax.types import AnyArray, InputError, Params, tree_paths

__all__ = ["check_target", "load", "load_weights", "save"]

_WRITTEN = re.compile(
    r"config\.json|mergekit_config\.yml|README\.md|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)


def load(
    model: str | Path | Checkpoint,
    *,
    dtype: DTypeLike | None = None,
    vocab_size: int | None = None,
    shardings: Shardings = None,
) -> tuple[LlamaConfig, Params]:
    """Reads a model.

    Weights are read once, in chunks, and copied to the devices one stacked weight at a time.

    Args:
        model: see :func:`~cycleqd_jax.models.files.checkpoint.open_checkpoint`.
        dtype: cast the weights to this dtype, such as ``"bfloat16"`` or ``jnp.bfloat16``. By default they keep the dtype of the
            files, bit for bit; where files have several dtypes, all weights get the one of most parameters (a 16-bit GGUF file
            has its norms in float32).
        vocab_size: keep this many rows of the embedding and the head, for padded vocabularies; all by default.
        shardings: a tree of ``jax.sharding.Sharding`` like the weights (:func:`cycleqd_jax.sharding.shardings`), or a function
            from the config to such a tree; JAX's default device by default.

    Returns:
        The config, with the dtype and vocabulary size of the weights, and the weights.

    Raises:
        InputError: see :func:`~.checkpoint.open_checkpoint`; also if weights are NaN or infinite (after the cast), or
            ``vocab_size`` is larger than the model's, or ``dtype`` is unknown.
    """
    dtype = _dtype_name(dtype)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    config, tensors = checkpoint.config, checkpoint.tensors
    if vocab_size is not None and not 0 < vocab_size <= config.vocab_size:
        raise InputError(
            f"expected a vocab_size from 1 to {config.vocab_size}, the rows in {checkpoint.where}, got {vocab_size}; choose "
            "the smallest vocabulary of base and experts"
        )
    config = config.replace(dtype=dtype or config.dtype, vocab_size=vocab_size or config.vocab_size)
    check_tied(checkpoint)
    shapes = llama.abstract_params(config)
    target = shardings(config) if callable(shardings) else shardings
    targets = [None] * len(jax.tree.leaves(shapes)) if target is None else jax.tree.leaves(target)
    leaves = [_read_leaf(tensors, path, leaf, where) for (path, leaf), where in zip(tree_paths(shapes), targets, strict=True)]
    return config, jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def save(
    folder: str | Path,
    config: LlamaConfig,
    params: Params,
    *,
    dtype: DTypeLike | None = None,
    tokenizer: ChatTokenizer | None = None,
    card: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a Hugging Face folder that transformers, vLLM and other tools can load.

    The write is atomic: the folder is written beside its place and then renamed. An existing model is replaced.

    Args:
        folder: a new place or a model folder.
        config: the config of the model.
        params: the weights; a tied head is written once.
        dtype: cast the weights to this dtype; by default the config's.
        tokenizer: written too, with ``generation_config.json``; files it was read from are copied byte for byte. Its special
            tokens are added to the config.
        card: text of the model card, ``README.md``.
        max_shard_bytes: the most bytes of a file, unless one tensor is larger.

    Raises:
        InputError: ``folder`` can't be made or is something other than a model folder, the weights are not those of the
            config, ``dtype`` is unknown, or weights are NaN or infinite (after the cast).
    """
    folder = check_target(folder)
    config = config.replace(dtype=_dtype_name(dtype) or config.dtype)
    _check_params(config, params)
    if tokenizer is not None:
        # Not the padding token: in the config it would disable the gradient of its embedding, and it may be a stop token.
        defaults = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.stop_ids}
        config = config.replace(**{name: value for name, value in defaults.items() if getattr(config, name) is None})

    with replacing_folder(folder) as new:
        _write_json(new / "config.json", config.to_hf())
        write_shards(new, _tensors(config, params), np.dtype(config.dtype), max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(new)
        if card is not None:
            (new / "README.md").write_text(card, encoding="utf-8")


def _dtype_name(dtype: DTypeLike | None) -> str | None:
    """The name of a dtype that weights may have."""
    if dtype is None:
        return None
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name not in DTYPES:
        raise InputError(f"expected dtype to be one of {', '.join(DTYPES)}, got {dtype!r} as the argument dtype; choose one")
    return name


def _check_params(config: LlamaConfig, params: Params) -> None:
    """Checks that weights are those of a config; a tied model may have a head too, if it equals the embedding."""
    found, expected = dict(tree_paths(params)), dict(tree_paths(llama.abstract_params(config)))
    head = found.pop("lm_head") if config.tie_word_embeddings and "lm_head" in found else None
    for path in {**expected, **found}:
        if path not in found or path not in expected:
            what = "no such leaf" if path not in found else "one that the config does not have"
            raise InputError(
                f"expected the leaves of the config, got {what}, {path!r}, in the weights to save; correct the config or the "
                "weights"
            )
        if tuple(found[path].shape) != expected[path].shape:
            raise InputError(
                f"expected shape {expected[path].shape} of the config for leaf {path!r}, got {tuple(found[path].shape)} in the "
                "weights to save; correct the config or the weights"
            )
    if head is not None and not np.array_equal(np.asarray(head).T, np.asarray(found["embed_tokens"])):
        raise InputError(
            "expected lm_head to equal embed_tokens, which the config ties, got different weights to save; set "
            "tie_word_embeddings to false or remove the head"
        )


def check_target(folder: str | Path) -> Path:
    """The path that :func:`save` will write to, with symbolic links resolved.

    Args:
        folder: a new place, an empty folder, or a model folder, which will be replaced.

    Raises:
        InputError: the place is a file, or a folder with anything that is not part of a model.
    """
    place = Path(os.path.realpath(folder))
    if place.exists() or place.is_symlink():
        entries = _entries(place) if place.is_dir() else [place.name]
        if not place.is_dir():
            raise InputError(f"expected a folder to write a model to, got the file {folder}; choose another place")
        known = {name for name in entries if _WRITTEN.fullmatch(name) or is_tokenizer_file(name) or name in PROCESSOR_FILES}
        for name in known & {"config.json", "tokenizer_config.json", *PROCESSOR_FILES}:
            with contextlib.suppress(InputError):  # a file that is none names no code
                known |= set(code_files(place, read_json(place / name))[0])
        foreign = [name for name in entries if name not in known]
        if foreign or (entries and "config.json" not in entries):
            raise InputError(
                f"expected a new place or a model folder to replace, got {(foreign or entries)[0]} in {folder}; move it away, "
                "or choose another place"
            )
    return place


def _entries(folder: Path) -> list[str]:
    """The names in a folder, and those in its folder of chat templates instead of that folder's own."""
    names = sorted(path.name for path in folder.iterdir())
    templates = folder / TEMPLATE_FOLDER
    if TEMPLATE_FOLDER in names and templates.is_dir():
        names.remove(TEMPLATE_FOLDER)
        names += sorted(f"{TEMPLATE_FOLDER}/{path.name}" for path in templates.iterdir())
    return names


# --------------------------------------------------------------------------------------------------------------------
# Reading


def load_weights(checkpoint: Checkpoint, paths: Iterable[str]) -> dict[str, jax.Array]:
    """Reads some weights of a model.

    Args:
        checkpoint: the model.
        paths: the paths of the weights, such as ``"layers/attn/q"``.

    Returns:
        The weights by path, in the config's dtype, on JAX's default device.

    Raises:
        InputError: weights are NaN or infinite.
    """
    shapes = dict(tree_paths(llama.abstract_params(checkpoint.config)))
    return {path: _read_leaf(checkpoint.tensors, path, shapes[path], None) for path in paths}


class _Part(NamedTuple):
    """The part of a leaf that some devices hold."""

    ranges: tuple[slice, ...]
    array: np.ndarray
    devices: list[Any]


def _read_leaf(
    tensors: Mapping[str, Tensor], path: str, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """Reads one of our weights from the tensors of its layers."""
    pattern, transposed = NAMES[path]
    parts: dict[Any, _Part] = {}
    places: Mapping[Any, Any] = {None: None}
    if sharding is not None:
        places = sharding.addressable_devices_indices_map(leaf.shape)
    for device, index in places.items():
        index = index or (slice(None),) * len(leaf.shape)
        ranges = tuple(slice(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True))
        key = tuple((part.start, part.stop) for part in ranges)
        if key not in parts:
            parts[key] = _Part(ranges, np.empty([part.stop - part.start for part in ranges], leaf.dtype), [])
        parts[key].devices.append(device)

    if NAMES[path].stacked:
        for layer in range(leaf.shape[0]):
            here = [
                (part.array[layer - part.ranges[0].start], part.ranges[1:])
                for part in parts.values()
                if part.ranges[0].start <= layer < part.ranges[0].stop
            ]
            if here:
                name = pattern.format(layer)
                _read_tensor(name, tensors[name], here, transposed)
    else:
        _read_tensor(pattern, tensors[pattern], [(part.array, part.ranges) for part in parts.values()], transposed)

    if sharding is None:
        return jax.block_until_ready(jax.device_put(next(iter(parts.values())).array))
    arrays = []
    while parts:  # frees the host memory of each part once its devices have it
        part = parts.pop(next(iter(parts)))
        arrays += [jax.block_until_ready(jax.device_put(part.array, device)) for device in part.devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _read_tensor(name: str, tensor: Tensor, targets: list[tuple[np.ndarray, tuple[slice, ...]]], transposed: bool) -> None:
    """Reads a tensor once, in chunks of rows, into arrays for parts of it, cast to their dtype."""
    wanted = [(target, ranges[::-1] if transposed else ranges) for target, ranges in targets]
    first, last = min(r[0].start for _, r in wanted), max(r[0].stop for _, r in wanted)
    for start, stop in row_chunks(tensor, first, last):
        chunk = read_finite(name, tensor, start, stop)
        with np.errstate(over="ignore"):
            cast = chunk.astype(wanted[0][0].dtype, copy=False)
        if cast is not chunk and not all_finite(cast):
            raise InputError(
                f"expected weights within the range of {cast.dtype}, got larger ones in tensor {name} of {tensor.file}; choose "
                "another dtype"
            )
        for target, (rows, *columns) in wanted:
            begin, end = max(start, rows.start), min(stop, rows.stop)
            if begin >= end:
                continue
            part = cast[(slice(begin - start, end - start), *columns)]
            here = slice(begin - rows.start, end - rows.start)
            if transposed:
                transpose(part, target[:, here])
            else:
                target[here] = part


# --------------------------------------------------------------------------------------------------------------------
# Writing


def _tensors(config: LlamaConfig, params: Params) -> Iterator[Entry]:
    """Hugging Face's tensors in its order of layers: name, shape, and a function that reads the tensor."""
    leaves = dict(tree_paths(params))
    dtype = np.dtype(config.dtype)

    def entry(path: str, layer: int | None) -> Entry:
        pattern, transposed = NAMES[path]
        name, leaf = pattern.format(layer), leaves[path]
        shape = leaf.shape if layer is None else leaf.shape[1:]

        def fetch() -> np.ndarray:
            with np.errstate(over="ignore"):
                array = (np.asarray(leaf) if layer is None else _layer(leaf, layer)).astype(dtype, copy=False)
            if not all_finite(array):
                raise InputError(
                    f"expected finite weights to write, got NaN or Inf in tensor {name} as {dtype}; correct the weights"
                )
            if not transposed:
                return array
            target = np.empty(shape[::-1], dtype)
            transpose(array, target)
            return target

        return Entry(name, shape[::-1] if transposed else shape, fetch)

    stacked = [path for path in leaves if NAMES[path].stacked]
    for path in leaves:
        if path not in stacked:
            yield entry(path, None)
    for layer in range(config.num_hidden_layers):
        for path in stacked:
            yield entry(path, layer)


def _layer(leaf: AnyArray, layer: int) -> np.ndarray:
    """One layer of a stacked leaf. A CPU's memory is read in place: JAX would copy the layer and free the copy later."""
    devices = leaf.devices() if isinstance(leaf, jax.Array) else set()
    in_place = len(devices) == 1 and next(iter(devices)).platform == "cpu"
    return np.asarray(leaf)[layer] if in_place else np.asarray(leaf[layer])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
