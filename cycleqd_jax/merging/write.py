"""Merges models tensor by tensor into a new folder; memory is that of one tensor of every model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.files import check_space, check_writable, replacing_folder
from cycleqd_jax.merging.card import merge_card
from cycleqd_jax.merging.recipe import METHODS, Model, Recipe, load_recipe
from cycleqd_jax.merging.sources import (
    Source,
    check_heads,
    check_tokenizers,
    differing_settings,
    download,
    layer_positions,
    open_sources,
)
from cycleqd_jax.models.files.hf import check_target
from cycleqd_jax.models.files.safetensors import DTYPES, Entry, Tensor, all_finite, read_finite, write_shards
from cycleqd_jax.models.folder import PROCESSOR_FILES, code_files, read_json, tokenizer_files
from cycleqd_jax.operators.by_leaf import keep_counts
from cycleqd_jax.operators.mix import linear_leaf, mix_leaf, slerp_leaf
from cycleqd_jax.operators.select import Cut, Drop, find_cut, leaf_key, norm_ratio
from cycleqd_jax.types import Array, Float, InputError, PRNGKeyArray, Progress, no_progress

__all__ = ["merge_models"]


@dataclasses.dataclass(frozen=True)
class Values:
    """The parameters of one tensor.

    Attributes:
        weights: the weights of every model.
        densities: the densities of every model.
        shared: the parameters that all models share, by name.
    """

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    shared: Mapping[str, float]


def merge_models(
    config: str | Path | Recipe,
    folder: str | Path,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Callable[[str], None] = lambda line: None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Merges models as a mergekit config says, and writes a Hugging Face folder.

    Tokenizer, processor, ``config.json`` and the code that they name are those of the base, or of the first model where there
    is none. The arithmetic is in float32 whatever the dtype of the files; the result is cast once. The folder appears when it
    is complete.

    Args:
        config: the path of the config, or what :func:`~.recipe.load_recipe` returned for it.
        folder: a new place, or a model folder to replace.
        seed: the seed of the random masks of DARE.
        progress: called after every tensor.
        log: called with warnings.
        max_shard_bytes: the most bytes of a file, unless one tensor is larger.

    Returns:
        The folder.

    Raises:
        InputError: the config is not supported, models can't be read or differ, parameters are missing or out of range, or
            the folder can't be written. Nothing is written then.
        OSError: the disk refuses; nothing is left of the new folder.
    """
    recipe = config if isinstance(config, Recipe) else load_recipe(config)
    if not 0 <= seed < 1 << 32:
        raise InputError(f"expected a seed from 0 to {(1 << 32) - 1}, got {seed}; choose another seed")
    target = check_target(folder)
    check_writable(target.parent, "choose another folder")
    names: list[str] = [recipe.base] if recipe.base is not None else []
    names += [model.name for model in recipe.models if model.name not in names]
    for name in names:
        if os.path.realpath(name) == str(target):
            raise InputError(f"expected a folder that is no model of the merge, got {folder}; choose another place")
    sources = open_sources(names)
    for warning in differing_settings(sources):
        log(warning)
    values = _plan(recipe, sources[0])
    if recipe.same_tokenizer:
        check_tokenizers(sources)
    dtype = np.dtype(recipe.dtype or _main_dtype(sources[0]))
    size = sum(int(np.prod(tensor.shape)) for tensor in sources[0].tensors.values()) * dtype.itemsize
    check_space(target, size, "the result")
    sources = [download(source, sources[0]) for source in sources]
    for source in sources:
        check_heads(source)
    by_name = {source.name: source for source in sources}
    models = [by_name[model.name] for model in recipe.models]
    key, total = jax.random.key(seed), len(values)
    progress("merge", 0, total, {})

    def entry(done: int, name: str) -> Entry:
        def read() -> np.ndarray:
            merged = np.asarray(_merge_tensor(recipe.method, name, sources[0], models, values[name], dtype.name, key))
            if not all_finite(merged):
                raise InputError(f"expected finite weights, got NaN or Inf in tensor {name} as {dtype}; choose another dtype")
            progress("merge", done, total, {})
            return merged

        return Entry(name, sources[0].tensors[name].shape, read)

    with replacing_folder(target) as new:
        _copy_files(sources[0], new, dtype.name, log)  # before the work: some may be unreadable
        write_shards(new, (entry(i + 1, name) for i, name in enumerate(values)), dtype, max_shard_bytes)
        (new / "mergekit_config.yml").write_text(recipe.text, encoding="utf-8")
        (new / "README.md").write_text(merge_card(recipe, target.name, names), encoding="utf-8")
    return target


def _plan(recipe: Recipe, first: Source) -> dict[str, Values]:
    """The parameters of every tensor; refuses what is missing or out of range."""
    positions, layers = layer_positions(list(first.tensors))
    where = recipe.path
    if not any(positions.values()) and any(setting.by_layer for setting in recipe.settings):
        raise InputError(
            f"expected models with layers for lists of values, got no layer in {first.name}; write single values in {where}"
        )
    for name, span in [*((model.name, model.layers) for model in recipe.models), (recipe.base, recipe.base_layers)]:
        if span is not None and span != (0, layers):
            raise InputError(
                f"expected layer_range [0, {layers}], all layers, got {list(span)} for {name} in {where}; use mergekit"
            )
    values = {tensor: _values(recipe, tensor, position) for tensor, position in positions.items()}
    if METHODS[recipe.method].per_model and not any(any(one.weights) for one in values.values()):
        raise InputError(
            f"expected a weight other than zero, got zero for all models and tensors in {where}; correct the weights"
        )
    return values


def _values(recipe: Recipe, tensor: str, position: float) -> Values:
    method, where = METHODS[recipe.method], recipe.path

    def read(name: str, model: Model | None = None) -> float:
        found = recipe.value(name, tensor, position, model)
        if found is None:
            owner = f" of {model.name}" if model is not None else ""
            raise InputError(f"expected a {name}{owner} for tensor {tensor}, got none in {where}; add it to parameters")
        return found

    shared = {name: read(name) for name in method.shared}
    weights = tuple(read("weight", model) for model in recipe.models) if "weight" in method.per_model else ()
    densities = tuple(read("density", model) for model in recipe.models) if "density" in method.per_model else ()
    for model, density in zip(recipe.models, densities, strict=False):
        if not 0 < density <= 1:
            raise InputError(
                f"expected a density above 0 and at most 1, got {density} of {model.name} for tensor {tensor} in "
                f"{where}; correct it"
            )
    if recipe.method == "linear" and shared["normalize"] and abs(sum(weights)) < 1e-8:
        raise InputError(
            f"expected weights with a sum other than zero, got zero for tensor {tensor} in {where}; correct the weights"
        )
    return Values(weights, densities, shared)


def _main_dtype(source: Source) -> np.dtype:
    """The dtype of most parameters."""
    sizes: dict[str, int] = {}
    for tensor in source.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + int(np.prod(tensor.shape))
    return DTYPES[max(sizes, key=lambda kind: sizes[kind])]


def _copy_files(source: Source, folder: Path, dtype: str, log: Callable[[str], None]) -> None:
    """Copies the small files of the base: its config, tokenizer, processor, and the code that they name."""
    files = [*tokenizer_files(source.folder), *(name for name in PROCESSOR_FILES if (source.folder / name).is_file())]
    config, code = dict(source.config), set()
    for name in ("config.json", *(name for name in files if name in ("tokenizer_config.json", *PROCESSOR_FILES))):
        there, missing = code_files(source.folder, config if name == "config.json" else read_json(source.folder / name))
        if missing and name == "config.json":
            del config["auto_map"]
        if missing:
            effect = "the result has no auto_map" if name == "config.json" else "the result lacks it too"
            log(f"warning: expected the code {', '.join(missing)} that {name} of {source.name} names, got none; {effect}")
        else:
            code |= set(there)
    _write_config(config, folder, dtype)
    for file in (*files, *sorted(code)):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source.folder / file, folder / file)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config with another dtype wherever it has one, also in the configs of parts, such as ``text_config``."""
    parts = {
        key: _with_dtype(part, dtype) for key, part in config.items() if key.endswith("_config") and isinstance(part, dict)
    }
    return {**config, **parts, **{key: dtype for key in ("dtype", "torch_dtype") if key in config}}


def _write_config(config: Mapping[str, Any], folder: Path, dtype: str) -> None:
    """The config of the base, with the dtype of the result under the keys that the base uses."""
    config = _with_dtype(config, dtype)
    if "dtype" not in config:
        config["torch_dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(name: str, tensor: Tensor) -> Array:
    rows = tensor.shape[0] if tensor.shape else 1
    return jnp.asarray(read_finite(name, tensor, 0, rows).reshape(tensor.shape))


def _merge_tensor(
    method: str, name: str, first: Source, models: Sequence[Source], values: Values, dtype: str, key: PRNGKeyArray
) -> Float[Array, "*shape"]:
    shared = values.shared
    weights = [np.asarray(weight, np.float32) for weight in values.weights]
    if method == "linear":
        leaves = [_read(name, model.tensors[name]) for model in models]
        return linear_leaf(leaves, weights, normalize=bool(shared["normalize"]), dtype=dtype)
    base, *experts = (_read(name, source.tensors[name]) for source in (first, *models))
    if method == "slerp":
        return slerp_leaf(base, base, experts[0], np.asarray(shared["t"], np.float32), dtype=dtype)
    masks: list[Cut | Drop | None] = [None] * len(experts)
    factors: list[Array | None] = [None] * len(experts)
    for k, (expert, density) in enumerate(zip(experts, values.densities, strict=True)):
        if density >= 1 or method == "task_arithmetic":
            continue
        if method == "ties":
            mask = find_cut(base, expert, keep_counts(density, base.size))
        else:
            mask = Drop(leaf_key(key, name, k), jnp.float32(density))
        masks[k] = mask
        factors[k] = norm_ratio(base, expert, mask, 0) if shared["rescale"] else None
    return mix_leaf(
        base, experts, weights, np.asarray(shared["lambda"], np.float32), masks, factors,
        elect=method.endswith("ties"), normalize=bool(shared["normalize"]), dtype=dtype,
    )  # fmt: skip
