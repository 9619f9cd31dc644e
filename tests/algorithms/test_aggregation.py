"""Aggregation against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import Archives, aggregate


def filled(genomes, scores):
    bounds = np.asarray([(0, 1)] * scores.shape[1])
    archives = Archives.create(jax.tree.map(lambda x: x[0], genomes), bounds, 5)
    return jax.jit(Archives.add)(archives, genomes, scores, jnp.arange(len(scores)))


@pytest.mark.exhaustive
def test_against_numpy(assert_close):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scores = rng.uniform(size=(20, 3)).astype(np.float32)
        genomes = {
            "w": jnp.asarray(rng.normal(size=(20, 2, 4, 3)), jnp.float32),
            "v": jnp.asarray(rng.normal(size=(20, 5)), jnp.float32),
        }
        genome, beta, ids = aggregate(filled(genomes, scores))
        best = scores.argmax(axis=0)
        assert ids.tolist() == best.tolist()
        f = np.float64(scores.max(axis=0))
        expected = np.exp(f) / np.exp(f).sum()
        np.testing.assert_allclose(beta, expected, rtol=1e-6)
        want = jax.tree.map(lambda x: np.tensordot(expected, np.asarray(x, np.float64)[best], axes=1), genomes)
        assert_close(genome, want, 2e-6)


@pytest.mark.exhaustive
def test_the_aggregate_of_one_elite_is_that_elite(assert_close):
    scores = np.asarray([[0.9, 0.9], [0.1, 0.2]], np.float32)
    genomes = jnp.asarray([[1.0, 2.0], [5.0, 6.0]])
    genome, beta, ids = aggregate(filled(genomes, scores))
    assert ids.tolist() == [0, 0]
    assert_close(genome, genomes[0])
    np.testing.assert_allclose(beta, [0.5, 0.5])


@pytest.mark.exhaustive
def test_of_elites_with_equal_quality_the_best_on_average_is_used():
    scores = np.asarray([[0.9, 0.1], [0.9, 0.6], [0.2, 0.8]], np.float32)
    assert aggregate(filled(jnp.eye(3), scores)).elites.tolist() == [1, 2]
