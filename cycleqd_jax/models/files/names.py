"""The table of our paths and Hugging Face's names of all weights, used to read, write and check models."""

from __future__ import annotations

from typing import NamedTuple

from cycleqd_jax.models import llama
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import tree_paths

__all__ = ["EMBEDDING", "HEAD", "NAMES", "HFName", "hf_shapes"]


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
