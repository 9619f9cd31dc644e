"""``cycleqd inspect``: what a model is, and how far it is from its base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cycleqd_jax.models import compare, llama
from cycleqd_jax.models.files import hf, peft
from cycleqd_jax.models.files.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from cycleqd_jax.models.files.names import NAMES
from cycleqd_jax.models.llama.config import FAMILIES
from cycleqd_jax.models.preflight import local_folder
from cycleqd_jax.runs.models import STRANGER
from cycleqd_jax.types import InputError, tree_paths

__all__ = ["inspect_model"]


def inspect_model(model: str, base: str | None, as_json: bool) -> None:
    """Prints what a model is, from headers alone; with a base, also the norm of its task vector, which reads all weights.

    Args:
        model: a folder, a .gguf file, a repository of the hub, or a LoRA adapter (which needs its base).
        base: the model it was fine-tuned from.
        as_json: print one JSON object.

    Raises:
        InputError: a model can't be read, or they do not belong together.
    """
    folder = local_folder(model, weights=False)
    facts = _adapter(folder, base) if peft.is_adapter(folder) else _model(model, base)
    print(json.dumps(facts, indent=2, allow_nan=False) if as_json else _text(facts))


def _model(model: str, base: str | None) -> dict[str, Any]:
    checkpoint = open_checkpoint(model, weights=base is not None)
    facts = {"model": model, **_architecture(checkpoint), "tokenizer": _tokenizer(model)}
    if base is not None:
        found = compare.distances(checkpoint, open_checkpoint(base))
        facts["task_vector"] = {"base": base, **_relative_norms(found)}
    return facts


def _adapter(folder: Path, base: str | None) -> dict[str, Any]:
    name = base or peft.adapter_base(folder)
    if name is None or (base is None and not Path(name).exists()):
        raise InputError(f"{folder} is an adapter (of {name or 'an unknown base'}): say where its base is with --base.")
    checkpoint = open_checkpoint(name)
    ranks = peft.check_adapter(folder, checkpoint.config)
    # the base's weights are needed only where the adapter brings copies of them, or whole new ones
    copied = [path for path in dict(tree_paths(llama.abstract_params(checkpoint.config))) if "/" not in path]
    copied += [path for path, rank in ranks.items() if rank is None and path not in copied]
    norms = compare.adapter_norms(peft.load_adapter(folder, checkpoint.config, hf.load_weights(checkpoint, copied)))
    found = {key: compare.Distance(norms.get(key, 0.0) ** 2, d.base) for key, d in compare.norms(checkpoint).items()}
    return {
        "model": str(folder),
        "adapter": {path: "whole" if rank is None else rank for path, rank in ranks.items()},
        "base": {"model": name, **_architecture(checkpoint)},
        "task_vector": {"base": name, **_relative_norms(found)},
    }


def _architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    c, tensors = checkpoint.config, checkpoint.tensors
    rope = f"theta {c.rope_theta:g}"
    if c.rope_scaling is not None:
        rope += f", llama3 scaling × {c.rope_scaling.factor:g} from {c.rope_scaling.original_max_position_embeddings}"
    shapes: dict[str, Any] = {}
    names = set(checkpoint.names)
    for path, (pattern, _) in NAMES.items():
        if (name := pattern.format(0)) in names:
            layers = [c.num_hidden_layers] if NAMES[path].stacked else []
            shapes[path] = {"tensor": pattern, "shape": layers + list(tensors[name].shape), "dtype": tensors[name].dtype}
    return {
        "architecture": FAMILIES[c.model_type].architecture,
        "parameters": sum(math.prod(tensors[name].shape) for name in names),
        "bytes": checkpoint.nbytes,
        "files": sorted({str(tensors[name].file) for name in names}),
        "dtype": c.dtype,
        "layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "tied_embeddings": c.tie_word_embeddings,
        "context_length": c.context_length,
        "rope": rope,
        "tensors": shapes,
    }


def _tokenizer(model: str) -> dict[str, Any] | str:
    try:
        tokenizer = load_tokenizer(model)
    except InputError as error:  # a base model may have no chat template: that is worth saying, not failing
        return str(error)
    stops = {tokenizer.token(i): i for i in tokenizer.stop_ids}
    return {"vocab_size": tokenizer.vocab_size, "stop_tokens": stops}


def _relative_norms(found: dict[tuple[str, int | None], compare.Distance]) -> dict[str, Any]:
    zero = compare.Distance(0.0, 0.0)
    kinds: dict[str, compare.Distance] = {}
    layers: dict[int, compare.Distance] = {}
    for (path, layer), distance in found.items():
        kinds[path] = kinds.get(path, zero) + distance
        if layer is not None:
            layers[layer] = layers.get(layer, zero) + distance
    total = sum(found.values(), zero)

    def figures(distance: compare.Distance) -> dict[str, float | None]:
        relative = distance.relative if math.isfinite(distance.relative) else None
        return {"norm": math.sqrt(distance.tau), "relative": relative}

    return {
        "all": figures(total),
        "by_kind": {path: figures(distance) for path, distance in kinds.items()},
        "by_layer": {str(layer): figures(distance) for layer, distance in layers.items()},
    }


def _text(facts: dict[str, Any]) -> str:
    lines = [facts["model"]]

    def say(name: str, value: Any) -> None:
        lines.append(f"  {name:16} {value}")

    if "architecture" in facts:
        f = facts
        say("architecture", f["architecture"])
        say("parameters", f"{f['parameters']:,}")
        say("weights", f"{_size(f['bytes'])}, {f['dtype']}, in {len(f['files'])} file{'s' * (len(f['files']) != 1)}")
        say("layers", f"{f['layers']} × {f['hidden_size']}, mlp {f['intermediate_size']}")
        say("attention", f"{f['heads']} heads, {f['kv_heads']} for keys and values, head_dim {f['head_dim']}")
        say("vocabulary", f"{f['vocab_size']:,}, head {'tied' if f['tied_embeddings'] else 'of its own'}")
        say("context", f"{f['context_length']:,} tokens, rope {f['rope']}")
        tokenizer = f["tokenizer"]
        if isinstance(tokenizer, str):
            say("tokenizer", tokenizer)
        else:
            stops = ", ".join(f"{token} ({i})" for token, i in tokenizer["stop_tokens"].items())
            say("tokenizer", f"{tokenizer['vocab_size']:,} ids, stops at {stops}")
        lines.append("tensors")
        for path, tensor in f["tensors"].items():
            shape = " × ".join(map(str, tensor["shape"]))
            lines.append(f"  {path:22} {shape:24} {tensor['dtype']:5} {tensor['tensor']}")
    if "adapter" in facts:
        say(
            "adapter",
            f"LoRA of {facts['base']['model']} ({facts['base']['architecture']}, {facts['base']['parameters']:,} parameters)",
        )
        for path, rank in facts["adapter"].items():
            say(path, rank if rank == "whole" else f"rank {rank}")
    if "task_vector" in facts:
        found = facts["task_vector"]
        lines.append(f"task vector against {found['base']}: norm, and share of the base's norm")
        rows = [("all", found["all"]), *found["by_kind"].items()]
        rows += [(f"layer {layer}", figures) for layer, figures in found["by_layer"].items()]
        for name, figures in rows:
            relative = "–" if figures["relative"] is None else f"{figures['relative']:.4%}"
            lines.append(f"  {name:22} {figures['norm']:12.5g} {relative:>12}")
        if (found["all"]["relative"] or 0.0) > STRANGER:
            lines.append(f"warning: so far from {found['base']} that it was hardly fine-tuned from it")
    return "\n".join(lines)


def _size(nbytes: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1000  # type: ignore[assignment]
    raise AssertionError
