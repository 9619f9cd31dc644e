"""Sizes of engines."""

from __future__ import annotations

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.engine import Attention, EngineLayout
from cycleqd_jax.engine.cache import BLOCK
from cycleqd_jax.models import llama

from .small_model import CONFIG

LLAMA_8B = llama.LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, max_position_embeddings=8192, dtype="bfloat16")


def test_sizes_on_a_cpu():
    layout = EngineLayout.of(LLAMA_8B, slots=24, max_len=1000, platform="cpu")
    assert layout.attention == Attention("products")
    assert (layout.chunk, layout.page, layout.steps) == (64, 64, 16)
    assert layout.batches == (4, 16)
    assert layout.counts == (8, 12, 16, 24)
    assert layout.width == 16
    assert layout.pages == 448  # 1 + 24 · 16, in whole blocks
    assert layout.columns == 1024
    assert layout.computed.compute_dtype == "float32"


def test_sizes_on_a_gpu():
    layout = EngineLayout.of(LLAMA_8B, slots=24, max_len=1000, platform="gpu")
    assert layout.attention == Attention("cudnn")
    assert (layout.chunk, layout.page, layout.pages) == (512, 1512, 24)
    assert (layout.batches, layout.counts, layout.width) == ((1, 8), (24,), 1)
    assert layout.columns == 1512
    assert layout.computed == LLAMA_8B
    assert layout.column_bytes == 2 * 32 * 8 * 128 * 2
    assert layout.cache_bytes == 24 * 1512 * layout.column_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["products", "xla"])
def test_bytes_of_the_cache(dtype, implementation):
    attention = Attention(implementation)
    layout = EngineLayout.of(CONFIG.replace(dtype=dtype), slots=3, max_len=48, platform="cpu", attention=attention)
    cache = attention.init(layout.config, layout.pages, layout.page)
    assert attention.shape(cache) == (layout.pages, layout.page)
    assert layout.cache_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


@pytest.mark.exhaustive
@settings(max_examples=40)
@given(
    slots=st.integers(1, 200),
    max_len=st.integers(2, 64),
    chunk=st.integers(2, 64),
    implementation=st.sampled_from(["products", "xla"]),
)
def test_every_batch_has_a_program(slots, max_len, chunk, implementation):
    layout = EngineLayout.of(
        CONFIG, slots=slots, max_len=max_len, platform="cpu", attention=Attention(implementation), chunk=chunk
    )
    assert layout.columns >= max_len
    if layout.attention.paged:
        assert layout.pages % BLOCK == 0
        assert layout.pages > slots * layout.width  # every slot can have its pages, and page 0 is free
    for sizes in (layout.batches, layout.counts):
        assert list(sizes) == sorted(set(sizes))
    assert all(layout.count_for(n) >= n for n in range(1, slots + 1))
    for rows in range(1, layout.batches[-1] + 1):
        for tokens in range(rows, min(rows * layout.chunk, layout.batch_tokens(layout.batches[-1])) + 1, 7):
            size = layout.batch_for(rows, tokens)
            assert size >= rows
            assert layout.batch_tokens(size) >= tokens
    for columns in (1, chunk, 5 * chunk + 1):
        assert layout.aligned(columns) >= columns
        assert layout.shared_columns(layout.aligned(columns)) >= layout.aligned(columns)
