"""Conversations that small models learn from."""

from __future__ import annotations

import numpy as np
import pytest

from cycleqd_jax.models.llama import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
    initializer_range=0.2,
)


@pytest.fixture(scope="module")
def examples():
    """Conversations of various lengths: some tokens, a separator, and (to be learned) the first of them three times."""
    rng = np.random.default_rng(0)
    made = []
    for length in rng.choice([3, 8, 20], size=64):
        prompt = rng.integers(1, 40, size=length).tolist()
        made.append(([*prompt, 0, *[prompt[0]] * 3], [0] * (length + 1) + [1] * 3))
    return made


@pytest.fixture
def rng():
    return np.random.default_rng(7)
