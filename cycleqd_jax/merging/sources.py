"""The models of a merge: any Hugging Face folder with safetensors, compared by its headers before weights are read."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.models.files import hub
from cycleqd_jax.models.files.names import EMBEDDING, HEAD, hf_shapes, is_unused, recognise, unwrapped
from cycleqd_jax.models.files.safetensors import DTYPES, Tensor, read_headers, row_chunks
from cycleqd_jax.models.folder import read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import InputError

__all__ = [
    "Source",
    "check_heads",
    "check_tokenizers",
    "differing_settings",
    "download",
    "layer_positions",
    "open_sources",
]

_SETTINGS = ("rope_theta", "rope_scaling", "rms_norm_eps")
_OTHER_SETTINGS = (*_SETTINGS, "rope_parameters", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "hidden_act")
"""Keys of configs that no tensor shows, and with which weights compute something else."""

_LAYER = re.compile(r"\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model whose weights have not been read.

    Attributes:
        name: the folder or repository, as the config names it.
        folder: the folder of its small files.
        config: its ``config.json``.
        tensors: its tensors, by the names of the first model.
        head: a stored output head that should be the embedding, because its config or that of the first model ties them. It is
            not merged.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Tensor | None = None

    @property
    def remote(self) -> bool:
        """Whether the weights must be downloaded."""
        return not all(isinstance(tensor.file, Path) for tensor in self.tensors.values())


def _open(name: str) -> Source:
    path = Path(name)
    if path.is_dir():
        folder, tensors = path, None
    elif hub.is_repository(name) and not path.exists():
        folder, tensors = hub.download(name), None
        tensors = hub.headers(name, folder)
    else:
        got = "another kind of file" if path.exists() else "no such folder"
        raise InputError(
            f"expected a Hugging Face model folder or a repository owner/name, got {got}: {name}; correct the path"
        )
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):  # the result would have it too, and be quantised wherever it is loaded
        raise InputError(
            f"expected a model without quantization_config, got one in {folder / 'config.json'}; save the model in float32, "
            "bfloat16 or float16"
        )
    found = read_headers(folder) if tensors is None else tensors
    names = _plain_names(config, [key for key in found if not is_unused(key)])
    kept = {name: found[key] for key, name in names.items()}
    for key, tensor in kept.items():
        if tensor.dtype not in DTYPES:
            raise InputError(
                f"expected dtype {', '.join(DTYPES)} for tensor {key} in {tensor.file}, got {tensor.dtype}; use another model"
            )
    tied = config.get("tie_word_embeddings") is True
    if tied and EMBEDDING not in kept and HEAD in kept:
        kept = {EMBEDDING if name == HEAD else name: tensor for name, tensor in kept.items()}  # one name of a shared tensor
    head = kept.pop(HEAD, None) if tied and EMBEDDING in kept else None
    return Source(name, folder, config, kept, head)


def _plain_names(config: Mapping[str, Any], found: Sequence[str]) -> dict[str, str]:
    """By every name of a file the name that transformers uses, also where a trainer saved a wrapped model."""
    known = {name: name for name in found}
    with contextlib.suppress(InputError):  # a model of another architecture, which a merge needs not know
        shape = LlamaConfig.from_hf(config)
        if shape.num_hidden_layers <= len(found):  # a huge number would take long
            known = recognise(found, [*hf_shapes(shape), HEAD])
    plain = {key: unwrapped(name) for key, name in known.items()}
    return plain if len({*plain.values()}) == len(plain) else known


def open_sources(names: Sequence[str]) -> list[Source]:
    """Opens models and compares their tensors with those of the first; no weights are read.

    Args:
        names: folders, or repositories of the hub.

    Raises:
        InputError: a model can't be read, or is not of the first one's architecture, names and shapes.
    """
    sources = [_open(name) for name in names]
    first = sources[0]
    return [first, *(_fit(source, first) for source in sources[1:])]


def _fit(source: Source, first: Source) -> Source:
    kinds = [one.config.get("model_type") for one in (first, source)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"expected models of one architecture, got {kinds[0]} in {first.name} and {kinds[1]} in {source.name}; merge "
            "fine-tunings of one base"
        )
    heads = [one.config.get("num_attention_heads") for one in (first, source)]  # shapes only have heads times their width
    if None not in heads and heads[0] != heads[1]:
        raise InputError(
            f"expected models with one num_attention_heads, got {heads[0]} in {first.name} and {heads[1]} in {source.name}; "
            "merge fine-tunings of one base"
        )
    known = recognise(source.tensors, first.tensors)
    tensors = {known[key]: tensor for key, tensor in source.tensors.items()}
    if HEAD in first.tensors and HEAD not in tensors and source.config.get("tie_word_embeddings") is True:
        tensors[HEAD] = tensors[EMBEDDING]
    head = source.head
    if first.config.get("tie_word_embeddings") is True and EMBEDDING in tensors and HEAD not in first.tensors:
        head = tensors.pop(HEAD, head)
    missing = [key for key in first.tensors if key not in tensors]
    extra = [key for key in tensors if key not in first.tensors]
    if missing or extra:
        raise InputError(
            f"expected the same tensors in all models, got {_some(missing)} only in {first.name} and {_some(extra)} only in "
            f"{source.name}; merge fine-tunings of one base"
        )
    for key, tensor in first.tensors.items():
        if tensor.shape != tensors[key].shape:
            raise InputError(
                f"expected one shape for tensor {key}, got {list(tensor.shape)} in {first.name} and "
                f"{list(tensors[key].shape)} in {source.name}; merge fine-tunings of one base and vocabulary"
            )
    return dataclasses.replace(source, tensors={key: tensors[key] for key in first.tensors}, head=head)


def _some(names: Sequence[str]) -> str:
    return (", ".join(names[:3]) or "none") + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def download(source: Source, first: Source) -> Source:
    """The model with its weights on this machine.

    Args:
        source: the model.
        first: the first model of the merge, to compare with.

    Raises:
        InputError: see :func:`~cycleqd_jax.models.files.hub.download_weights`.
    """
    if not source.remote:
        return source
    size = sum(int(np.prod(one.shape)) * DTYPES[one.dtype].itemsize for one in source.tensors.values())
    hub.download_weights(source.name, source.folder, size)
    here = _open(source.name)
    return here if source.name == first.name else _fit(here, first)


def check_heads(source: Source) -> None:
    """Checks that a stored head is the embedding, where the config or that of the first model ties them; it reads both.

    Raises:
        InputError: they differ.
    """
    if source.head is None:
        return
    head, embedding = source.head, source.tensors[EMBEDDING]
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and all(
        np.array_equal(head.read(*rows), embedding.read(*rows)) for rows in row_chunks(head)
    )
    if not same and source.config.get("tie_word_embeddings") is not True:
        raise InputError(
            f"expected {HEAD} to equal {EMBEDDING} in {source.name}, as in the first model, whose config ties them, got a head "
            "of its own; save the first model with tie_word_embeddings false and a copy of its embedding as the head, or merge "
            "fine-tunings of one base"
        )
    if not same:
        raise InputError(
            f"expected {HEAD} to equal {EMBEDDING} in {source.name}, whose config ties them, got different weights; set "
            "tie_word_embeddings to false or remove the head"
        )


def differing_settings(sources: Sequence[Source]) -> list[str]:
    """Compares settings of the models' configs that no tensor shows; returns one warning for each difference.

    The result has the config of the first model, as with mergekit. Weights that were trained with another ``rope_theta``, for
    example, compute another function under it.

    Args:
        sources: the models; the first one's config is that of the result.
    """
    first, warnings = sources[0], []
    for source in sources[1:]:
        ours, theirs = _settings(first, source)
        warnings += [
            f"warning: expected {key} {ours[key]} of {first.name}, which the result has, got {theirs[key]} in {source.name}; "
            "check that they are fine-tunings of one base"
            for key in ours
            if ours[key] != theirs[key]
        ]
    return warnings


def _settings(*sources: Source) -> list[dict[str, Any]]:
    """The compared settings of each model.

    They are those of :class:`LlamaConfig`, with its defaults, where it supports all models, else the raw keys of the configs.
    """
    try:
        shapes = [LlamaConfig.from_hf(source.config) for source in sources]
        return [{key: getattr(shape, key) for key in _SETTINGS} for shape in shapes]
    except InputError:
        return [{key: source.config.get(key) for key in _OTHER_SETTINGS} for source in sources]


def check_tokenizers(sources: Sequence[Source]) -> None:
    """Checks that the tokens of all models have the ids of the first one's, as ``tokenizer_source: base`` needs.

    Models without a ``tokenizer.json`` are taken to have the first one's tokenizer, as mergekit does.

    Raises:
        InputError: the first model has no ``tokenizer.json``, one can't be read, or a token has another id in another model.
    """
    from tokenizers import Tokenizer

    first = sources[0]
    if not (first.folder / "tokenizer.json").is_file():
        raise InputError(f"expected a tokenizer.json for tokenizer_source: base, got none in {first.name}; remove the key")
    vocabularies = []
    for source in sources:
        path = source.folder / "tokenizer.json"
        if path.is_file():
            try:
                vocabularies.append((source, Tokenizer.from_file(str(path)).get_vocab()))
            except Exception as error:  # the library raises nothing more special
                raise InputError(f"expected a tokenizer in {path}, got an error ({error}); restore the file") from error
    for source, vocabulary in vocabularies[1:]:
        for token, identity in vocabularies[0][1].items():
            if vocabulary.get(token) != identity:
                raise InputError(
                    f"expected one id for every token, got {identity} for {token!r} in {first.name} and "
                    f"{vocabulary.get(token, 'none')} in {source.name}; use mergekit to permute embeddings"
                )


def layer_positions(names: Sequence[str]) -> tuple[dict[str, float], int]:
    """The position of every tensor among the layers, as mergekit counts it.

    Args:
        names: the names of all tensors.

    Returns:
        By name 0 for the first layer to 1 for the last one, 1 for an only layer, and 0 for a tensor outside layers; and the
        number of layers, 0 if there are none or several stacks of them.
    """
    places = {name: (name[: match.start()], int(match[1])) for name in names if (match := _LAYER.search(name))}
    counts: dict[str, int] = {}
    for prefix, layer in places.values():
        counts[prefix] = max(counts.get(prefix, 0), layer + 1)
    positions = dict.fromkeys(names, 0.0)
    for name, (prefix, layer) in places.items():
        positions[name] = layer / (counts[prefix] - 1) if counts[prefix] > 1 else 1.0
    return positions, next(iter(counts.values())) if len(counts) == 1 else 0
