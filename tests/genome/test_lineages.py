"""Whole lineages against plain float64 arithmetic."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.operators import crossover_weights, mutation_coefficients
from cycleqd_jax.types import tree_paths

from .llama_space import make_space, params


@pytest.mark.as_users
def test_200_lineages_of_20_generations_against_float64():
    """Whole lineages on dense float64 weights, with the reference's order: crossover, then U diag(w s) Vᵀ of the active expert,
    decomposed by NumPy.
    """
    space = make_space(rank=None)
    experts = space.num_experts
    base = {path: np.asarray(leaf, np.float64) for path, leaf in tree_paths(space.base)}
    taus = [{path: np.asarray(leaf, np.float64) - base[path] for path, leaf in tree_paths(params(k))} for k in (1, 2, 3)]
    factors = [{path: np.linalg.svd(tau[path], full_matrices=False) for path in space.bases} for tau in taus]
    assert set(base) - set(space.bases) == {path for path in base if "norm" in path}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, 0, 0, None))
    def child(lineage, t, one, other, active):
        cross, mutate = jax.random.split(jax.random.fold_in(jax.random.key(lineage), t))
        omega = crossover_weights(cross)
        genome = space.mutate(mutate, space.crossover(one, other, omega), active)
        w = {p: mutation_coefficients(mutate, p, b.s.shape[1:-1], b.s.shape[-1], space.w_max) for p, b in space.bases.items()}
        return genome, omega, w

    def last(lineages):
        """The youngest of every lineage, as a batch of genomes and of float64 task vectors."""
        rngs, rows = [np.random.default_rng(i) for i in lineages], np.arange(len(lineages))

        def batch(tree):
            return jax.tree.map(lambda x: np.stack([np.asarray(x)] * len(lineages)), tree)

        genomes, dense = [batch(space.expert(k)) for k in range(experts)], [batch(tau) for tau in taus]
        for t in range(20):
            j = [int(rng.integers(len(genomes) - 1)) for rng in rngs]
            one, other = genomes[-1], jax.tree.map(lambda *x: np.stack(x)[j, rows], *genomes)
            genome, omega, w = child(np.asarray(lineages), t, one, other, t % experts)
            w1, w2 = np.asarray(omega, np.float64).T
            tau = {}
            for path in base:
                a, b = (x.reshape(-1, *(1,) * base[path].ndim) for x in (w1, w2))
                tau[path] = (a * dense[-1][path] + b * np.stack([dense[k][path][row] for row, k in enumerate(j)])) / (a + b)
            for path, (u, s, vt) in factors[t % experts].items():
                tau[path] = tau[path] + (u * (np.asarray(w[path], np.float64) * s)[..., None, :]) @ vt
            genomes.append(jax.tree.map(np.asarray, genome))
            dense.append(tau)
        return genomes[-1], dense[-1]

    for first in range(0, 200, 25):
        genomes, dense = last(range(first, first + 25))
        got = dict(tree_paths(space.express_population(jax.tree.map(jnp.asarray, genomes))))
        for path, tau in dense.items():
            want = base[path] + tau
            axes = tuple(range(1, want.ndim))
            error = np.sqrt(np.square(np.asarray(got[path], np.float64) - want).sum(axes))
            assert np.all(error <= 1e-5 * np.sqrt(np.square(want).sum(axes))), (first, path)
