"""``cycleqd inspect``: prints the facts about a model, and its distance from its base."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from cycleqd_jax.models import inspection
from cycleqd_jax.models.inspection import AdapterFacts, Architecture, ModelFacts, TaskVectorNorms, TokenizerFacts

__all__ = ["inspect_model"]


def inspect_model(model: str, base: str | None, as_json: bool) -> None:
    """Prints the facts about a model; with a base also the norm of the task vector, which reads all weights.

    Args:
        model: a folder, a .gguf file, a repository on the hub, or a LoRA adapter (which needs its base).
        base: the model from which it was fine-tuned.
        as_json: print one JSON object.

    Raises:
        InputError: a model can't be read, or model and base do not belong together.
    """
    facts = inspection.inspect_model(model, base)
    print(json.dumps(_json(facts), indent=2, allow_nan=False) if as_json else _text(facts))


def _json(facts: ModelFacts | AdapterFacts) -> dict[str, Any]:
    architecture = dataclasses.asdict(facts.architecture)
    if isinstance(facts, AdapterFacts):
        ranks = {path: "whole" if rank is None else rank for path, rank in facts.ranks.items()}
        found = {"model": facts.model, "adapter": ranks, "base": {"model": facts.base, **architecture}}
        found |= {"warnings": list(facts.warnings)}
    else:
        tokenizer = facts.tokenizer if isinstance(facts.tokenizer, str) else dataclasses.asdict(facts.tokenizer)
        found = {"model": facts.model, **architecture, "tokenizer": tokenizer, "warnings": list(facts.warnings)}
    if facts.task_vector is not None:
        norms = dataclasses.asdict(facts.task_vector)
        found["task_vector"] = {"base": norms["base"], "all": norms["total"], **{k: norms[k] for k in ("by_kind", "by_layer")}}
    return found


def _text(facts: ModelFacts | AdapterFacts) -> str:
    lines = [facts.model]
    if isinstance(facts, ModelFacts):
        lines += _architecture_lines(facts.architecture, facts.tokenizer)
    else:
        base = facts.architecture
        lines.append(_line("adapter", f"LoRA of {facts.base} ({base.architecture}, {base.parameters:,} parameters)"))
        lines += [_line(path, "whole" if rank is None else f"rank {rank}") for path, rank in facts.ranks.items()]
    if facts.task_vector is not None:
        lines += _norm_lines(facts.task_vector)
    lines += [f"warning: {text}" for text in facts.warnings]
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"  {name:16} {value}"


def _architecture_lines(a: Architecture, tokenizer: TokenizerFacts | str) -> list[str]:
    if isinstance(tokenizer, TokenizerFacts):
        stops = ", ".join(f"{token} ({i})" for token, i in tokenizer.stop_tokens.items())
        tokenizer = f"{tokenizer.vocab_size:,} ids, stop tokens {stops}"
    files = f"{len(a.files)} file{'s' * (len(a.files) != 1)}"
    lines = [
        _line("architecture", a.architecture),
        _line("parameters", f"{a.parameters:,}"),
        _line("weights", f"{_size(a.bytes)}, {a.dtype}, in {files}"),
        _line("layers", f"{a.layers} × {a.hidden_size}, mlp {a.intermediate_size}"),
        _line("attention", f"{a.heads} heads, {a.kv_heads} for keys and values, head_dim {a.head_dim}"),
        _line("vocabulary", f"{a.vocab_size:,}, {'tied' if a.tied_embeddings else 'untied'} output head"),
        _line("context", f"{a.context_length:,} tokens, rope {a.rope}"),
        _line("tokenizer", tokenizer),
        "tensors",
    ]
    for path, tensor in a.tensors.items():
        lines.append(f"  {path:22} {' × '.join(map(str, tensor.shape)):24} {tensor.dtype:5} {tensor.tensor}")
    return lines


def _norm_lines(norms: TaskVectorNorms) -> list[str]:
    lines = [f"task vector against {norms.base}: norm, and share of the base's norm"]
    rows = [("all", norms.total), *norms.by_kind.items()]
    rows += [(f"layer {layer}", norm) for layer, norm in norms.by_layer.items()]
    for name, norm in rows:
        relative = "–" if norm.relative is None else f"{norm.relative:.4%}"
        lines.append(f"  {name:22} {norm.norm:12.5g} {relative:>12}")
    return lines


def _size(nbytes: int) -> str:
    for unit, scale in (("bytes", 1), ("kB", 1e3), ("MB", 1e6)):
        if nbytes < 1000 * scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{nbytes / 1e9:.4g} GB"
