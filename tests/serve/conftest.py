"""Fixtures of the server's tests."""

from __future__ import annotations

import pytest

from ..report.conftest import make_run
from ..small_run import finished
from .small_server import NAMES, SeveralModels, serving, tiny_model, tiny_tokenizer

__all__ = ["finished", "make_run"]


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def models(tokenizer):
    return {name: tiny_model(tokenizer, seed) for seed, name in enumerate(NAMES)}


@pytest.fixture
def catalog(models):
    return SeveralModels(models)


@pytest.fixture(scope="module")
def server(models):
    with serving(SeveralModels(models)) as found:
        yield found
