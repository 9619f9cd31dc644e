"""Small experts, and the store of their singular directions."""

from __future__ import annotations

import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome.basis import dense_bases
from cycleqd_jax.runs.basis import store as basis_store
from cycleqd_jax.runs.basis.decomposition import load_basis
from cycleqd_jax.runs.basis.store import Experts
from cycleqd_jax.types import no_progress

__all__ = ["MATRICES", "SHAPES", "Q", "decomposed", "experts", "make", "weights"]

SHAPES = {"embed": (10, 6), "layers/norm": (2, 6), "layers/q": (2, 6, 8)}
MATRICES = ["embed", "layers/q"]
Q = f"layers.q-{zlib.crc32(b'layers/q'):08x}"  # where the leaf lies in a store


def weights(seed, around=None, scale=1.0):
    rng = np.random.default_rng(seed)
    made = {path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}
    return made if around is None else {path: x + around[path] for path, x in made.items()}


def experts(*seeds, rank=None, **options):
    base = weights(0)
    identity = {"experts": list(seeds), "rank": rank}
    return Experts(base, [weights(seed, base, 0.1) for seed in seeds], identity, rank, **options)


@pytest.fixture
def decomposed(monkeypatch):
    """The leaves that have been decomposed so far, in order."""
    done = []

    def counted(base, experts, paths, *rest):
        for path, *found in dense_bases(base, experts, paths, *rest):
            done.append(path)
            yield path, *found

    monkeypatch.setattr(basis_store, "dense_bases", counted)
    return done


def make(of, cache):
    lines = []
    return load_basis(of, cache, no_progress, lines.append), lines
