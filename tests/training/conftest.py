"""Conversations that small models learn from."""

from __future__ import annotations

import numpy as np
import pytest


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
