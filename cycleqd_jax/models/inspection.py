"""The facts about a model or a LoRA adapter: architecture, tensors, tokenizer, and the norm of its task vector."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from cycleqd_jax.models import compare, llama
from cycleqd_jax.models.files import hf, peft
from cycleqd_jax.models.files.checkpoint import (
    Checkpoint,
    check_tied,
    load_tokenizer,
    open_checkpoint,
    with_head,
)
from cycleqd_jax.models.files.names import NAMES
from cycleqd_jax.models.llama.config import FAMILIES
from cycleqd_jax.models.preflight import local_folder, preflight
from cycleqd_jax.types import InputError, tree_paths

__all__ = [
    "UNRELATED",
    "AdapterFacts",
    "Architecture",
    "ModelFacts",
    "Norm",
    "TaskVectorNorms",
    "TensorFacts",
    "TokenizerFacts",
    "inspect_model",
]

UNRELATED = 0.7
"""‖τ‖ / ‖θ_base‖ above which a model is probably not a fine-tuning of the base; unrelated models have about √2."""


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    """One weight; the layers of a model are one weight with a leading layer axis.

    Attributes:
        tensor: Hugging Face's name of the weight, of layer 0 for stacked weights.
        shape: shape of the weight.
        dtype: dtype in the file.
    """

    tensor: str
    shape: list[int]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the config and the headers of a model say.

    Attributes:
        architecture: name of the architecture in ``transformers``.
        parameters: number of parameters.
        bytes: size of the weights.
        files: files that hold the weights.
        dtype: dtype of most weights.
        layers: number of decoder layers.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        heads: number of attention heads.
        kv_heads: number of key/value heads.
        head_dim: width of a head.
        vocab_size: rows of the embedding.
        tied_embeddings: whether the output head is the embedding.
        context_length: largest number of positions.
        rope: rotary embedding, in words.
        tensors: the weights, by our path.
    """

    architecture: str
    parameters: int
    bytes: int
    files: list[str]
    dtype: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    context_length: int
    rope: str
    tensors: dict[str, TensorFacts]


@dataclasses.dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer.

    Attributes:
        vocab_size: number of ids.
        stop_tokens: ids of the stop tokens, by text.
    """

    vocab_size: int
    stop_tokens: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Norm:
    """The norm of a task vector, or of a part.

    Attributes:
        norm: ‖τ‖.
        relative: ‖τ‖ / ‖θ_base‖; None where the base is zero and τ is not.
    """

    norm: float
    relative: float | None


@dataclasses.dataclass(frozen=True)
class TaskVectorNorms:
    """How far a model is from its base.

    Attributes:
        base: the base, as the user named it.
        total: the norm of all weights together.
        by_kind: the norm of every kind of weight, by our path.
        by_layer: the norm of every layer, by its index.
    """

    base: str
    total: Norm
    by_kind: dict[str, Norm]
    by_layer: dict[int, Norm]


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A whole model.

    Attributes:
        model: the model, as the user named it.
        architecture: its architecture.
        tokenizer: its tokenizer, or why there is none.
        task_vector: its distance from the base, if a base is given.
        warnings: what is odd about its weights; and, if a base is given, about their distance from it, and why a run would
            refuse the model as an expert.
    """

    model: str
    architecture: Architecture
    tokenizer: TokenizerFacts | str
    task_vector: TaskVectorNorms | None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class AdapterFacts:
    """A LoRA adapter.

    Attributes:
        model: folder of the adapter.
        ranks: rank of the update of every changed weight, by our path; None for a weight that the adapter replaces.
        base: the base, as the user or the adapter names it.
        architecture: architecture of the base.
        task_vector: the norm of the update.
        warnings: what is odd about the update, and why a run would refuse the adapter as an expert.
    """

    model: str
    ranks: dict[str, int | None]
    base: str
    architecture: Architecture
    task_vector: TaskVectorNorms
    warnings: tuple[str, ...] = ()


def inspect_model(model: str, base: str | None = None) -> ModelFacts | AdapterFacts:
    """Reads the facts about a model from its headers; the norm of the task vector needs all weights.

    Args:
        model: a folder, a ``.gguf`` file, a repository on the hub, or a LoRA adapter.
        base: the model from which it was fine-tuned. An adapter needs it unless the base that it names is a local folder.

    Raises:
        InputError: a model can't be read, a head that the config ties is not the embedding, or model and base do not belong
            together.
    """
    folder = local_folder(model, weights=False)
    if peft.is_adapter(folder):
        return _adapter_facts(folder, model, base)
    checkpoint = open_checkpoint(model, weights=base is not None)
    if checkpoint.here:
        check_tied(checkpoint)
    warnings, norms = _warnings(checkpoint), None
    if base is not None:
        other = open_checkpoint(base)
        check_tied(other)
        same = with_head(checkpoint, tied=other.config.tie_word_embeddings)
        norms = _norms(base, compare.distances(same, other))
        equal = norms.total.norm == 0 and compare.equal_weights(same, other)
        warnings += [*_distance_warnings(norms, equal), *_refusals(base, model)]
    return ModelFacts(model, _architecture(checkpoint), _tokenizer(model), norms, tuple(warnings))


def _warnings(checkpoint: Checkpoint) -> list[str]:
    if not checkpoint.rounded:
        return []
    return [
        f"{len(checkpoint.rounded)} tensors, such as {checkpoint.rounded[0]}, are stored in another dtype than the rest; a run "
        f"rounds them to {checkpoint.config.dtype}, unless model.dtype=float32"
    ]


def _distance_warnings(norms: TaskVectorNorms, equal: bool) -> list[str]:
    """What is odd about the distance of a model from its base; ``equal`` is whether it is none, bit for bit."""
    if equal:
        return [f"the model equals {norms.base} bit for bit; check that it was trained and saved"]
    if norms.total.relative is None or norms.total.relative > UNRELATED:
        return [f"the model is probably not a fine-tuning of {norms.base}: the distance is too large"]
    return []


def _refusals(base: str, model: str) -> list[str]:
    """What a run with this base says about the model as an expert."""
    try:
        return [text.removeprefix("warning: ") for text in preflight(base, [model]).warnings]
    except InputError as error:
        return [f"a run with this base refuses the model as an expert: {error}"]


def _adapter_facts(folder: Path, model: str, base: str | None) -> AdapterFacts:
    named = peft.adapter_base(folder)
    name = base or named
    if name is None or (base is None and not Path(name).exists()):
        raise InputError(f"expected the base of the adapter, got {name or 'no base'} in {folder}; give the base with --base")
    checkpoint = open_checkpoint(name)
    check_tied(checkpoint)
    ranks = peft.check_adapter(folder, checkpoint.config)
    # only for weights that the adapter copies or replaces are the base's weights needed
    copied = [path for path in dict(tree_paths(llama.abstract_params(checkpoint.config))) if "/" not in path]
    copied += [path for path, rank in ranks.items() if rank is None and path not in copied]
    changes = compare.adapter_norms(peft.load_adapter(folder, checkpoint.config, hf.load_weights(checkpoint, copied)))
    distances = {key: compare.Distance(changes.get(key, 0.0) ** 2, d.base) for key, d in compare.norms(checkpoint).items()}
    norms = _norms(name, distances)
    warnings = [*_distance_warnings(norms, norms.total.norm == 0), *_refusals(name, model)]
    if named is not None and Path(named).name != Path(name.partition("@")[0]).name:
        warnings.append(f"the adapter names the base {named}, and not {name}")
    return AdapterFacts(str(folder), dict(ranks), name, _architecture(checkpoint), norms, tuple(warnings))


def _architecture(checkpoint: Checkpoint) -> Architecture:
    c, tensors, names = checkpoint.config, checkpoint.tensors, set(checkpoint.names)
    rope = f"theta {c.rope_theta:g}"
    if c.rope_scaling is not None:
        rope += f", llama3 scaling × {c.rope_scaling.factor:g} from {c.rope_scaling.original_max_position_embeddings}"
    kinds: dict[str, TensorFacts] = {}
    for path, (pattern, _) in NAMES.items():
        if (name := pattern.format(0)) in names:
            layers = [c.num_hidden_layers] if NAMES[path].stacked else []
            kinds[path] = TensorFacts(pattern, layers + list(tensors[name].shape), tensors[name].dtype)
    return Architecture(
        architecture=FAMILIES[c.model_type].architecture,
        parameters=sum(math.prod(tensors[name].shape) for name in names),
        bytes=checkpoint.nbytes,
        files=sorted({str(tensors[name].file) for name in names}),
        dtype=c.dtype,
        layers=c.num_hidden_layers,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        vocab_size=c.vocab_size,
        tied_embeddings=c.tie_word_embeddings,
        context_length=c.context_length,
        rope=rope,
        tensors=kinds,
    )


def _tokenizer(model: str) -> TokenizerFacts | str:
    try:
        tokenizer = load_tokenizer(model)
    except InputError as error:  # base models often have no chat template
        return str(error)
    return TokenizerFacts(tokenizer.vocab_size, {tokenizer.token(i): i for i in tokenizer.stop_ids})


def _norms(base: str, distances: Mapping[tuple[str, int | None], compare.Distance]) -> TaskVectorNorms:
    zero = compare.Distance(0.0, 0.0)
    kinds: dict[str, compare.Distance] = {}
    layers: dict[int, compare.Distance] = {}
    for (path, layer), distance in distances.items():
        kinds[path] = kinds.get(path, zero) + distance
        if layer is not None:
            layers[layer] = layers.get(layer, zero) + distance

    def norm(distance: compare.Distance) -> Norm:
        return Norm(math.sqrt(distance.tau), distance.relative if math.isfinite(distance.relative) else None)

    return TaskVectorNorms(
        base,
        norm(sum(distances.values(), zero)),
        {path: norm(distance) for path, distance in kinds.items()},
        {layer: norm(distance) for layer, distance in layers.items()},
    )
