"""A small run, whose trained models the tutorials use; and a tiny model in the place of the quickstart's."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf

from ..small_run import finished, trained

__all__ = ["finished", "trained"]


@pytest.fixture
def tiny_model():
    """``tiny_model(folder)`` writes a model with random weights."""

    def write(folder: str) -> None:
        if not Path(folder).exists():
            tokenizer = chat.train_tiny_tokenizer(["Hello"], 300)
            config = llama.LlamaConfig(304, 32, 48, 2, 4, 2, 8)
            hf.save(folder, config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)

    return write
