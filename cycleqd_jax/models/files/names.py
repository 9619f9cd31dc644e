"""The table of our paths and Hugging Face's names of all weights, used to read, write and check models."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from cycleqd_jax.models import llama
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import tree_paths

__all__ = ["EMBEDDING", "HEAD", "NAMES", "HFName", "hf_shapes", "is_unused", "plain_name", "recognise", "unwrapped"]


class HFName(NamedTuple):
    """Hugging Face's name of a weight.

    Attributes:
        pattern: the name, with ``{}`` for the layer.
        transpose: whether it is ``[out, in]`` in Hugging Face's files; it is ``[in, out]`` here.
    """

    pattern: str
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the weight has a leading layer axis here."""
        return "{}" in self.pattern


EMBEDDING = "model.embed_tokens.weight"
"""Hugging Face's name of the embedding."""

HEAD = "lm_head.weight"
"""Hugging Face's name of the output head."""

_LAYER = "model.layers.{}."

_WRAPPERS = {"_orig_mod", "module", "base_model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
_WRAPPERS |= {"default", "modules_to_save"}  # of PEFT
_UNMISTAKABLE = {part for part in _WRAPPERS if part.startswith("_")}

NAMES: dict[str, HFName] = {
    "embed_tokens": HFName(EMBEDDING),
    "layers/input_norm": HFName(_LAYER + "input_layernorm.weight"),
    **{f"layers/attn/{x}": HFName(f"{_LAYER}self_attn.{x}_proj.weight", True) for x in "qkvo"},
    **{f"layers/attn/{x}_bias": HFName(f"{_LAYER}self_attn.{x}_proj.bias") for x in "qkvo"},
    **{f"layers/attn/{x}_norm": HFName(f"{_LAYER}self_attn.{x}_norm.weight") for x in "qk"},
    "layers/post_norm": HFName(_LAYER + "post_attention_layernorm.weight"),
    **{f"layers/mlp/{x}": HFName(f"{_LAYER}mlp.{x}_proj.weight", True) for x in ("gate", "up", "down")},
    **{f"layers/mlp/{x}_bias": HFName(f"{_LAYER}mlp.{x}_proj.bias") for x in ("gate", "up", "down")},
    "norm": HFName("model.norm.weight"),
    "lm_head": HFName(HEAD, True),
}
"""Hugging Face's name for the path of every weight of :mod:`cycleqd_jax.models.llama`."""


def hf_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a checkpoint of the model, by Hugging Face's name."""
    shapes = {}
    for path, leaf in tree_paths(llama.abstract_params(config)):
        pattern, transpose = NAMES[path]
        stacked = NAMES[path].stacked
        shape = leaf.shape[1:] if stacked else leaf.shape
        for i in range(leaf.shape[0] if stacked else 1):
            shapes[pattern.format(i)] = shape[::-1] if transpose else shape
    return shapes


def plain_name(name: str) -> str:
    """A tensor's name without what wraps a model: ``_orig_mod.``, ``module.``, ``base_model.``, ``model.`` and the like.

    torch.compile, data parallelism, FSDP and PEFT put such parts into names, and a model that was saved without its head, or
    within another, lacks or doubles the leading ``model.``.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    start = next((i for i, part in enumerate(parts) if part != "model"), len(parts))
    return ".".join(parts[start:])


def unwrapped(name: str) -> str:
    """The name of a tensor of any architecture without what surely wraps its model, such as ``_orig_mod.``."""
    name = ".".join(part for part in name.split(".") if part not in _UNMISTAKABLE)
    return name.removeprefix("module.").removeprefix("base_model.model.")


def is_unused(name: str) -> bool:
    """Whether a model computes without this tensor: what RoPE stores, and the copy of a module that PEFT replaced."""
    return name.endswith(("rotary_emb.inv_freq", "rotary_emb.original_inv_freq")) or ".original_module." in name


def recognise(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Finds out which of the expected tensors the names of a file stand for (:func:`plain_name`).

    The base of an adapter has ``.base_layer.`` in its names. Where no name is understood, what all of them begin with, such as
    ``policy.``, is left out.

    Args:
        names: the names in a file.
        expected: Hugging Face's names.

    Returns:
        By every name of the file the expected one. A name that stands for nothing expected, or for the same as another name,
        stays as it is.
    """
    names, known = list(names), {plain_name(name): name for name in expected}
    plain = {name: plain_name(name.replace(".base_layer.", ".")) for name in names}
    if len(names) > 1 and not known.keys() & set(plain.values()):
        columns = zip(*(name.split(".") for name in names), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, columns))
        plain = {name: plain_name(".".join(name.split(".")[shared:])) for name in names}
    wanted = {name: known.get(plain[name], name) for name in names}
    counts, targets = collections.Counter(wanted.values()), set(known.values())
    found = {name: name for name in names if name in targets}
    taken = set(found)
    for name, target in wanted.items():
        alone = counts[target] == 1 if target != name else True
        if name not in found:
            found[name] = target if alone and target not in taken else name
    return {name: found[name] for name in names}
