"""Linear crossover against float64, and its algebra."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cycleqd_jax.operators import crossover, crossover_weights, linear_crossover, normalize_weights
from cycleqd_jax.types import InputError

seeds = st.integers(0, 2**32 - 1)
weights = st.floats(-2, 2, width=32)


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"w": (2, 5, 4), "b": (4,), "nested": [(3, 3), ()]}
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda x: isinstance(x, tuple))


def dense(p1, p2, w1, w2):
    """The paper's formula in float64."""
    w1, w2 = np.float64(np.float32(w1)), np.float64(np.float32(w2))
    return jax.tree.map(lambda a, b: (w1 * np.float64(a) + w2 * np.float64(b)) / (w1 + w2), p1, p2)


def omega(w1, w2):
    return jnp.asarray([w1, w2], jnp.float32)


@settings(max_examples=60)
@given(seeds, weights, weights)
def test_against_float64(assert_close, seed, w1, w2):
    total = float(np.float32(w1) + np.float32(w2))
    assume(abs(total) >= 0.05)
    p1, p2 = tree(seed), tree(seed + 1)
    # of opposite signs the weights are large: the error is relative to what is summed
    size = (abs(w1) + abs(w2)) / abs(total) * max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves((p1, p2)) if x.ndim < 3)
    assert_close(linear_crossover(p1, p2, omega(w1, w2)), dense(p1, p2, w1, w2), scale=size)


@settings(max_examples=30)
@given(seeds, seeds)
def test_the_papers_weights_agree_to_a_millionth(assert_close, seed, key):
    w = crossover_weights(jax.random.key(key))
    p1, p2 = tree(seed), tree(seed + 1)
    want = dense(p1, p2, w[0], w[1])
    size = float(np.linalg.norm(np.asarray(p1["w"], np.float64)))
    got = linear_crossover(p1, p2, w)
    assert_close(got["w"], want["w"])
    assert_close(got, want, scale=size)


@settings(max_examples=30)
@given(seeds, weights, weights)
def test_equal_parents_have_exactly_that_child(assert_identical, seed, w1, w2):
    parent = tree(seed)
    assert_identical(linear_crossover(parent, parent, omega(w1, w2)), parent)


@settings(max_examples=30)
@given(seeds, st.floats(0.25, 2, width=32), st.floats(0.25, 2, width=32))
def test_parents_may_be_exchanged_with_their_weights(assert_close, seed, w1, w2):
    p1, p2 = tree(seed), tree(seed + 1)
    one, other = linear_crossover(p1, p2, omega(w1, w2)), linear_crossover(p2, p1, omega(w2, w1))
    assert_close(one, other, scale=max(float(jnp.linalg.norm(x)) for x in jax.tree.leaves((p1, p2)) if x.ndim < 3))


def test_crossing_weights_is_crossing_task_vectors(assert_close):
    base, p1, p2 = tree(0), tree(1), tree(2)
    w = omega(1.3, 0.9)
    plus_base = [jax.tree.map(jnp.add, base, p) for p in (p1, p2)]
    assert_close(linear_crossover(*plus_base, w)["w"], jax.tree.map(jnp.add, base, linear_crossover(p1, p2, w))["w"])


@pytest.mark.parametrize("pair", [(1.0, -1.0), (0.0, 0.0), (1e-4, 1e-4), (-0.5, 0.5005)])
def test_weights_that_cancel_give_the_mean(assert_close, pair):
    np.testing.assert_array_equal(normalize_weights(omega(*pair)), [0.5, 0.5])
    p1, p2 = tree(0), tree(1)
    assert_close(linear_crossover(p1, p2, omega(*pair)), jax.tree.map(lambda a, b: (np.float64(a) + b) / 2, p1, p2), scale=1.0)


@settings(max_examples=50)
@given(weights, weights)
def test_normalised_weights_sum_to_one(w1, w2):
    w = np.asarray(normalize_weights(omega(w1, w2)), np.float64)
    assert abs(w.sum() - 1) <= 1e-6 * max(1.0, np.abs(w).sum())
    assert np.isfinite(w).all()


def test_negative_weights_extrapolate(assert_close):
    child = linear_crossover({"w": jnp.ones(3)}, {"w": jnp.zeros(3)}, omega(3.0, -1.0))
    assert_close(child, {"w": np.full(3, 1.5)})


def test_the_arithmetic_is_float32_whatever_the_parents():
    p1, p2 = {"w": jnp.asarray([512.0], jnp.bfloat16)}, {"w": jnp.asarray([1.0], jnp.bfloat16)}
    child = linear_crossover(p1, p2, omega(1.0, 1.0))
    assert child["w"].dtype == jnp.float32
    assert child["w"][0] == 256.5  # 512 − 1 is not a bfloat16


def test_raw_weights_are_normal():
    w = jax.vmap(lambda key: crossover_weights(key, 1.0, 0.03))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.mean(w, axis=0), 1.0, atol=0.03 * 4 / np.sqrt(20_000))
    np.testing.assert_allclose(np.std(w, axis=0), 0.03, rtol=0.03)
    assert abs(np.corrcoef(np.asarray(w).T)[0, 1]) < 0.04
    np.testing.assert_array_equal(crossover_weights(jax.random.key(3), 0.7, 0.0), np.float32([0.7, 0.7]))


@pytest.mark.exhaustive
def test_jit_is_eager(assert_close):
    p1, p2, w = tree(0), tree(1), omega(1.02, 0.97)
    with jax.disable_jit():
        eager = linear_crossover(p1, p2, w)
    assert_close(linear_crossover(p1, p2, w), eager, scale=1.0)
    assert_close(jax.jit(lambda *args: linear_crossover(*args))(p1, p2, w), eager, scale=1.0)


@pytest.mark.exhaustive
def test_vmapped_is_the_loop(assert_close):
    population = [jax.tree.map(lambda *x: jnp.stack(x), *(tree(10 * i + j) for j in range(6))) for i in range(2)]
    w = jax.vmap(crossover_weights)(jax.random.split(jax.random.key(0), 6))
    batch = jax.vmap(linear_crossover)(*population, w)
    for j in range(6):
        p1, p2 = (jax.tree.map(lambda x, j=j: x[j], p) for p in population)
        assert_close(jax.tree.map(lambda x, j=j: x[j], batch), linear_crossover(p1, p2, w[j]), scale=1.0)


def test_no_recompilation(compilations):
    linear_crossover(tree(0), tree(1), omega(1, 1))
    p1, p2, w = tree(2), tree(3), omega(0.9, 1.2)
    assert compilations(lambda: linear_crossover(p1, p2, w)) == 0


def test_weights_that_are_no_numbers_make_no_child():
    for omega in ([jnp.nan, 1.0], [1.0, jnp.nan]):
        child = linear_crossover({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, jnp.asarray(omega))
        assert not jnp.isfinite(child["w"]).any()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_there_are_two_weights(shape, monkeypatch):
    monkeypatch.setattr(crossover, "normalize_weights", inspect.unwrap(normalize_weights))  # the tests' own check is first
    with pytest.raises(InputError, match=r"weights of two parents, of shape \(2,\), got shape .* in omega; pass two numbers"):
        inspect.unwrap(linear_crossover)({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, jnp.ones(shape))
