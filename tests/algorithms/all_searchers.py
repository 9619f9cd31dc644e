"""All searchers, with a short search of each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CMAES, NSGA2, CycleQD, DominatedNovelty, PlainQD, RandomSearch
from cycleqd_jax.genome import CoefficientSpace, ExpertSpace

__all__ = [
    "BATCH",
    "EXPERT_SCORES",
    "GENERATIONS",
    "SEARCHERS",
    "TASKS",
    "WITH_COEFFICIENTS",
    "K",
    "experts_of",
    "final",
    "items_of",
    "made",
    "name",
    "played",
    "populations_too",
    "scores_of",
    "searchers",
    "spaces",
    "tell",
]

TASKS = ("coding", "db", "os")
K, BATCH, GENERATIONS = 3, 4, 5


def models():
    rng = np.random.default_rng(0)
    return [
        {"layers": {"w": jnp.asarray(0.5 * rng.normal(size=(2, 4, 3)), jnp.float32)}, "norm": jnp.ones(3) + 0.1 * k}
        for k in range(K + 1)
    ]


@pytest.fixture(scope="module")
def spaces():
    base, *experts = models()
    return ExpertSpace.from_experts(base, experts), CoefficientSpace.from_experts(base, experts, groups=2)


SEARCHERS = {
    "cycleqd": lambda whole, coefficients: (CycleQD(whole, bins=5), whole),
    "qd": lambda whole, coefficients: (PlainQD(whole, bins=5), whole),
    "dns": lambda whole, coefficients: (DominatedNovelty(whole, population=6), whole),
    "dns of scores": lambda whole, coefficients: (DominatedNovelty(whole, population=6, descriptors="scores"), whole),
    "random": lambda whole, coefficients: (RandomSearch(), coefficients),
    "cmaes": lambda whole, coefficients: (CMAES(population=BATCH), coefficients),
    "nsga2": lambda whole, coefficients: (NSGA2(population=6), coefficients),
    "cycleqd of coefficients": lambda whole, coefficients: (CycleQD(coefficients, bins=5), coefficients),
}
WITH_COEFFICIENTS = {"random", "cmaes", "nsga2"}


def searchers(*quick):
    """All searchers as parameters. Searchers without a name here run with ``--all`` only."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in SEARCHERS]


@pytest.fixture(params=searchers("cycleqd", "cmaes"))
def name(request):
    """One archive and one distribution, where a test names no others."""
    return request.param


populations_too = pytest.mark.parametrize("name", searchers("cycleqd", "cmaes", "nsga2"), indirect=True)


@pytest.fixture
def made(name, spaces):
    return SEARCHERS[name](*spaces)


def experts_of(space):
    return jax.vmap(space.expert)(jnp.arange(K))


EXPERT_SCORES = np.float32([[0.8, 0.1, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.6]])


def scores_of(t, n=BATCH):
    return jnp.asarray(np.random.default_rng(t).integers(0, 11, size=(n, K)) / 10, jnp.float32)


def items_of(scores):
    """Two problems of every task, whose mean is the score of the task."""
    return jnp.concatenate([scores / 2, 1.5 * scores], axis=1)


def played(searcher, space, steps=3, scores=scores_of):
    """The states of a short search, with what every ``ask`` gave."""
    state = searcher.init(experts_of(space), EXPERT_SCORES, items_of(EXPERT_SCORES))
    for t in range(steps):
        genomes, lineage, asked = searcher.ask(state, jax.random.key(t), BATCH)
        yield state, genomes, lineage, asked, scores(t)
        state = tell(searcher, asked, genomes, scores(t), lineage)
    yield state, None, None, None, None


def tell(searcher, state, genomes, scores, lineage):
    return searcher.tell(state, genomes, scores, lineage, items_of(scores))


def final(*args, **options):
    return list(played(*args, **options))[-1][0]
