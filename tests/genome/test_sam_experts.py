"""ExpertSpace over Segment Anything: convolutions, norms, embeddings and stacks against float64 numpy; frozen encoders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import CoefficientSpace, ExpertSpace
from cycleqd_jax.genome.basis import matrix_leaves
from cycleqd_jax.genome.similarity import similarity
from cycleqd_jax.models.sam.model import is_weight, weights
from cycleqd_jax.operators import crossover_weights, mutation_coefficients
from cycleqd_jax.types import tree_paths

from ..shapes import CONFIGS, random_params

TOLERANCE = 1e-5
KINDS = ["tiny_vit", pytest.param("vit", marks=pytest.mark.exhaustive)]


@functools.cache
def models(kind: str, frozen: bool = False):
    """A base and two experts that differ in all weights, or have the base's image encoder."""
    base = random_params(kind)
    rng = np.random.default_rng(1)
    made = []
    for _ in range(2):
        leaves, treedef = jax.tree.flatten(base)
        expert = treedef.unflatten([leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])
        made.append(expert | {"vision": jax.tree.map(jnp.copy, base["vision"])} if frozen else expert)
    return base, made


@functools.cache
def space_of(kind: str, frozen: bool = False) -> ExpertSpace:
    base, experts = models(kind, frozen)
    return ExpertSpace.from_experts(base, experts)


def kernels(kind: str):
    """The declared weights by path."""
    declared = jax.tree_util.tree_flatten_with_path(weights(CONFIGS[kind]), is_leaf=is_weight)[0]
    return {"/".join(key.key for key in path): weight for path, weight in declared}


def f64(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree_paths(tree)}


def mutated(key, path, tau, scale):
    """τ + U (Σ w) Vᵀ of every matrix of a stack, in float64."""
    *stack, m, n = tau.shape
    w = np.asarray(mutation_coefficients(key, path, tuple(stack), min(m, n), scale), np.float64)
    u, s, vt = np.linalg.svd(tau, full_matrices=False)
    return tau + u @ ((s * w)[..., None] * vt)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_crossover_and_mutation_equal_dense_algebra(kind, assert_close):
    (base, experts), space = models(kind), space_of(kind)
    cross_key, key = jax.random.split(jax.random.key(2))
    omega = crossover_weights(cross_key)
    child = space.crossover(space.expert(0), space.expert(1), omega)
    child = space.mutate(key, child, 1)
    one, two = np.asarray(omega, np.float64) / np.asarray(omega, np.float64).sum()
    start, first, second = f64(base), f64(experts[0]), f64(experts[1])
    wanted = {}
    for path, theta in start.items():
        wanted[path] = theta + one * (first[path] - theta) + two * (second[path] - theta)
        if path in space.bases:
            tau = second[path] - theta
            wanted[path] += mutated(key, path, tau, 0.3) - tau
    assert_close(f64(space.express(child)), wanted, TOLERANCE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_mutation_acts_on(kind):
    """All kernels, embeddings of several rows and relative positions; no norm, bias or single row."""
    found = matrix_leaves(*models(kind))[0]
    declared = kernels(kind)
    assert [path for path in declared if path.endswith("kernel") and path not in found] == []
    others = {path for path in found if not path.endswith("kernel")}
    common = {"decoder/mask_tokens", "prompt/frequencies"}
    positions = {f"vision/{kind}_positions/{axis}" for kind in ("window", "global") for axis in "hw"}
    assert others == common | (positions | {"vision/pos_embed"} if kind == "vit" else set())
    assert not any("norm" in path or "bias" in path for path in found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_is_the_matrix_of_its_unfolded_kernel(kind):
    """Singular directions of ``[out, in, height, width]``, flattened to ``[out, in · height · width]``, are the basis's."""
    (base, experts), space = models(kind), space_of(kind)
    checked = set()
    for path, weight in kernels(kind).items():
        if path not in space.bases or len(weight.file_shape) != 4 or not weight.transpose:
            continue
        checked.add(path)
        tau = f64(experts[0])[path] - f64(base)[path]
        layers = tau[None] if weight.layers is None else tau
        s, vt = np.asarray(space.bases[path].s[0]), np.asarray(space.bases[path].vt[..., 0, :, :])
        for i, matrix in enumerate(layers):
            kernel = weight.to_file(matrix)
            assert kernel.shape == weight.file_shape
            u, spectrum, _ = np.linalg.svd(kernel.reshape(len(kernel), -1), full_matrices=False)
            ours, right = (s, vt) if weight.layers is None else (s[i], vt[i])
            np.testing.assert_allclose(ours, spectrum, rtol=TOLERANCE, atol=TOLERANCE)
            rank = int(np.sum(spectrum > 1e-3))
            np.testing.assert_allclose(np.abs(np.sum(right[:rank] * u.T[:rank], axis=-1)), 1.0, atol=1e-3)
    assert "vision/neck/conv2/kernel" in checked


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_has_no_basis(kind, assert_identical):
    (base, _), space = models(kind, True), space_of(kind, True)
    for held in (space.experts, space.bases, space.expert(0).mutation):
        assert held
        assert not any(path.startswith("vision/") for path in held)
    child = space.mutate(jax.random.key(1), space.crossover(space.expert(0), space.expert(1), jnp.ones(2)), 0)
    assert_identical(space.express(child)["vision"], base["vision"])
    assert {path for path in space_of(kind).bases if not path.startswith("vision/")} == space.bases.keys()


def test_a_frozen_leaf_keeps_its_bits():
    base = {"frozen": jnp.asarray([-0.0, 0.0, 1e-40]), "w": jnp.eye(3)}
    space = ExpertSpace.from_experts(base, [base | {"w": 2 * jnp.eye(3)}, base | {"w": 3 * jnp.eye(3)}])
    found = space.express(space.expert(0))["frozen"]
    np.testing.assert_array_equal(np.asarray(found).view(np.uint32), np.asarray(base["frozen"]).view(np.uint32))
    assert list(space.bases) == ["w"]


def test_a_leaf_that_one_expert_changes_is_kept_for_all():
    base = {"v": jnp.eye(3), "w": jnp.eye(3)}
    space = ExpertSpace.from_experts(base, [base | {"w": 2 * jnp.eye(3)}, {"v": 3 * jnp.eye(3), "w": 2 * jnp.eye(3)}])
    np.testing.assert_array_equal(space.bases["v"].s, [[0, 0, 0], [2, 2, 2]])


@pytest.mark.exhaustive
def test_a_population_shares_frozen_leaves(assert_identical):
    (base, _), space = models("tiny_vit", True), space_of("tiny_vit", True)
    genomes = jax.tree.map(lambda *leaves: jnp.stack(leaves), space.expert(0), space.expert(1), space.expert(0))
    shared, whole = space.express_population(genomes, share=True), space.express_population(genomes)
    for leaf, own in zip(jax.tree.leaves(shared["vision"]), jax.tree.leaves(space.base["vision"]), strict=True):
        assert leaf is own  # not a copy
    assert_identical(shared["vision"], base["vision"])
    assert_identical(shared["decoder"], whole["decoder"])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(whole)} == {3}


@pytest.mark.exhaustive
@pytest.mark.parametrize("frozen", [True, False])
def test_similarity_of_experts(frozen):
    (base, experts), space = models("tiny_vit", frozen), space_of("tiny_vit", frozen)
    found = similarity(base, experts, {path: basis.s for path, basis in space.bases.items()})
    start, one, two = f64(base), f64(experts[0]), f64(experts[1])
    cosines = []
    for path in space.bases:
        spectra = [np.linalg.svd(expert[path] - start[path], compute_uv=False) for expert in (one, two)]
        a, b = (s.reshape(-1, s.shape[-1]) for s in spectra)
        cosines += (np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).tolist()
    taus = [np.concatenate([(expert[path] - start[path]).ravel() for path in start]) for expert in (one, two)]
    cosine = taus[0] @ taus[1] / np.linalg.norm(taus[0]) / np.linalg.norm(taus[1])
    assert found.singular_values[0][1] == pytest.approx(np.mean(cosines), abs=TOLERANCE)
    assert found.task_vectors[0][1] == pytest.approx(cosine, abs=TOLERANCE)
    assert found.singular_values[0][0] == pytest.approx(1)


@pytest.mark.exhaustive
def test_similarity_leaves_out_what_experts_do_not_change():
    """A frozen encoder has no spectra; with those of zeros that it would have, the means are the same."""
    (base, experts), space = models("tiny_vit", True), space_of("tiny_vit", True)
    spectra = {path: basis.s for path, basis in space.bases.items()}
    assert {path.split("/")[0] for path in spectra} == {"decoder", "prompt"}
    found = similarity(base, experts, spectra)
    frozen = {path: basis.s for path, basis in space_of("tiny_vit").bases.items() if path not in spectra}
    assert frozen
    assert similarity(base, experts, spectra | {path: jnp.zeros_like(s) for path, s in frozen.items()}) == found


@pytest.mark.exhaustive
def test_merging_coefficients_of_a_frozen_encoder(assert_close, assert_identical):
    base, experts = models("vit", frozen=True)
    space = CoefficientSpace.from_experts(base, experts)
    genome = space.expert(0)._replace(coefficients=jnp.asarray([[0.25, 0.5]]))
    merged = space.express(genome)
    assert_identical(merged["vision"], base["vision"])
    start, one, two = (f64(tree["decoder"]) for tree in (base, *experts))
    wanted = {path: start[path] + 0.25 * (one[path] - start[path]) + 0.5 * (two[path] - start[path]) for path in start}
    assert_close(f64(merged["decoder"]), wanted, TOLERANCE)
