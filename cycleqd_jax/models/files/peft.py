"""LoRA adapters in PEFT folders as experts: their factors are read without multiplying them out.

Supported are low-rank updates θ = θ_base + scale · (B A)ᵀ and whole weights trained beside them. Other options are errors.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cycleqd_jax.models import llama
from cycleqd_jax.models.files.names import NAMES, plain_name
from cycleqd_jax.models.files.peft_config import CONFIG, MERGE, LoraConfig
from cycleqd_jax.models.files.safetensors import DTYPES, SafeTensor, all_finite, read_header
from cycleqd_jax.models.folder import read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import Adapter, InputError, LowRank, Params, tree_paths

__all__ = ["adapter_base", "check_adapter", "is_adapter", "load_adapter"]

_WEIGHTS, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"  # our paths


def is_adapter(folder: str | Path) -> bool:
    """Whether this is a PEFT folder."""
    return os.path.isfile(Path(folder) / CONFIG)  # unlike Path.is_file, no error for a name that is too long


def adapter_base(folder: str | Path) -> str | None:
    """The name or path of the adapter's base, if its config has one.

    Raises:
        InputError: there is no readable ``adapter_config.json``.
    """
    name = read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def check_adapter(folder: str | Path, config: LlamaConfig) -> dict[str, int | None]:
    """Checks that an adapter matches its base, from its config and header; no weights are read.

    Args:
        folder: a PEFT folder.
        config: the config of the base.

    Returns:
        The rank of the update of every weight that the adapter changes, by path; None where it has the whole weight.

    Raises:
        InputError: see :func:`load_adapter`, except for the checks of values.
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
    weight; scale is lora_alpha / r, or lora_alpha / √r for rank-stabilised LoRA. Layers are stacked: layers without an update
    are zero, and smaller ranks are padded with zeros.

    Args:
        folder: a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.
        config: the config of the base, with the vocabulary size that the adapter was trained with.
        base: weights of the base. They are needed where the adapter has whole weights, whose update is the difference from the
            base (``modules_to_save``, or an embedding, which PEFT saves together with its factors).
        vocab_size: keep this many rows of the embedding and the head, as :func:`.hf.load` does for ``base``; all by default.

    Returns:
        The adapter, in float32 NumPy arrays.

    Raises:
        InputError: the folder is not an adapter, or is pickled or corrupt; its kind or an option is not supported; a tensor is
            missing, unknown, of another shape or dtype, NaN or infinite; ``base`` is needed; or a tied head would differ from
            the embedding.
    """
    folder = Path(folder)
    low_rank, whole, copies = _inspect(folder, config)
    reader = _Reader(None if base is None else dict(tree_paths(base)))
    for path, tensors in copies.items():
        for layer, tensor in tensors.items():
            one = _EMBEDDING if path == _HEAD and config.tie_word_embeddings else path
            if reader.change(one, layer, tensor) is not None:
                raise InputError(
                    f"expected the base's weights as {tensor.name} in {tensor.info.file}, got other weights; use the base that "
                    "the adapter was trained on (its embedding may have been resized)"
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
# Config and header


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
    """The tensors of an adapter, by path and layer (0 for weights without layers) of the weight that they change.

    Attributes:
        low_rank: factors.
        whole: whole weights that were trained.
        copies: weights of the base that PEFT saved too.
    """

    low_rank: dict[str, dict[int, _Matrix]]
    whole: dict[str, dict[int, _Tensor]]
    copies: dict[str, dict[int, _Tensor]]


def _weights(config: LlamaConfig) -> Iterator[tuple[str, str, int, tuple[int, ...]]]:
    """Hugging Face's name of every weight (also of a tied head), our path, the layer, and the shape in the checkpoint."""
    shapes = {path: leaf.shape for path, leaf in tree_paths(llama.abstract_params(config))}
    if config.tie_word_embeddings:
        shapes[_HEAD] = shapes[_EMBEDDING][::-1]
    for path, shape in shapes.items():
        name = NAMES[path]
        own = shape[1:] if name.stacked else shape
        for layer in range(shape[0] if name.stacked else 1):
            yield name.pattern.format(layer), path, layer, own[::-1] if name.transpose else own


def _inspect(folder: Path, config: LlamaConfig) -> _Contents:
    """Checks that config, header and base match, and sorts the tensors."""
    options = LoraConfig.read(folder / CONFIG)
    if options.bias != "none" and any(path.endswith("_bias") for _, path, _, _ in _weights(config)):
        raise InputError(
            f"expected 'none' for 'bias' in {folder / CONFIG}, whose base has biases, got {options.bias!r}; {MERGE}"
        )
    left = _header(folder)

    def take(name: str, shape: tuple[int, ...], why: str) -> _Tensor:
        if name not in left:
            raise InputError(f"expected the tensor {name} in {folder / _WEIGHTS} ({why}), got none; save the adapter again")
        info = left.pop(name)
        if info.shape != shape:
            raise InputError(
                f"expected shape {list(shape)} for tensor {name} in {info.file}, got {list(info.shape)}; use the adapter's own "
                f"base and vocabulary, or correct the rank in {CONFIG}"
            )
        if info.dtype not in DTYPES:
            raise InputError(
                f"expected dtype {', '.join(DTYPES)} for tensor {name} in {info.file}, got {info.dtype}; save the adapter in "
                "one of these"
            )
        return _Tensor(name, info)

    contents = _Contents({}, {}, {})
    for hf_name, path, layer, shape in _weights(config):
        module, linear = hf_name.removesuffix(".weight"), NAMES[path].transpose
        follows = path == _HEAD and config.tie_word_embeddings and options.ensure_weight_tying
        target = NAMES[_EMBEDDING].pattern.removesuffix(".weight") if follows else module
        if len(shape) == 2 and options.targets(target, linear):
            # The factors of a linear layer are layers; those of an embedding are plain tensors, and its weight is [in, out].
            a, b = (f"{_PREFIX}{module}.lora_{x}.weight" if linear else f"{_PREFIX}{module}.lora_embedding_{x}" for x in "AB")
            m, n = shape[::-1] if linear else shape
            rank, scale = options.rank_and_scale(module)
            matrix = _Matrix(
                take(a, (rank, m), f"{module} is one of target_modules in {CONFIG}"),
                take(b, (n, rank), f"it belongs to {a}"),
                scale,
                rank,
            )
            contents.low_rank.setdefault(path, {})[layer] = matrix
            copy = f"{_PREFIX}{module}.base_layer.weight"
            if copy in left:
                contents.copies.setdefault(path, {})[layer] = take(copy, shape, "")
        elif _PREFIX + hf_name in left or options.saves(hf_name):
            tensor = take(_PREFIX + hf_name, shape, f"its module is one of modules_to_save in {CONFIG}")
            contents.whole.setdefault(path, {})[layer] = tensor
    if left:
        name = min(left)
        raise InputError(
            f"expected the tensors of a LoRA adapter as in {CONFIG}, got an unknown {name} in {folder / _WEIGHTS} (unknown "
            f"tensors: {len(left)}); use the adapter's own base and correct target_modules, or merge another kind of adapter "
            "into its base"
        )
    for path in contents.low_rank.keys() & contents.whole.keys():
        factors, tensor = next(iter(contents.low_rank[path].values())), next(iter(contents.whole[path].values()))
        raise InputError(
            f"expected either low-rank factors or whole weights for one kind of weight in {folder}, got {factors.a.name} and "
            f"{tensor.name}; {MERGE}"
        )
    if config.tie_word_embeddings and (_EMBEDDING in contents.low_rank) != (_HEAD in contents.low_rank):
        raise _not_tied(folder)
    return contents


def _header(folder: Path) -> dict[str, SafeTensor]:
    if (folder / _WEIGHTS).is_file():
        return _named_as_peft(read_header(folder / _WEIGHTS))
    if (folder / _PICKLED).is_file():
        raise InputError(
            f"expected {_WEIGHTS} in {folder}, got pickled weights ({_PICKLED}), which can run code when they are read; "
            "convert them with peft, PeftModel.from_pretrained(base, folder).save_pretrained(other_folder)"
        )
    raise InputError(f"expected {_WEIGHTS} in {folder}, got no such file; correct the path or finish the download")


def _named_as_peft(header: dict[str, SafeTensor]) -> dict[str, SafeTensor]:
    """Tensors with the names that PEFT gives them, also where a trainer saved them from a wrapped model (``plain_name``)."""
    modules = {plain_name(name.pattern).partition(".")[0] for name in NAMES.values()}
    named = {}
    for name in header:
        plain = plain_name(name)
        first = plain.partition(".")[0]
        named[name] = f"{_PREFIX}{'' if first == _HEAD else 'model.'}{plain}" if first in modules else name
    count = collections.Counter(named.values())
    return {target if count[target] == 1 else name: header[name] for name, target in named.items()}


# --------------------------------------------------------------------------------------------------------------------
# Weights


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads and checks tensors, and computes the differences of whole weights from the base's."""

    base: dict[str, Any] | None

    def read(self, tensor: _Tensor) -> np.ndarray:
        array = tensor.info.read(0, tensor.info.shape[0])
        if not all_finite(array):
            raise InputError(
                f"expected finite weights, got NaN or Inf in tensor {tensor.name} of {tensor.info.file}; use another adapter"
            )
        return array

    def change(self, path: str, layer: int, tensor: _Tensor) -> np.ndarray | None:
        """The difference of a whole weight from the base's, in our layout; None if they are equal in the dtype of either."""
        if self.base is None:
            raise InputError(
                f"expected the weights of the base, to compare with the whole tensor {tensor.name} in {tensor.info.file}, got "
                "none; load the base first"
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
    """Raises if an adapter changes a tied head and the embedding differently."""
    if _HEAD in low_rank:
        e, h = low_rank[_EMBEDDING][0], low_rank[_HEAD][0]
        same = e.scale == h.scale and all(
            np.array_equal(reader.read(one).T, reader.read(other)) for one, other in ((e.a, h.b), (e.b, h.a))
        )
    else:
        e, h = (reader.change(_EMBEDDING, 0, whole[path][0]) if path in whole else None for path in (_EMBEDDING, _HEAD))
        same = (e is None and h is None) or (e is not None and h is not None and np.array_equal(e, h))
    if not same:
        raise _not_tied(folder)


def _not_tied(folder: Path) -> InputError:
    # PEFT computes with two different matrices until such an adapter is merged, and with one afterwards.
    return InputError(
        f"expected equal changes of lm_head and embed_tokens, which the base ties, got different ones in the adapter {folder}; "
        "untie the base first, or train with ensure_weight_tying"
    )
