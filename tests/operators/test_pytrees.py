"""The operators on other people's trees: Flax Linen and NNX, lists, NamedTuples, bfloat16."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cycleqd_jax.operators import (
    Factors,
    apply_task_vector,
    compose,
    factorize,
    linear_crossover,
    merge,
    svd_mutation,
    task_vector,
)
from cycleqd_jax.types import tree_paths


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.LayerNorm()(nn.Dense(5)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(5, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(5, 3, rngs=rngs)])

    def __call__(self, x):
        return self.rest[0](self.norm(self.first(x)))


class Block(NamedTuple):
    kernels: list
    bias: jax.Array


def linen(seed):
    return Linen().init(jax.random.key(seed), jnp.ones((1, 4)))


def nnx_state(seed):
    return nnx.split(Nnx(nnx.Rngs(seed)))[1]


def lists(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    return (
        Block([jax.random.normal(keys[0], (4, 5)), jax.random.normal(keys[1], (2, 3, 3))], jax.random.normal(keys[2], (5,))),
    )


def half(seed):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), linen(seed))


MAKERS = [linen, nnx_state, lists, half]


@pytest.mark.parametrize("make", [pytest.param(m, marks=pytest.mark.exhaustive) if m in (linen, lists) else m for m in MAKERS])
def test_a_generation_on_any_tree(make, assert_close):
    base, *experts = (make(seed) for seed in range(3))
    taus = [task_vector(expert, base) for expert in experts]
    factors = factorize(taus[0])
    matrices = {path for path, leaf in tree_paths(base) if leaf.ndim >= 2}
    assert set(factors) == matrices
    assert len(factors) == 2
    child = svd_mutation(jax.random.key(0), linear_crossover(*taus, jnp.asarray([1.0, 1.0])), factors)
    params = apply_task_vector(base, child)
    assert jax.tree.structure(params) == jax.tree.structure(base)
    assert [leaf.dtype for leaf in jax.tree.leaves(params)] == [leaf.dtype for leaf in jax.tree.leaves(base)]
    before = dict(tree_paths(jax.tree.map(lambda a, b: (a + b) / 2, *taus)))
    for path, leaf in tree_paths(child):
        assert (path in factors) == (not np.allclose(leaf, before[path], rtol=1e-5, atol=1e-7))
    assert_close(merge(base, taus, [1.0, 0.0]), experts[0], 1e-2 if make is half else 1e-6, scale=5.0)


@pytest.mark.exhaustive
def test_the_merged_linen_and_nnx_models_run():
    x = jnp.ones((2, 4))
    a, b = linen(0), linen(1)
    merged = merge(a, [task_vector(b, a)], [1.0])
    np.testing.assert_allclose(Linen().apply(merged, x), Linen().apply(b, x), atol=1e-5)
    a, b = nnx_state(0), nnx_state(1)
    graph = nnx.split(Nnx(nnx.Rngs(0)))[0]
    merged = merge(a, [task_vector(b, a)], [1.0])
    np.testing.assert_allclose(nnx.merge(graph, merged)(x), nnx.merge(graph, b)(x), atol=1e-5)


def test_lora_factors_are_factors(assert_close):
    """An adapter B A is U = B, s = 1, Vᵀ = A: no decomposition needed."""
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(2, 6, 2)).astype(np.float32), rng.normal(size=(2, 2, 5)).astype(np.float32)
    adapter = Factors(jnp.asarray(b), jnp.ones((2, 2)), jnp.asarray(a))
    assert_close(compose(adapter), b.astype(np.float64) @ a.astype(np.float64))


def test_all_zero_task_vectors(assert_identical):
    base = linen(0)
    tau = task_vector(base, base)
    child = svd_mutation(jax.random.key(0), linear_crossover(tau, tau, jnp.asarray([1.0, 1.1])), factorize(tau))
    assert_identical(apply_task_vector(base, child), base)
