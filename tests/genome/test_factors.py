"""Directions in bfloat16: what they are used for, what error they make beside the rounding of the weights, and what not."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.genome.basis import Basis, default_factor_dtype, dense_bases
from cycleqd_jax.genome.expert_space import _express, _express_into
from cycleqd_jax.types import Adapter, InputError, LowRank

SHAPES = {"embed": (60, 48), "layers/down": (2, 64, 48), "layers/up": (2, 48, 64), "norm": (48,)}
MATRICES = [path for path in SHAPES if path != "norm"]


def models(dtype, size=0.05):
    """A base and three experts, task vectors of ``size`` of its norm with singular values that fall off slowly."""
    rng = np.random.default_rng(0)
    base = {path: 0.02 * rng.normal(size=shape) for path, shape in SHAPES.items()}

    def near(path):
        u, s, vt = np.linalg.svd(rng.normal(size=SHAPES[path]) if path != "norm" else np.eye(48), full_matrices=False)
        tau = (u * (1 + np.arange(s.shape[-1])) ** -0.5) @ vt if path != "norm" else rng.normal(size=48)
        return base[path] + tau * (size * np.linalg.norm(base[path]) / np.linalg.norm(tau))

    experts = [{path: near(path) for path in SHAPES} for _ in range(3)]
    base, *experts = (jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in (base, *experts))
    return base, experts


def mutant(space, most):
    """A child of two experts with coefficients of every expert's directions up to ``most``."""
    child = space.crossover(space.expert(0), space.expert(2), jnp.asarray([1.0, 0.97]))
    keys = jax.random.split(jax.random.key(1), len(child.mutation))
    d = {path: most * jax.random.uniform(key, child.mutation[path].shape) for key, path in zip(keys, MATRICES, strict=True)}
    return child._replace(mutation=d)


def f64(x):
    return np.asarray(jnp.asarray(x, jnp.float32), np.float64)


def exact(base, experts, bases: dict[str, Basis], genome):
    """θ in float64, from float32 factors."""
    found = {}
    for path, theta in base.items():
        found[path] = f64(theta)
        for k, expert in enumerate(experts):
            found[path] = found[path] + f64(genome.mixing)[k] * (f64(expert[path]) - f64(theta))
            if path in bases:
                u, s, vt = map(f64, bases[path].of(k))
                found[path] = found[path] + (u * (s * f64(genome.mutation[path])[k])[..., None, :]) @ vt
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [16, None])
@pytest.mark.parametrize(("size", "most"), [(0.01, 0.3), (0.05, 0.3), (0.05, 0.9)])
def test_the_error_is_that_of_rounding_the_weights(rank, size, most):
    """Task vectors of 1 to 5 % of the weights; mutated once, or three times over."""
    base, experts = models(jnp.bfloat16, size)
    bases = {path: basis for path, basis, _ in dense_bases(base, experts, MATRICES, rank)}
    space = ExpertSpace.from_experts(base, experts, rank=rank, bases=bases)
    genome = mutant(space, most)
    want, got = exact(base, experts, bases, genome), space.express(genome)
    for path in SHAPES:
        rounding = np.linalg.norm(f64(jnp.asarray(want[path], jnp.bfloat16)) - want[path])
        assert np.linalg.norm(f64(got[path]) - want[path]) <= 1.01 * rounding
        if path in bases:  # which is no small part of what mutation does
            mutation = want[path] - exact(base, experts, {}, genome)[path]
            assert np.linalg.norm(mutation) > rounding


@pytest.mark.exhaustive
def test_what_is_said_of_the_error():
    """0.3 % of the norm of what mutation adds."""
    base, experts = models(jnp.bfloat16)
    bases = {path: basis for path, basis, _ in dense_bases(base, experts, MATRICES, None)}
    genome = mutant(ExpertSpace.from_experts(base, experts, bases=bases), 0.9)
    # nothing but mutation, on a base of zeros in float32, is not rounded to bfloat16
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), base)
    space = ExpertSpace.from_experts(base, experts, bases=bases).replace(base=zeros, experts={})
    genome = genome._replace(mixing=jnp.zeros(3))
    want = exact(zeros, [zeros] * 3, bases, genome)
    got = space.express(genome)
    for path in MATRICES:
        assert 0.002 < np.linalg.norm(f64(got[path]) - want[path]) / np.linalg.norm(want[path]) < 0.0033
        weights = f64(base[path])
        rounding = np.linalg.norm(f64(jnp.asarray(weights * 1.1, jnp.bfloat16)) - weights * 1.1) / np.linalg.norm(weights * 1.1)
        assert 0.0014 < rounding < 0.0019


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [5, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_crossover_is_not_concerned(rank, assert_identical):
    base, experts = models(jnp.bfloat16)
    spaces = [ExpertSpace.from_experts(base, experts, rank=rank, factor_dtype=dtype) for dtype in (None, "float32")]
    children = [s.crossover(s.expert(0), s.crossover(s.expert(1), s.expert(2), jnp.ones(2)), jnp.ones(2)) for s in spaces]
    assert_identical(*(space.express(child) for space, child in zip(spaces, children, strict=True)))
    for k in range(3):
        assert_identical(spaces[0].express(spaces[0].expert(k)), experts[k])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("weights", "asked", "kept"),
    [
        pytest.param("float32", None, "float32", marks=pytest.mark.exhaustive),
        pytest.param("float16", None, "float32", marks=pytest.mark.exhaustive),
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
        pytest.param("float32", "bfloat16", "bfloat16", marks=pytest.mark.exhaustive),
    ],
)
def test_which_factors_are_kept_and_multiplied(weights, asked, kept):
    base, experts = models(weights)
    whole = {path: basis for path, basis, _ in dense_bases(base, experts, MATRICES, 4)}
    space = ExpertSpace.from_experts(base, experts, rank=4, factor_dtype=asked)
    given = ExpertSpace.from_experts(base, experts, rank=4, factor_dtype=asked, bases=jax.tree.map(np.asarray, whole))
    if asked is None:
        assert default_factor_dtype(weights) == kept
    for bases in (space.bases, given.bases):
        for path, basis in bases.items():
            assert (basis.u.dtype, basis.s.dtype, basis.vt.dtype) == (kept, "float32", kept)
            for found, exactly in zip(basis, whole[path], strict=True):
                np.testing.assert_array_equal(found, jnp.asarray(exactly, found.dtype))
    genome = mutant(space, 0.3)
    assert {x.dtype for x in jax.tree.leaves(genome)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(space.express(genome))} == {jnp.dtype(weights)}
    short = {"float32": "f32", "bfloat16": "bf16"}[kept]
    products = re.findall(
        r"dot_general.*: \(tensor<[x\d]+(\w+)>, tensor<[x\d]+(\w+)>\) -> tensor<[x\d]+(\w+)>", lowered(space, genome)
    )
    assert len(products) >= len(MATRICES)
    assert set(products) == {(short, short, "f32")}


def lowered(space, genome):
    return _express.lower(space, genome).as_text()


@pytest.mark.exhaustive
def test_factors_in_bfloat16_are_neither_widened_nor_copied():
    """XLA's CPU backend would hold all of them in float32, and all of the weights as integers."""
    if jax.default_backend() != "cpu":
        pytest.skip("of the CPU backend")
    rng = np.random.default_rng(0)
    base, *experts = ({"w": jnp.asarray(rng.normal(size=(24, 64, 96)), jnp.bfloat16)} for _ in range(4))
    space = ExpertSpace.from_experts(base, experts, method="gram")
    memory = _express_into.lower(space, space.expert(0), base).compile().memory_analysis()
    matrix = base["w"].nbytes // 24
    assert memory.temp_size_in_bytes < 10 * matrix + 4 * space.bases["w"].s.size
    assert memory.temp_size_in_bytes < base["w"].nbytes / 2


@pytest.mark.exhaustive
def test_low_rank_updates_stay_in_float32(assert_close):
    """Their factors are the experts' change itself, crossover included."""
    base, _ = models(jnp.bfloat16)
    rng = np.random.default_rng(0)

    def adapter():
        return Adapter({"layers/up": LowRank(*(np.float32(rng.normal(size=shape)) for shape in ((2, 48, 3), (2, 3, 64))))})

    space = ExpertSpace.from_experts(base, [adapter(), adapter()], rank=2, factor_dtype="bfloat16")
    for bases in (space.bases, space.remainders):
        assert [x.dtype for x in bases["layers/up"]] == [jnp.float32] * 3
    dense = ExpertSpace.from_experts(base, [adapter(), {**base, "layers/up": base["layers/up"] * 2}], rank=2, densify=True)
    assert dense.bases["layers/up"].u.dtype == jnp.bfloat16
    assert dense.updates["layers/up"][0].dtype == jnp.float32


@pytest.mark.exhaustive
@pytest.mark.parametrize("asked", ["float16", "float33", jnp.float32])
def test_other_dtypes_are_refused(asked, unchecked):
    base, experts = models(jnp.bfloat16)
    with pytest.raises(InputError, match="expected factor_dtype float32, bfloat16 or null, got"):
        unchecked(ExpertSpace.from_experts)(base, experts, factor_dtype=asked)
