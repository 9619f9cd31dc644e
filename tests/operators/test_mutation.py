"""SVD and Gaussian mutation: float64, keys per matrix, what passes through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.operators import factorize, gaussian_mutation, mutation_coefficients, svd_mutation
from cycleqd_jax.operators.mutation import matrix_keys
from cycleqd_jax.types import InputError

seeds = st.integers(0, 2**31 - 1)


def task_vector(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {
        "embed": (7, 4),
        "layers": {"q": (3, 4, 5), "attn_norm": (3, 4), "experts": (3, 2, 4, 4), "bias": (3, 4)},
        "norm": (4,),
        "scale": (),
    }
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda x: isinstance(x, tuple))


MATRICES = ("embed", "layers/q", "layers/experts")


def leaf_at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


@settings(max_examples=20)
@given(seeds, seeds, st.sampled_from([0.0, 0.3, 2.0]), st.sampled_from([None, 2]))
def test_against_float64(assert_close, assert_identical, seed, key, w_max, rank):
    tau, factors = task_vector(seed), factorize(task_vector(seed + 1), rank)
    got = svd_mutation(jax.random.key(key), tau, factors, w_max)
    want = jax.tree.map(lambda x: np.asarray(x, np.float64), tau)
    for path in MATRICES:
        u, s, vt = (np.asarray(x, np.float64) for x in factors[path])
        w = mutation_coefficients(jax.random.key(key), path, s.shape[:-1], s.shape[-1], w_max)
        leaf_at(want, path)[...] += u @ ((s * np.asarray(w, np.float64))[..., None] * vt)
    assert_close(got, want)
    for path in ("layers/attn_norm", "layers/bias", "norm", "scale"):
        assert_identical(leaf_at(got, path), leaf_at(tau, path))


@settings(max_examples=10)
@given(seeds, seeds)
def test_zero_mutation_is_identity(assert_identical, seed, key):
    tau = task_vector(seed)
    key = jax.random.key(key)
    assert_identical(svd_mutation(key, tau, factorize(tau), 0.0), tau)
    assert_identical(svd_mutation(key, tau, {}, 0.3), tau)
    assert_identical(gaussian_mutation(key, tau, 0.0), tau)
    zero = jax.tree.map(jnp.zeros_like, tau)
    assert_identical(svd_mutation(key, tau, factorize(zero), 0.3), tau)


def test_own_directions_are_stretched():
    """Around its own decomposition, τ + U (Σ ⊙ w) Vᵀ has the singular values σ (1 + w)."""
    tau = {"w": task_vector(0)["layers"]["q"]}
    factors, key = factorize(tau), jax.random.key(1)
    w = mutation_coefficients(key, "w", (3,), 4)
    stretched = np.sort(np.asarray(factors["w"].s * (1 + w)), axis=-1)[:, ::-1]
    mutated = np.asarray(svd_mutation(key, tau, factors)["w"], np.float64)
    np.testing.assert_allclose(np.linalg.svd(mutated, compute_uv=False), stretched, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- keys


def test_the_coefficients_of_a_stack_are_those_of_its_matrices(assert_identical):
    key = jax.random.key(5)
    stacked = mutation_coefficients(key, "layers/q", (3, 2), 6)
    keys = matrix_keys(key, "layers/q", (3, 2))
    for i in np.ndindex(3, 2):
        assert_identical(stacked[i], jax.random.uniform(keys[i], (6,), maxval=0.3))
    # nor does it matter how many matrices follow in the stack
    assert_identical(mutation_coefficients(key, "layers/q", (2, 2), 6), stacked[:2])


def test_stacked_layers_are_mutated_as_single_layers_with_their_keys(assert_close):
    key, tau, expert = jax.random.key(2), task_vector(0)["layers"]["q"], task_vector(1)["layers"]["q"]
    stacked = svd_mutation(key, {"q": tau}, factorize({"q": expert}))["q"]
    keys = matrix_keys(key, "q", (3,))
    for layer in range(3):
        u, s, vt = (np.asarray(x, np.float64) for x in factorize({"q": expert[layer]})["q"])
        w = np.asarray(jax.random.uniform(keys[layer], (4,), maxval=0.3), np.float64)
        assert_close(stacked[layer], np.asarray(tau[layer], np.float64) + u @ ((s * w)[:, None] * vt), 2e-6)


def test_a_leaf_is_mutated_alike_whatever_surrounds_it(assert_identical):
    key, tau = jax.random.key(0), task_vector(0)
    factors = factorize(tau)
    alone = {"layers": {"q": tau["layers"]["q"]}}
    assert_identical(
        svd_mutation(key, alone, {"layers/q": factors["layers/q"]})["layers"]["q"],
        svd_mutation(key, tau, factors)["layers"]["q"],
    )
    assert_identical(gaussian_mutation(key, alone, 0.1)["layers"]["q"], gaussian_mutation(key, tau, 0.1)["layers"]["q"])


def test_matrices_and_leaves_draw_independently():
    key = jax.random.key(0)
    draws = [np.asarray(mutation_coefficients(key, path, (4,), 500)) for path in ("a", "b", "layers/q")]
    draws = np.concatenate([*draws, np.asarray(mutation_coefficients(jax.random.key(1), "a", (4,), 500))])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.25
    assert len(np.unique(draws)) > 0.999 * draws.size


@pytest.mark.parametrize("w_max", [0.3, 1.0])
def test_coefficients_are_uniform(w_max):
    w = np.asarray(mutation_coefficients(jax.random.key(0), "w", (200,), 500, w_max), np.float64).ravel()
    assert w.min() >= 0
    assert w.max() < w_max
    counts = np.histogram(w, bins=20, range=(0, w_max))[0]
    expected = w.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # χ², 19 degrees of freedom, p = 0.001


# ----------------------------------------------------------------------------------------------------------- transforms


@pytest.mark.exhaustive
def test_jit_is_eager(assert_close):
    key, tau = jax.random.key(3), {name: task_vector(0)["layers"][name] for name in ("q", "bias")}
    factors = factorize({"q": task_vector(1)["layers"]["q"]})
    with jax.disable_jit():
        eager = svd_mutation(key, tau, factors), gaussian_mutation(key, tau, 0.1)
    assert_close((svd_mutation(key, tau, factors), gaussian_mutation(key, tau, 0.1)), eager)


@pytest.mark.exhaustive
def test_vmapped_is_the_loop(assert_close, assert_identical):
    keys, factors = jax.random.split(jax.random.key(0), 4), factorize({"q": task_vector(9)["layers"]["q"]})
    population = {name: jnp.stack([task_vector(i)["layers"][name] for i in range(4)]) for name in ("q", "bias")}
    batch = jax.vmap(svd_mutation, in_axes=(0, 0, None))(keys, population, factors)
    noisy = jax.vmap(gaussian_mutation, in_axes=(0, 0, None))(keys, population, 0.1)
    draws = jax.vmap(lambda key: mutation_coefficients(key, "w", (3,), 4))(keys)
    for j in range(4):
        one = jax.tree.map(lambda x, j=j: x[j], population)
        assert_close(jax.tree.map(lambda x, j=j: x[j], batch), svd_mutation(keys[j], one, factors))
        assert_close(jax.tree.map(lambda x, j=j: x[j], noisy), gaussian_mutation(keys[j], one, 0.1))
        assert_identical(draws[j], mutation_coefficients(keys[j], "w", (3,), 4))


def test_same_key_same_child(assert_identical):
    tau = task_vector(0)
    factors = factorize(tau)
    assert_identical(svd_mutation(jax.random.key(7), tau, factors), svd_mutation(jax.random.key(7), tau, factors))
    other = svd_mutation(jax.random.key(8), tau, factors)
    assert not np.allclose(other["embed"], svd_mutation(jax.random.key(7), tau, factors)["embed"])


@pytest.mark.exhaustive
def test_no_recompilation(compilations):
    tau, other = task_vector(0), task_vector(1)
    factors, others = factorize(tau), factorize(other)
    svd_mutation(jax.random.key(0), tau, factors, 0.3)
    gaussian_mutation(jax.random.key(0), tau, 0.1)
    key = jax.random.key(1)
    assert compilations(lambda: svd_mutation(key, other, others, 0.2)) == 0
    assert compilations(lambda: gaussian_mutation(key, other, 0.2)) == 0


# -------------------------------------------------------------------------------------------------------------- Gaussian


def test_gaussian_noise_reaches_matrices_only(assert_identical):
    tau = task_vector(0)
    noisy = gaussian_mutation(jax.random.key(0), tau, 0.1)
    for path in ("layers/attn_norm", "layers/bias", "norm", "scale"):
        assert_identical(leaf_at(noisy, path), leaf_at(tau, path))
    for path in MATRICES:
        assert np.all(leaf_at(noisy, path) != leaf_at(tau, path))


def test_gaussian_noise_has_its_moments():
    zero = {"w": jnp.zeros((10, 100, 100))}
    noise = np.asarray(gaussian_mutation(jax.random.key(0), zero, 0.02)["w"], np.float64)
    assert abs(noise.mean()) < 4 * 0.02 / np.sqrt(noise.size)
    np.testing.assert_allclose(noise.std(), 0.02, rtol=0.01)
    np.testing.assert_allclose(((noise / 0.02) ** 4).mean(), 3.0, rtol=0.05)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.04


def test_gaussian_mutation_takes_a_predicate(assert_identical):
    tau = task_vector(0)
    noisy = gaussian_mutation(jax.random.key(0), tau, 0.1, predicate=only_embed)
    assert_identical(noisy["layers"], tau["layers"])
    assert np.all(noisy["embed"] != tau["embed"])


def only_embed(path, leaf):
    return path == "embed"


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 4), (1, 4, 3), (4, 1), (2, 2, 4, 3)])
def test_factors_of_another_shape(shape):
    """They would broadcast, or fail inside of JAX."""
    factors = factorize({"w": jax.random.normal(jax.random.key(1), shape)}, predicate=lambda path, leaf: True)
    with pytest.raises(InputError, match=r"expected factors of matrices of shape \(2, 4, 3\) for leaf 'w', got u .*; fact"):
        svd_mutation(jax.random.key(0), {"w": jnp.ones((2, 4, 3))}, factors)
