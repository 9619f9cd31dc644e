"""Prompts are computed without the padding of their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention, EngineLayout, programs
from cycleqd_jax.engine.batches import Batches, Chunk
from cycleqd_jax.engine.scheduler import Slot
from cycleqd_jax.models import llama

from .small_model import CONFIG


@pytest.fixture
def layout():
    return EngineLayout.of(CONFIG, slots=16, max_len=48, platform="cpu", attention=Attention("products"), chunk=12)


def chunks_with(counts):
    """A chunk with each of these numbers of tokens, each in a page of its own."""
    tokens = np.random.default_rng(0).integers(1, CONFIG.vocab_size, (len(counts), 12)).tolist()
    return [
        Chunk(Slot(pages=[i + 1]), own[:count], 0, 0, (0, 0), None, 0)
        for i, (own, count) in enumerate(zip(tokens, counts, strict=True))
    ]


@pytest.mark.parametrize("counts", [[12, 1, 7], [1], [12] * 8, [3] * 16])
def test_states_without_and_with_padding(params, layout, counts):
    batches = Batches(layout, pad_id=0)
    chunks = chunks_with(counts)
    size = layout.batch_for(len(counts), sum(counts))
    tokens, requests, packing = batches.prefill(chunks, size=size, shared_columns=0)
    assert packing is not None
    assert packing.place.size == size * 12 // 2
    cache = layout.attention.init(CONFIG, layout.pages, layout.page)
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
    weights = llama.unstack(params)
    states = jax.jit(programs.states, static_argnums=(7, 8))
    whole = requests._replace(rows=requests.rows._replace(filled=None))
    found = [
        states(weights, cache, None, jnp.asarray(tokens), positions, one, how, CONFIG, layout.attention)
        for one, how in ((requests, packing), (whole, None))
    ]
    for row, count in enumerate(counts):
        np.testing.assert_allclose(found[0][0][row, :count], found[1][0][row, :count], atol=1e-5)
        for packed, padded in zip(found[0][1].k, found[1][1].k, strict=True):
            np.testing.assert_allclose(packed[row + 1, :, :, :count], padded[row + 1, :, :, :count], atol=1e-5)
        for packed, padded in zip(found[0][1].v, found[1][1].v, strict=True):
            np.testing.assert_allclose(packed[row + 1, :, :count], padded[row + 1, :, :count], atol=1e-5)


def test_batches_have_room(layout):
    batches = Batches(layout, pad_id=0)
    counts = [12] * 9 + [1] * 40 + [5, 12, 12]
    found = batches.split(chunks_with(counts), lambda chunk: chunk)
    assert [len(chunk.tokens) for batch in found for chunk in batch] == counts
    assert [len(batch) for batch in found] == [8, 16, 16, 12]
    for batch in found:
        tokens = sum(len(chunk.tokens) for chunk in batch)
        size = layout.batch_for(len(batch), tokens)
        assert size >= len(batch)
        assert layout.batch_tokens(size) >= tokens
