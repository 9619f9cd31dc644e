"""Tiny models to merge, as Hugging Face folders."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import yaml

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog 0123456789 (){}[];:"] * 4


def tiny_config(**changes):
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    fields |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "tie_word_embeddings": True}
    return llama.LlamaConfig(**{**fields, **changes})


def write_models(folder, config=None, count=3, spread=0.05, **options):
    """A base and fine-tuned models, with equal entries here and there."""
    config = config or tiny_config()
    tokenizer = train_tiny_tokenizer(CORPUS, 300)
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.1).astype(np.float32), llama.abstract_params(config))
    names = ["base", *(f"expert{k}" for k in range(count))]
    for k, name in enumerate(names):
        params = jax.tree.map(lambda leaf, k=k: leaf + (k > 0) * rng.normal(size=leaf.shape, scale=spread), base)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.dtype(config.dtype)), params)
        hf.save(folder / name, config, params, tokenizer=tokenizer, **options)
    return [str(folder / name) for name in names]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of a base and of three experts."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def write_recipe(tmp_path):
    """``write_recipe(**keys)`` writes a mergekit config."""

    def write(**keys):
        path = tmp_path / "merge.yml"
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return path

    return write
