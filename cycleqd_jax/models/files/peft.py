"""PEFT folders of LoRA adapters as experts: their factors are read as they are, nothing is multiplied out.

What can't be said as a low-rank update θ = θ_base + scale · (B A)ᵀ, or as a whole weight trained beside, is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cycleqd_jax.models import llama
from cycleqd_jax.models.files.names import NAMES
from cycleqd_jax.models.files.safetensors import DTYPES, SafeTensor, all_finite, read_header, read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import Adapter, InputError, LowRank, Params, tree_paths

__all__ = ["adapter_base", "check_adapter", "is_adapter", "load_adapter"]

_CONFIG, _WEIGHTS, _PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"  # our paths


def is_adapter(folder: str | Path) -> bool:
    """Is this a PEFT folder?"""
    return os.path.isfile(Path(folder) / _CONFIG)  # Path.is_file raises for a name that is too long


def adapter_base(folder: str | Path) -> str | None:
    """The name or path of the base that the adapter was trained on, where it says so.

    Raises:
        InputError: there is no readable ``adapter_config.json``.
    """
    name = read_json(Path(folder) / _CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def check_adapter(folder: str | Path, config: LlamaConfig) -> dict[str, int | None]:
    """Checks an adapter against its base by its config and header alone: no weights are read.

    Args:
        folder: a PEFT folder.
        config: of the base.

    Returns:
        By the path of every weight that the adapter changes the rank of its update, or None where it brings the whole weight.

    Raises:
        InputError: as :func:`load_adapter`, but for what the numbers themselves decide.
    """
    contents = _inspect(Path(folder), config)
    ranks = {path: max(matrix.rank for matrix in matrices.values()) for path, matrices in contents.low_rank.items()}
    tied = {_HEAD} if config.tie_word_embeddings else set()
    return {path: ranks.get(path) for path in (*contents.low_rank, *contents.whole) if path not in tied}


def load_adapter(
    folder: str | Path, config: LlamaConfig, base: Params | None = None, *, vocab_size: int | None = None
) -> Adapter:
    """Reads an adapter.

    A linear layer with PEFT's A ``[r, in]`` and B ``[out, r]`` has the update a = scale · Aᵀ, b = Bᵀ of its ``[in, out]``
    weight; scale is lora_alpha / r, or lora_alpha / √r for rank-stabilised LoRA. Layers are stacked: those that the adapter
    leaves out are zero, and smaller ranks are padded with zeros.

    Args:
        folder: a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.
        config: of the base, with the vocabulary that the adapter was trained with.
        base: weights of the base. Needed where the adapter brings whole weights (``modules_to_save``, or the embedding, which
            PEFT saves along with an adapter of it): an update is the difference.
        vocab_size: keep the first rows of the embedding and the head, as :func:`.hf.load` does for ``base``;
            all by default.

    Returns:
        The adapter, in float32 NumPy arrays.

    Raises:
        InputError: the folder is not an adapter, or it is pickled or broken; its kind or an option is not supported; a tensor
            is missing, unknown, of another shape or dtype, NaN or infinite; ``base`` is needed; or a head that is tied to the
            embedding would differ from it.
    """
    folder = Path(folder)
    low_rank, whole, copies = _inspect(folder, config)
    reader = _Reader(None if base is None else dict(tree_paths(base)))
    for path, tensors in copies.items():
        for layer, tensor in tensors.items():
            one = _EMBEDDING if path == _HEAD and config.tie_word_embeddings else path
            if reader.change(one, layer, tensor) is not None:
                raise InputError(
                    f"expected {tensor.name} in {tensor.info.file} to be the base's weights, got others: the adapter was "
                    "trained on another base, or on a resized embedding; use that base"
                )
    if config.tie_word_embeddings:
        _check_tied(low_rank, whole, reader, folder)
        low_rank.pop(_HEAD, None)
        whole.pop(_HEAD, None)

    shapes = {
        path: leaf.shape
        for path, leaf in tree_paths(llama.abstract_params(config.replace(vocab_size=vocab_size or config.vocab_size)))
    }
    updates: dict[str, LowRank | np.ndarray] = {}
    for path, matrices in low_rank.items():
        *stack, m, n = shapes[path]
        rank = max(matrix.rank for matrix in matrices.values())
        a, b = np.zeros((*stack, m, rank), np.float32), np.zeros((*stack, rank, n), np.float32)
        for layer, (tensor_a, tensor_b, scale, r) in matrices.items():
            one = layer if stack else ...
            a[one][:, :r] = np.float32(scale) * reader.read(tensor_a)[:, :m].T.astype(np.float32)
            b[one][:r] = reader.read(tensor_b)[:n].T.astype(np.float32)
        updates[path] = LowRank(a, b)
    for path, tensors in whole.items():
        changes = {layer: reader.change(path, layer, tensor) for layer, tensor in tensors.items()}
        if any(change is not None for change in changes.values()):
            updates[path] = update = np.zeros(shapes[path], np.float32)
            for layer, change in changes.items():
                if change is not None:
                    update[layer if NAMES[path].stacked else ...] = change
    return Adapter(updates)


# --------------------------------------------------------------------------------------------------------------------
# What is in the folder


class _Tensor(NamedTuple):
    name: str
    info: SafeTensor


class _Matrix(NamedTuple):
    """The update scale · B A of one matrix."""

    a: _Tensor
    b: _Tensor
    scale: float
    rank: int


class _Contents(NamedTuple):
    """The tensors of an adapter, by path and layer (0 where there are no layers) of the weight that they change.

    Attributes:
        low_rank: factors.
        whole: weights trained beside.
        copies: weights of the base that PEFT saved along.
    """

    low_rank: dict[str, dict[int, _Matrix]]
    whole: dict[str, dict[int, _Tensor]]
    copies: dict[str, dict[int, _Tensor]]


def _weights(config: LlamaConfig) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """Hugging Face's name of every weight (a tied head too), our path and layer of it, and its shape in the checkpoint."""
    shapes = {path: leaf.shape for path, leaf in tree_paths(llama.abstract_params(config))}
    if config.tie_word_embeddings:
        shapes[_HEAD] = shapes[_EMBEDDING][::-1]
    for path, shape in shapes.items():
        name = NAMES[path]
        own = shape[1:] if name.stacked else shape
        for layer in range(shape[0] if name.stacked else 1):
            yield name.pattern.format(layer), path, layer, own[::-1] if name.transpose else own


def _inspect(folder: Path, config: LlamaConfig) -> _Contents:
    """Config and header of an adapter, checked to fit each other and the base."""
    options = _Options.read(folder / _CONFIG)
    left = _header(folder)

    def take(name: str, shape: tuple[int, ...], why: str) -> _Tensor:
        if name not in left:
            raise InputError(f"expected the tensor {name} in {folder / _WEIGHTS}, {why}, got none: save the adapter again")
        info = left.pop(name)
        if info.shape != shape:
            raise InputError(
                f"expected shape {list(shape)} for tensor {name} in {info.file}, got {list(info.shape)}: the adapter's base "
                f"has other sizes or another vocabulary, or {_CONFIG} names another rank"
            )
        if info.dtype not in DTYPES:
            raise InputError(
                f"expected dtype {', '.join(DTYPES)} for tensor {name} in {info.file}, got {info.dtype}: save the adapter in "
                "one of them"
            )
        return _Tensor(name, info)

    contents = _Contents({}, {}, {})
    for hf_name, path, layer, shape in _weights(config):
        module, linear = hf_name.removesuffix(".weight"), NAMES[path].transpose
        follows = path == _HEAD and config.tie_word_embeddings and options.ensure_weight_tying
        target = NAMES[_EMBEDDING].pattern.removesuffix(".weight") if follows else module
        if len(shape) == 2 and options.targets(target, linear):
            # of a linear layer A and B are layers too; of an embedding they are bare, and its weight is [in, out] already
            a, b = (f"{_PREFIX}{module}.lora_{x}.weight" if linear else f"{_PREFIX}{module}.lora_embedding_{x}" for x in "AB")
            m, n = shape[::-1] if linear else shape
            rank, scale = options.rank_and_scale(module)
            matrix = _Matrix(
                take(a, (rank, m), f"since target_modules in {_CONFIG} has {module}"),
                take(b, (n, rank), f"where {a} is"),
                scale,
                rank,
            )
            contents.low_rank.setdefault(path, {})[layer] = matrix
            copy = f"{_PREFIX}{module}.base_layer.weight"
            if copy in left:
                contents.copies.setdefault(path, {})[layer] = take(copy, shape, "")
        elif _PREFIX + hf_name in left or options.saves(hf_name):
            tensor = take(_PREFIX + hf_name, shape, f"since modules_to_save in {_CONFIG} has its module")
            contents.whole.setdefault(path, {})[layer] = tensor
    if left:
        name = min(left)
        raise InputError(
            f"expected the tensors of a LoRA adapter of the base, as {_CONFIG} describes it, got an unknown {name} in "
            f"{folder / _WEIGHTS} ({len(left)} such in all): the adapter has another base or other target_modules, or is of a "
            "kind that is not supported"
        )
    for path in contents.low_rank.keys() & contents.whole.keys():
        factors, tensor = next(iter(contents.low_rank[path].values())), next(iter(contents.whole[path].values()))
        raise InputError(
            f"expected either low-rank factors or whole weights for one kind of weight in {folder}, got {factors.a.name} and "
            f"{tensor.name}: merge it into its base with peft, merge_and_unload(), and give the result as an expert"
        )
    if config.tie_word_embeddings and (_EMBEDDING in contents.low_rank) != (_HEAD in contents.low_rank):
        raise _untied(folder)
    return contents


def _header(folder: Path) -> dict[str, SafeTensor]:
    if (folder / _WEIGHTS).is_file():
        return read_header(folder / _WEIGHTS)
    if (folder / _PICKLED).is_file():
        raise InputError(
            f"expected {_WEIGHTS} in {folder}, got pickled weights ({_PICKLED}), which run code when they are read: convert "
            "them with peft, PeftModel.from_pretrained(base, folder).save_pretrained(other_folder)"
        )
    raise InputError(f"expected {_WEIGHTS} in {folder}, got no such file: correct the path or finish the download")


# --------------------------------------------------------------------------------------------------------------------
# Numbers


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads tensors, checked, and whole weights as their difference from the base's."""

    base: dict[str, Any] | None

    def read(self, tensor: _Tensor) -> np.ndarray:
        array = tensor.info.read(0, tensor.info.shape[0])
        if not all_finite(array):
            raise InputError(
                f"expected finite weights, got NaN or Inf in tensor {tensor.name} of {tensor.info.file}: use a sound adapter"
            )
        return array

    def change(self, path: str, layer: int, tensor: _Tensor) -> np.ndarray | None:
        """What a whole weight adds to the base's, as ours is laid out; None where it is the base's in either's dtype."""
        if self.base is None:
            raise InputError(
                f"expected the weights of the base, since {tensor.info.file} has the whole tensor {tensor.name} and an update "
                "is the difference, got none: load the base first"
            )
        ours = np.asarray(self.base[path][layer] if NAMES[path].stacked else self.base[path])
        theirs = self.read(tensor)
        theirs = (theirs.T if NAMES[path].transpose else theirs)[tuple(slice(size) for size in ours.shape)]
        if np.array_equal(ours.astype(theirs.dtype), theirs) or np.array_equal(ours, theirs.astype(ours.dtype)):
            return None
        return theirs.astype(np.float32) - ours.astype(np.float32)


def _check_tied(
    low_rank: dict[str, dict[int, _Matrix]], whole: dict[str, dict[int, _Tensor]], reader: _Reader, folder: Path
) -> None:
    """Refuses an adapter by which a tied head and the embedding would come apart."""
    if _HEAD in low_rank:
        e, h = low_rank[_EMBEDDING][0], low_rank[_HEAD][0]
        same = e.scale == h.scale and all(
            np.array_equal(reader.read(one).T, reader.read(other)) for one, other in ((e.a, h.b), (e.b, h.a))
        )
    else:
        e, h = (reader.change(_EMBEDDING, 0, whole[path][0]) if path in whole else None for path in (_EMBEDDING, _HEAD))
        same = (e is None and h is None) or (e is not None and h is not None and np.array_equal(e, h))
    if not same:
        raise _untied(folder)


def _untied(folder: Path) -> InputError:
    # PEFT's own model of such an adapter computes with two different matrices until it is merged, and with one after
    return InputError(
        f"expected lm_head and embed_tokens of the adapter {folder} to change alike, since the base ties them, got different "
        "changes, by which the model would not stay tied: untie the base first, or train with ensure_weight_tying"
    )


# --------------------------------------------------------------------------------------------------------------------
# adapter_config.json

_UNDERSTOOD = {"peft_type", "bias", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
_UNDERSTOOD |= {
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "ensure_weight_tying",
}
# These do not bear on merged weights. fan_in_fan_out is for another kind of layer, and PEFT ignores it for torch's Linear;
# the options of an initialisation don't matter once it is known to leave the base as it was.
_UNDERSTOOD |= {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
_UNDERSTOOD |= {"lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"}
_UNDERSTOOD |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}

_INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclasses.dataclass(frozen=True)
class _Options:
    """An adapter's config; names are matched as PEFT matches them. ``module`` reads ``model.layers.0.self_attn.q_proj``."""

    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    ensure_weight_tying: bool

    @classmethod
    def read(cls, path: Path) -> _Options:
        """Reads and checks a config.

        Raises:
            InputError: it is missing, is not of LoRA, or has an option that is unknown or not supported.
        """
        raw = read_json(path)
        merge = "merge it into its base with peft, merge_and_unload(), and give the result as an expert"

        def check(name: str, ok: Callable[[Any], bool], expected: str, advice: str = "correct the config") -> Any:
            if not ok(raw.get(name)):
                raise InputError(f"expected {expected} for {name!r} in {path}, got {raw.get(name)!r}: {advice}")
            return raw.get(name)

        def number(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

        def positive(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value > 0

        def strings(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)

        def pattern(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
            return lambda value: not value or (isinstance(value, dict) and all(of(item) for item in value.values()))

        def several(name: str, kind: type) -> tuple[Any, ...]:
            def ok(value: Any) -> bool:
                items = value if isinstance(value, list) else [] if value is None else [value]
                return all(isinstance(item, kind) and not isinstance(item, bool) for item in items)

            value = check(name, ok, f"nothing, or a list of {kind.__name__}")
            return tuple(value) if isinstance(value, list) else () if value is None else (value,)

        check("peft_type", lambda value: value == "LORA", "'LORA'", merge)
        for name in raw:
            if name not in _UNDERSTOOD:
                check(name, lambda value: not value, "nothing or false", f"it is not supported, {merge}")
        check("bias", lambda value: value in (None, "none"), "'none'", merge)
        check(
            "init_lora_weights",
            lambda value: value is None or value in _INITS_THAT_KEEP_THE_BASE,
            "an initialisation that leaves the base as it is",
            f"save it again with save_pretrained(folder, path_initial_model_for_weight_conversion=...) of peft, or {merge}",
        )
        pattern_or_names = "a pattern or a list of names"
        targets = check("target_modules", lambda value: isinstance(value, str) or strings(value), pattern_or_names)
        exclude = check(
            "exclude_modules", lambda value: not value or isinstance(value, str) or strings(value), pattern_or_names
        )
        options = cls(
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            exclude_modules=exclude if isinstance(exclude, str) else tuple(exclude or ()),
            layers=several("layers_to_transform", int),
            layers_pattern=tuple(filter(None, several("layers_pattern", str))),
            modules_to_save=several("modules_to_save", str),
            rank=check("r", positive, "a positive integer"),
            alpha=check("lora_alpha", number, "a number"),
            rank_pattern=check("rank_pattern", pattern(positive), "positive integers by name") or {},
            alpha_pattern=check("alpha_pattern", pattern(number), "numbers by name") or {},
            use_rslora=bool(raw.get("use_rslora")),
            ensure_weight_tying=bool(raw.get("ensure_weight_tying")),
        )
        whole = [value for value in (options.target_modules, options.exclude_modules) if isinstance(value, str)]
        try:
            for part in (
                *whole,
                *options.layers_pattern,
                *options.modules_to_save,
                *options.rank_pattern,
                *options.alpha_pattern,
            ):
                re.compile(part)
        except re.error as error:
            raise InputError(f"expected regular expressions in {path}, got {error.pattern!r} ({error}): correct it") from error
        return options

    def targets(self, module: str, linear: bool) -> bool:
        """Does the adapter have factors for a module?"""
        if isinstance(self.exclude_modules, str):
            if self.exclude_modules and re.fullmatch(self.exclude_modules, module):
                return False
        elif _named(module, self.exclude_modules):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules == "all-linear":
                return linear and module != "lm_head"
            return re.fullmatch(self.target_modules, module) is not None
        if not _named(module, self.target_modules):
            return False
        if not self.layers:
            return True
        heads = [rf"(?:^|.*?\.){name}" for name in self.layers_pattern] or [r".*?\.[^.]*"]
        found = next(filter(None, (re.match(rf"{head}\.(?P<idx>\d+)\.", module) for head in heads)), None)
        return found is not None and int(found["idx"]) in self.layers

    def saves(self, tensor: str) -> bool:
        """Does the adapter bring the whole of a tensor of the base?"""
        parts = tensor.split(".")
        modules = [".".join(parts[:i]) for i in range(1, len(parts))]
        return any(module.endswith(name) for module in modules for name in self.modules_to_save)

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """Rank r of a module, and lora_alpha / r or lora_alpha / √r."""

        def lookup(patterns: dict[str, Any], default: Any) -> Any:
            return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", module)), default)

        rank, alpha = lookup(self.rank_pattern, self.rank), lookup(self.alpha_pattern, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _named(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
