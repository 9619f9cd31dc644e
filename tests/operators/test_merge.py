"""Weighted merging against float64, and its algebra."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.operators import apply_task_vector, merge, softmax_weights, task_vector, weighted_sum
from cycleqd_jax.types import InputError

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 4)


def trees(seed, count, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [
        {"layers": {"w": jnp.asarray(rng.normal(size=(2, 4, 3)), dtype)}, "norm": jnp.asarray(rng.normal(size=8), dtype)}
        for _ in range(count)
    ]


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@settings(max_examples=25)
@given(seeds, counts)
def test_against_float64(assert_close, seed, count):
    base, *taus = trees(seed, count + 1)
    w = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    want = f64(base)
    for weight, tau in zip(np.float64(w), taus, strict=True):
        want = jax.tree.map(lambda x, t, a=weight: x + a * np.asarray(t, np.float64), want, tau)
    assert_close(merge(base, taus, jnp.asarray(w)), want, scale=1 + float(np.abs(w).sum()))
    assert_close(merge(base, taus, w.tolist()), want, scale=1 + float(np.abs(w).sum()))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *taus)
    assert_close(apply_task_vector(base, weighted_sum(stacked, jnp.asarray(w))), want, scale=1 + float(np.abs(w).sum()))


@settings(max_examples=20)
@given(seeds, counts)
def test_merge_of_equals_is_identity(assert_close, seed, count):
    base, params = trees(seed, 2)
    tau = task_vector(params, base)
    w = np.random.default_rng(seed).dirichlet(np.ones(count)).tolist()
    assert_close(merge(base, [tau] * count, w), params)
    assert_close(merge(base, [tau] * count, [1 / count] * count), params)


def test_merge_of_equal_bfloat16_models_is_exactly_that_model(assert_identical):
    base, params = trees(0, 2, jnp.bfloat16)
    tau = task_vector(params, base)
    merged = merge(base, [tau] * 3, [1 / 3] * 3)
    assert_identical(merged, params)


@settings(max_examples=20)
@given(seeds, st.permutations(range(4)))
def test_parents_may_be_permuted_with_their_weights(assert_close, seed, order):
    base, *taus = trees(seed, 5)
    w = np.random.default_rng(seed).uniform(0.1, 1, 4)
    one = merge(base, taus, w.tolist())
    assert_close(merge(base, [taus[i] for i in order], [w[i] for i in order]), one, scale=3.0)


def test_zero_weights_give_the_base(assert_identical):
    base, *taus = trees(0, 3, jnp.bfloat16)
    assert_identical(merge(base, [task_vector(t, base) for t in taus], [0.0, 0.0]), base)


def test_one_hot_gives_the_expert(assert_close):
    base, *experts = trees(0, 4)
    taus = [task_vector(expert, base) for expert in experts]
    for k, expert in enumerate(experts):
        assert_close(merge(base, taus, np.eye(3)[k].tolist()), expert)


def test_softmax_weights():
    f = np.asarray([0.7, 0.1, 0.45])
    np.testing.assert_allclose(softmax_weights(jnp.asarray(f)), np.exp(f) / np.exp(f).sum(), rtol=1e-6)
    np.testing.assert_array_equal(softmax_weights(jnp.asarray([0.3, 0.3])), [0.5, 0.5])


def test_jit_is_eager_and_vmapped_is_the_loop(assert_close):
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees(0, 3))
    w = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 3)), jnp.float32)
    with jax.disable_jit():
        eager = [weighted_sum(stacked, row) for row in w]
    batch = jax.vmap(weighted_sum, in_axes=(None, 0))(stacked, w)
    for j in range(5):
        assert_close(weighted_sum(stacked, w[j]), eager[j], scale=1.0)
        assert_close(jax.tree.map(lambda x, j=j: x[j], batch), eager[j], scale=1.0)


@pytest.mark.parametrize(("count", "w"), [(2, [1.0]), (2, [1.0, 1.0, 1.0]), (0, [])])
def test_one_weight_for_each_task_vector(count, w):
    base, *taus = trees(0, count + 1)
    with pytest.raises(InputError, match=f"{len(w)} for {count}"):
        merge(base, taus, w)


def test_a_task_vector_of_another_shape_is_named():
    base, good, bad = trees(0, 3)
    bad["norm"] = jnp.zeros(9)
    with pytest.raises(InputError, match=r"leaf 'norm', got .* in task vector 1"):
        merge(base, [good, bad], [0.5, 0.5])


def test_no_recompilation(compilations):
    base, *taus = trees(0, 3)
    merge(base, taus, [0.5, 0.5])
    assert compilations(lambda: merge(base, taus, [0.4, 0.7])) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_task_vectors_of_one_leaf_are_stacked(count, monkeypatch, assert_identical):
    base, *taus = trees(0, count + 1, jnp.bfloat16)
    w = jnp.linspace(-0.5, 1.0, count)
    whole = apply_task_vector(base, weighted_sum(jax.tree.map(lambda *x: jnp.stack(x), *taus), w))
    stacked = []

    def counted(x, w):
        stacked.append(len(jax.tree.leaves(x)))
        return weighted_sum(x, w)

    monkeypatch.setattr(sys.modules["cycleqd_jax.operators.merge"], "weighted_sum", counted)
    assert_identical(merge(base, taus, w), whole)
    assert stacked == [1, 1]
