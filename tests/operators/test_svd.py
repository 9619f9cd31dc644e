"""Factorisation: reconstruction, orthonormality, Eckart–Young, stacks, and which leaves are matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.genome import DenseSpace
from cycleqd_jax.operators import Factors, compose, factorize, is_matrix, svd
from cycleqd_jax.types import InputError

SHAPES = [(5, 3), (3, 5), (4, 4), (2, 5, 3), (3, 2, 2), (2, 3, 4, 3)]
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32 - 1)


def matrix(seed, shape, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


@pytest.mark.exhaustive
@settings(max_examples=40)
@given(seeds, shapes, st.sampled_from([1e-5, 1.0, 1e4]))
def test_full_rank_reconstructs(assert_close, seed, shape, scale):
    tau = matrix(seed, shape, scale)
    factors = factorize({"w": tau})["w"]
    assert factors.s.shape == (*shape[:-2], min(shape[-2:]))
    assert_close(compose(factors), tau, 2e-6)
    assert np.all(np.diff(np.asarray(factors.s), axis=-1) <= 0)
    r = factors.s.shape[-1]
    identity = np.broadcast_to(np.eye(r), (*shape[:-2], r, r))
    assert_close(np.swapaxes(factors.u, -1, -2) @ np.asarray(factors.u), identity, 2e-6)
    assert_close(np.asarray(factors.vt) @ np.swapaxes(factors.vt, -1, -2), identity, 2e-6)


@pytest.mark.exhaustive
@settings(max_examples=30)
@given(seeds, shapes, st.integers(1, 4))
def test_truncation_is_optimal(seed, shape, rank):
    tau = matrix(seed, shape)
    factors = factorize({"w": tau}, rank)["w"]
    exact = np.linalg.svd(np.asarray(tau, np.float64), compute_uv=False)
    kept = min(rank, exact.shape[-1])
    assert factors.s.shape[-1] == kept
    np.testing.assert_allclose(factors.s, exact[..., :kept], atol=1e-5)
    error = np.sqrt(((np.asarray(compose(factors), np.float64) - np.asarray(tau, np.float64)) ** 2).sum(axis=(-1, -2)))
    eckart_young = np.sqrt((exact[..., kept:] ** 2).sum(axis=-1))  # no matrix of this rank is nearer
    np.testing.assert_allclose(error, eckart_young, atol=1e-5)


@pytest.mark.exhaustive
@settings(max_examples=20)
@given(seeds, shapes)
def test_compose_against_float64(assert_close, seed, shape):
    factors = factorize({"w": matrix(seed, shape)})["w"]
    c = np.random.default_rng(seed).normal(size=factors.s.shape).astype(np.float32)
    u, s, vt = (np.asarray(x, np.float64) for x in factors)
    want = u @ ((s * c)[..., None] * vt)
    assert_close(compose(factors, jnp.asarray(c)), want)
    assert_close(jax.jit(compose)(factors, jnp.asarray(c)), want)


def test_stacked_is_per_matrix(assert_close):
    tau = matrix(0, (3, 2, 5, 4))
    stacked = factorize({"w": tau}, 3)["w"]
    for i in np.ndindex(3, 2):
        single = factorize({"w": tau[i]}, 3)["w"]
        assert_close(stacked.s[i], single.s)
        assert_close(compose(jax.tree.map(lambda x, i=i: x[i], stacked)), compose(single), 2e-6)


def test_bfloat16_is_decomposed_in_float32(assert_close):
    tau = matrix(0, (6, 4)).astype(jnp.bfloat16)
    factors = factorize({"w": tau})["w"]
    assert {leaf.dtype for leaf in factors} == {jnp.dtype(jnp.float32)}
    assert_close(compose(factors), tau, 2e-6)


def test_zero_and_rank_deficient_matrices():
    zero = factorize({"w": jnp.zeros((2, 4, 3))})["w"]
    assert all(np.isfinite(leaf).all() for leaf in zero)
    np.testing.assert_array_equal(compose(zero), np.zeros((2, 4, 3)))
    outer = factorize({"w": jnp.outer(jnp.arange(1.0, 5), jnp.arange(1.0, 4))})["w"]
    np.testing.assert_allclose(outer.s[1:], 0, atol=1e-5)


def test_rank_beyond_the_matrix_keeps_all(assert_identical):
    tau = {"w": matrix(0, (5, 3))}
    assert_identical(factorize(tau, 99), factorize(tau))


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_must_be_positive(rank):
    with pytest.raises(InputError, match=rf"rank.*{rank}"):
        factorize({"w": jnp.zeros((3, 3))}, rank)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("layers/attn/q", (4, 3), True),
        ("layers/attn/q", (2, 4, 3), True),
        ("embed", (512, 8), True),
        ("lm_head", (8, 512), True),
        ("conv/kernel", (3, 3, 4, 8), True),
        ("layers/input_layernorm", (2, 8), False),
        ("Norm_0/scale", (2, 8), False),
        ("layers/attn/q_bias", (2, 8), False),
        ("Dense_0/bias", (8,), False),
        ("w", (8,), False),
        ("w", (), False),
        ("w", (8, 1), False),
        ("w", (5, 1, 8), False),
        ("w", (1, 4, 3), True),
    ],
)
def test_is_matrix(path, shape, expected):
    assert is_matrix(path, jax.ShapeDtypeStruct(shape, jnp.float32)) is expected


def test_only_matrices_are_factorised_and_the_predicate_is_yours():
    tau = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "norm": jnp.ones((2, 4)), "v": jnp.ones(5)}
    assert set(factorize(tau)) == {"a/kernel"}
    assert set(factorize(tau, predicate=lambda path, leaf: path == "norm")) == {"norm"}
    assert isinstance(factorize(tau)["a/kernel"], Factors)


def test_no_recompilation(compilations):
    tau = [{"w": matrix(i, (3, 5, 4))} for i in range(2)]
    compose(factorize(tau[0], 2)["w"])
    assert compilations(lambda: factorize(tau[1], 2)) == 0


def test_it_decomposes_with_one_thread_of_lapack(monkeypatch):
    """Two threads are allowed outside, and again after it."""
    pytest.importorskip("scipy.linalg")  # whose LAPACK JAX uses

    def threads():
        return {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"}

    seen, decompose = [], svd._decompose
    monkeypatch.setattr(svd, "_decompose", lambda *args: seen.append(threads()) or decompose(*args))
    tau = {"w": matrix(0, (6, 4))}
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("BLAS has no second thread")
        factorize(tau)
        DenseSpace.from_experts(jax.tree.map(jnp.zeros_like, tau), [tau, tau]).mutate(jax.random.key(0), tau, 0)
        assert threads() == {2}
    assert seen == [{1}, {1}]
