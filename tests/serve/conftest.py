"""Fixtures of the server's tests."""

from __future__ import annotations

import pytest

from ..engine.conftest import few
from ..report.conftest import make_run, undrawn
from ..small_run import finished
from .small_server import MAX_LEN, NAMES, SLOTS, SeveralModels, serving, tiny_model, tiny_tokenizer

__all__ = ["finished", "make_run", "undrawn"]


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def models(tokenizer):
    return {name: tiny_model(tokenizer, seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """One program of each kind: tests of the server have nothing to gain from compiling the others.

    After a module, a worker may go on with tests of other folders, which need the others.
    """
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        yield


@pytest.fixture(scope="module")
def reference(models, few_programs):
    """``reference(job)`` is the engine's own reply to a job."""
    engine, loaded = SeveralModels(models).engine(SLOTS, MAX_LEN), []

    def generate(job):
        if loaded != [job.model]:
            engine.load(models[job.model].params)
            loaded[:] = [job.model]
        options = {"temperature": job.temperature, "top_p": job.top_p, "seed": job.seed}
        return engine.generate([job.prompt], [job.max_new_tokens], **options)[0]

    return generate


@pytest.fixture
def catalog(models):
    return SeveralModels(models)


@pytest.fixture(scope="module")
def server(models):
    with serving(SeveralModels(models)) as found:
        yield found
