"""Hugging Face folders of Segment Anything, in and out."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.files import replacing_folder
from cycleqd_jax.models.files.hf import check_target
from cycleqd_jax.models.files.safetensors import DTYPES, Entry, SafeTensor, all_finite, read_finite, read_headers, write_shards
from cycleqd_jax.models.folder import PROCESSOR_FILES, read_json
from cycleqd_jax.models.sam.config import SamConfig
from cycleqd_jax.models.sam.images import check_processor
from cycleqd_jax.models.sam.model import is_weight, weights
from cycleqd_jax.models.sam.weights import Weight
from cycleqd_jax.sharding import Shardings
from cycleqd_jax.types import AnyArray, InputError, Params

__all__ = ["load", "params_of_tensors", "read_config", "save"]

_TIED = {"prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"}
"""Copies of a tensor that files may hold; they are not written."""


def load(folder: str | Path, *, dtype: str | None = None, shardings: Shardings = None) -> tuple[SamConfig, Params]:
    """Reads a model.

    Args:
        folder: a folder with ``config.json`` and safetensors, in one file or in shards.
        dtype: cast the weights to this dtype. By default they get the dtype of most parameters of the files.
        shardings: a tree of ``jax.sharding.Sharding`` like the weights (:func:`cycleqd_jax.sharding.shardings`), or a function
            from the config to such a tree; JAX's default device by default.

    Returns:
        The config, with the dtype of the weights, and the weights.

    Raises:
        InputError: the folder is not a supported Segment Anything model, its images are prepared in another way, the tensors do
            not match the config, or weights are NaN or infinite (after the cast).
    """
    config, tensors = _open(Path(folder))
    config = config.replace(dtype=dtype or config.dtype)
    tied = {name: original for name, original in _TIED.items() if name in tensors and original in tensors}
    for name, original in tied.items():
        if not np.array_equal(_read(name, tensors[name]), _read(original, tensors[original])):
            raise InputError(
                f"expected {name} to equal {original}, got different values in {folder}; export the model again with tied "
                "weights"
            )
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name not in tied}
    where = f"{folder} ({config.model_type})"
    return config, params_of_tensors(config, shapes, lambda name: _read(name, tensors[name]), where, shardings)


def read_config(folder: str | Path) -> SamConfig:
    """The config of a model, with the dtype of its files. Headers are read and compared with it, weights are not.

    Raises:
        InputError: the folder is not a supported Segment Anything model, its images are prepared in another way, or the tensors
            do not match the config.
    """
    config, tensors = _open(Path(folder))
    shapes = {name: tensor.shape for name, tensor in tensors.items() if _TIED.get(name) not in tensors}
    _check_shapes(jax.tree.leaves(weights(config), is_leaf=is_weight), shapes, f"{folder} ({config.model_type})")
    return config


def _open(folder: Path) -> tuple[SamConfig, dict[str, SafeTensor]]:
    """The config of a folder, with the dtype of most parameters, and its tensors by name; processor files are checked."""
    config = SamConfig.from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
    for name in processor_files(folder):
        check_processor(read_json(folder / name), str(folder / name), config.vision.image_size)
    tensors = read_headers(folder)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise InputError(f"expected one of {', '.join(DTYPES)}, got {tensor.dtype} for {name} in {tensor.file}; convert it")
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += math.prod(tensor.shape)
    return config.replace(dtype=str(DTYPES[sizes.most_common(1)[0][0]]) if sizes else config.dtype), dict(tensors)


def params_of_tensors(
    config: SamConfig,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    where: str,
    shardings: Shardings = None,
) -> Params:
    """The weights from tensors with Hugging Face's names.

    Args:
        config: the model, with the dtype of the weights.
        shapes: the shapes of all tensors by name.
        read: returns the tensor of a name; each is read once.
        where: the source, in messages.
        shardings: see :func:`load`.

    Raises:
        InputError: tensors are missing, unknown or of another shape, or exceed the dtype's range.
    """
    leaves, treedef = jax.tree.flatten(weights(config), is_leaf=is_weight)
    _check_shapes(leaves, shapes, where)
    target = shardings(config) if callable(shardings) else shardings
    targets = [None] * len(leaves) if target is None else jax.tree.leaves(target)
    arrays, dtype = [], np.dtype(jnp.dtype(config.dtype))
    for weight, sharding in zip(leaves, targets, strict=True):
        array = np.empty(weight.shape, dtype)
        for i, name in enumerate(weight.names):
            with np.errstate(over="ignore"):
                part = weight.from_file(read(name)).astype(dtype)
            if not all_finite(part):
                raise InputError(
                    f"expected weights within the range of {dtype}, got larger ones in tensor {name} of {where}; choose "
                    "another dtype"
                )
            array[... if weight.layers is None else i] = part
        arrays.append(jax.block_until_ready(jax.device_put(array, sharding)))
    return treedef.unflatten(arrays)


def save(
    folder: str | Path,
    config: SamConfig,
    params: Params,
    *,
    dtype: str | None = None,
    processor: str | Path | None = None,
    card: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that :func:`load` opens, and transformers' ``SamModel`` too if the image encoder is a ViT.

    The write is atomic, and an existing model is replaced. Tensors are in the order of their names, as the safetensors library
    writes them.

    Args:
        folder: a new place or a model folder.
        config: the config of the model.
        params: the weights.
        dtype: cast the weights to this dtype; by default the config's.
        processor: a folder whose processor files are copied byte for byte.
        card: text of the model card, ``README.md``.
        max_shard_bytes: the most bytes of a file, unless one tensor is larger.

    Raises:
        InputError: ``folder`` can't be made or is something other than a model folder, or weights are NaN or infinite (after
            the cast).
    """
    folder = check_target(folder)
    config = config.replace(dtype=dtype or config.dtype)
    copied = {name: (Path(processor) / name).read_bytes() for name in processor_files(processor)} if processor else {}
    with replacing_folder(folder) as new:
        text = json.dumps(config.to_hf(), indent=2, ensure_ascii=False) + "\n"
        (new / "config.json").write_text(text, encoding="utf-8")
        entries = sorted(_entries(config, params), key=lambda entry: entry.name)
        write_shards(new, entries, np.dtype(jnp.dtype(config.dtype)), max_shard_bytes)
        for name, content in copied.items():
            (new / name).write_bytes(content)
        if card is not None:
            (new / "README.md").write_text(card, encoding="utf-8")


def processor_files(folder: str | Path) -> list[str]:
    """The names of a folder's files that say how images are prepared."""
    return [name for name in PROCESSOR_FILES if (Path(folder) / name).is_file()]


def _read(name: str, tensor: SafeTensor) -> np.ndarray:
    return read_finite(name, tensor, 0, tensor.shape[0])


def _check_shapes(leaves: list[Weight], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    wanted = {name: weight.file_shape for weight in leaves for name in weight.names}
    missing, unknown = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or unknown:
        found = f"no {missing[0]}" if missing else f"the unknown {unknown[0]}"
        raise InputError(
            f"expected the {len(wanted)} tensors of the config, got {found} ({len(missing)} missing, {len(unknown)} unknown) "
            f"in {where}; choose weights that belong to the config"
        )
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            raise InputError(
                f"expected the shape {list(shape)} of {name}, got {list(shapes[name])} in {where}; choose weights that belong "
                "to the config"
            )


def _entries(config: SamConfig, params: Params) -> Iterator[Entry]:
    """The tensors of a file: name, shape, and a function that reads the tensor."""
    declared, leaves = jax.tree.leaves(weights(config), is_leaf=is_weight), jax.tree.leaves(params)
    dtype = np.dtype(jnp.dtype(config.dtype))

    def entry(weight: Weight, leaf: AnyArray, name: str, layer: int) -> Entry:
        def fetch() -> np.ndarray:
            part = np.asarray(leaf if weight.layers is None else leaf[layer])
            with np.errstate(over="ignore"):
                array = weight.to_file(part).astype(dtype, copy=False)
            if not all_finite(array):
                raise InputError(
                    f"expected finite weights to write, got NaN or Inf in tensor {name} as {dtype}; correct the weights"
                )
            return np.ascontiguousarray(array)

        return Entry(name, weight.file_shape, fetch)

    for weight, leaf in zip(declared, leaves, strict=True):
        for layer, name in enumerate(weight.names):
            yield entry(weight, leaf, name, layer)
