from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat

HELLO = [{"role": "user", "content": "hi"}]


def scripted_model(tokenizer, text, stop=True):
    """A model that answers with ``text``, whose tokens differ, and begins it again if it is not to stop."""
    ids = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    size = tokenizer.vocab_size
    config = llama.LlamaConfig(size, size + size % 2, 2, 1, 1, 1, 2, max_position_embeddings=128)
    params = jax.tree.map(jnp.zeros_like, llama.init_params(config, jax.random.key(0)))
    # Layers add nothing: the head sees which token was the last, and knows which one follows.
    following = dict(zip(ids, [*ids[1:], tokenizer.stop_ids[0] if stop else ids[0]], strict=True))
    following[tokenizer.encode(HELLO)[-1]] = ids[0]
    head = np.zeros((config.hidden_size, size), np.float32)
    head[list(following), list(following.values())] = 1
    embedding = jnp.eye(size, config.hidden_size)
    return config, params | {"embed_tokens": embedding, "norm": params["norm"] + 1, "lm_head": jnp.asarray(head)}


@pytest.fixture(scope="session")
def scripted():
    return scripted_model


@pytest.fixture(scope="session")
def hello():
    return HELLO


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes beyond ASCII are tokens of their own."""
    return chat.train_tiny_tokenizer(["SELECT a FROM b", "def f(x): return x"] * 4, 300)
