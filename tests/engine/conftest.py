"""Fixtures of the engine's tests: a small model, an engine with it, and models whose replies are known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import EngineLayout
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat

from ..models.conftest import smollm2_gguf
from .small_model import ATTENTIONS, CONFIG, groups_of, make, plain_loop, requests_of

__all__ = ["smollm2_gguf"]

HELLO = [{"role": "user", "content": "hi"}]


def scripted_model(tokenizer, text, stop=True):
    """A model that replies with ``text``, whose tokens differ from each other; without ``stop`` it repeats the text."""
    ids = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    size = tokenizer.vocab_size
    config = llama.LlamaConfig(size, size + size % 2, 2, 1, 1, 1, 2, max_position_embeddings=128)
    params = jax.tree.map(jnp.zeros_like, llama.init_params(config, jax.random.key(0)))
    # The layers add nothing: the head sees the last token and maps it to the next one.
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


@pytest.fixture(scope="session")
def params():
    return llama.init_params(CONFIG, jax.random.key(1))


@pytest.fixture(
    scope="session",
    params=[ATTENTIONS[0], pytest.param(ATTENTIONS[1], marks=pytest.mark.exhaustive)],
    ids=lambda attention: attention.implementation,
)
def attention(request):
    return request.param


@pytest.fixture(scope="session")
def engine(params, attention):
    engine = make(attention=attention)
    engine.load(params)
    return engine


def few(monkeypatch):
    """Engines get one program of each kind, the largest."""
    of = EngineLayout.of

    def largest(*args, **options):
        layout = of(*args, **options)
        sizes = {name: getattr(layout, name)[-1:] for name in ("batches", "counts", "verify_counts")}
        return dataclasses.replace(layout, **sizes)

    monkeypatch.setattr(EngineLayout, "of", largest)


@pytest.fixture
def few_programs(monkeypatch):
    """One program of each kind: a test of pages has nothing to gain from compiling the others."""
    few(monkeypatch)


@pytest.fixture(scope="session")
def expected(params):
    """Two sets of requests, and the replies of the plain loop."""
    requests = [requests_of(9), groups_of()]
    return [(*r, [plain_loop(params, prompt, limit) for prompt, limit in zip(*r, strict=True)]) for r in requests]
