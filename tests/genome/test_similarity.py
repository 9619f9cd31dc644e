"""How alike experts are, against float64 on the weights multiplied out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.genome.basis import low_rank_bases, matrix_leaves
from cycleqd_jax.genome.similarity import inner_products, similarity
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.types import Adapter, LowRank, tree_paths

SHAPES = {"layers/q": (3, 8, 6), "layers/norm": (3, 8), "embed": (20, 8), "scale": ()}


def weights(seed, dtype=jnp.float32, around=None, scale=1.0):
    rng = np.random.default_rng(seed)
    leaves = {path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}
    tree = {"layers": {"q": leaves["layers/q"], "norm": leaves["layers/norm"]}, **{k: leaves[k] for k in ("embed", "scale")}}
    return jax.tree.map(lambda x, b: (x + b.astype(x.dtype)).astype(dtype), tree, around or jax.tree.map(jnp.zeros_like, tree))


def adapter(seed, rank, scale=0.1):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(3, 8, rank)), rng.normal(size=(3, rank, 6))
    return Adapter({"layers/q": LowRank(np.float32(scale * a), np.float32(b))})


def taus(base, experts):
    """The task vectors in float64, by path."""
    reference = dict(tree_paths(base))
    for expert in experts:
        found = {}
        for path, leaf in reference.items():
            if isinstance(expert, Adapter):
                update = expert.updates.get(path)
                tau = np.zeros(leaf.shape)
                if isinstance(update, LowRank):
                    tau = np.asarray(update.a, np.float64) @ np.asarray(update.b, np.float64)
                elif update is not None:
                    tau = np.asarray(update, np.float64)
            else:
                tau = np.asarray(dict(tree_paths(expert))[path], np.float64) - np.asarray(leaf, np.float64)
            found[path] = tau
        yield found


def products(base, experts):
    flat = [np.concatenate([x.ravel() for x in tau.values()]) for tau in taus(base, experts)]
    return np.array([[a @ b for b in flat] for a in flat])


def spectra(base, experts, **options):
    space = ExpertSpace.from_experts(base, experts, **options)
    return {path: basis.s for path, basis in space.bases.items()}


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.exhaustive), jnp.bfloat16])
def test_against_float64(dtype):
    base = weights(0, dtype)
    experts = [weights(k, dtype, base, 0.1) for k in (1, 2, 3)]
    want = products(base, experts)
    np.testing.assert_allclose(inner_products(base, experts), want, rtol=1e-5, atol=1e-6 * want.max())
    found = similarity(base, experts, spectra(base, experts))
    norms = np.sqrt(np.diag(want))
    np.testing.assert_allclose(np.asarray(found.task_vectors), want / np.outer(norms, norms), atol=1e-6)

    # The paper's, by the book: over the three matrices of q and the embedding, not over norms and scalars.
    decomposed = [[np.linalg.svd(x, compute_uv=False) for x in (*tau["layers/q"], tau["embed"])] for tau in taus(base, experts)]
    for a in range(3):
        for b in range(3):
            each = [cosine(x, y) for x, y in zip(decomposed[a], decomposed[b], strict=True)]
            np.testing.assert_allclose(found.singular_values[a][b], np.mean(each), atol=2e-6)


def test_the_same_twice_and_its_opposite():
    base = weights(0)
    one = weights(1, around=base, scale=0.1)
    opposite = jax.tree.map(lambda b, x: b - (x - b), base, one)
    experts = [one, one, opposite]
    found = similarity(base, experts, spectra(base, experts))
    np.testing.assert_allclose(found.task_vectors, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-5)
    np.testing.assert_allclose(found.singular_values, np.ones((3, 3)), atol=1e-5)
    assert np.max(np.abs(found.task_vectors)) <= 1  # rounding is no excuse


def test_tiny_task_vectors():
    base = jax.tree.map(jnp.zeros_like, weights(0))
    experts = [weights(k, scale=1e-8) for k in (1, 2)]
    want = products(base, experts)
    norms = np.sqrt(np.diag(want))
    found = similarity(base, experts, spectra(base, experts))
    np.testing.assert_allclose(found.task_vectors, want / np.outer(norms, norms), atol=1e-6)


def test_an_expert_that_is_the_base_has_none():
    base = weights(0)
    experts = [base, weights(1, around=base, scale=0.1), base]
    found = similarity(base, experts, spectra(base, experts))
    for table in found:
        assert [[value is None for value in row] for row in table] == [[True] * 3, [True, False, True], [True] * 3]
        assert table[1][1] == pytest.approx(1)


def test_matrices_that_one_of_a_pair_does_not_change_are_left_out():
    base = weights(0)
    one, other = (weights(k, around=base, scale=0.1) for k in (1, 2))
    other["embed"] = base["embed"]
    found = similarity(base, [one, other], spectra(base, [one, other]))
    q = [np.linalg.svd(tau["layers/q"], compute_uv=False) for tau in taus(base, [one, other])]
    want = np.mean([cosine(a, b) for a, b in zip(*q, strict=True)])
    np.testing.assert_allclose(found.singular_values[0][1], want, atol=2e-6)


def test_adapters_from_their_factors():
    base = weights(0)
    experts = [adapter(1, 2), adapter(2, 3), Adapter({})]
    want = products(base, experts)
    np.testing.assert_allclose(inner_products(base, experts), want, rtol=1e-5, atol=1e-6 * want.max())
    _, low_rank = matrix_leaves(base, experts)
    assert low_rank == ["layers/q"]
    singular = {path: basis.s for path, basis in low_rank_bases(base, experts, low_rank)}
    found = similarity(base, experts, singular)
    merged = [apply_adapter(base, expert) for expert in experts]
    dense = similarity(base, merged, spectra(base, merged))
    np.testing.assert_allclose(found.task_vectors[0][1], dense.task_vectors[0][1], atol=1e-5)
    np.testing.assert_allclose(found.singular_values[0][1], dense.singular_values[0][1], atol=1e-4)
    assert found.task_vectors[2] == found.singular_values[2] == [None] * 3


def test_adapters_beside_weights():
    base = weights(0)
    whole = Adapter({"embed": np.float32(np.random.default_rng(3).normal(size=(20, 8)))})
    experts = [adapter(1, 2), weights(1, around=base, scale=0.1), whole]
    want = products(base, experts)
    np.testing.assert_allclose(inner_products(base, experts), want, rtol=1e-5, atol=1e-6 * want.max())


def test_each_leaf_is_compiled_once(compilations):
    base = weights(0)
    experts = [weights(k, around=base) for k in (1, 2)]
    inner_products(base, experts)
    assert compilations(lambda: inner_products(base, experts[::-1])) == 0
