"""The methods of decomposition against float64, at all scales and shapes, and spread over devices."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from cycleqd_jax.operators import Factors, compose, decompose, factorize
from cycleqd_jax.types import InputError

METHODS = ["svd", "gram", "randomized"]
SHAPES = [(3, 40, 24), (24, 40), (2, 2, 24, 24)]
STACKS = [(), (8,), (11,), (2, 3)]  # eight devices: one matrix, as many, more, and two axes
methods = pytest.mark.parametrize("method", METHODS)
every_shape = pytest.mark.parametrize("shape", [*SHAPES[:2], pytest.param(SHAPES[2], marks=pytest.mark.exhaustive)], ids=str)


def orthogonal(rng, n, r):
    return np.linalg.qr(rng.normal(size=(n, r)))[0]


def with_spectrum(shape, spectrum, seed=0):
    """A stack of float64 matrices that have these singular values."""
    rng, (*stack, m, n) = np.random.default_rng(seed), shape
    made = np.empty(shape)
    for i in np.ndindex(*stack):
        made[i] = orthogonal(rng, m, len(spectrum)) * spectrum @ orthogonal(rng, n, len(spectrum)).T
    return made


def falling(r, last=1e-2):
    return np.geomspace(1.0, last, r)


def gapped(rank):
    """With a gap behind the leading directions, so that "the best matrix of this rank" is one matrix."""
    return np.r_[falling(rank, 0.2), 0.02 * falling(24 - rank)]


def leading(exact, rank):
    """The best approximation of a rank, in float64."""
    u, s, vt = np.linalg.svd(exact, full_matrices=False)
    return u[..., :rank] * s[..., None, :rank] @ vt[..., :rank, :]


def departure(x):
    """How far the columns of a matrix are from orthonormal."""
    gram = np.swapaxes(np.asarray(x, np.float64), -1, -2) @ np.asarray(x, np.float64)
    return np.abs(gram - np.eye(gram.shape[-1])).max()


def norms(x):
    return np.linalg.norm(np.asarray(x, np.float64), axis=(-2, -1))


@methods
@every_shape
def test_full_rank_gives_the_matrix_back(assert_close, method, shape):
    for scale in (1e-8, 1e-3, 1.0, 1e4):
        exact = scale * with_spectrum(shape, falling(24))
        factors = decompose(jnp.asarray(exact, jnp.float32), method=method)
        assert factors.s.shape == (*shape[:-2], 24)
        assert {x.dtype for x in factors} == {jnp.dtype(jnp.float32)}
        assert_close(compose(factors), exact, 3e-6)
        np.testing.assert_allclose(factors.s, np.linalg.svd(exact, compute_uv=False), rtol=2e-5)
        assert np.all(np.diff(np.asarray(factors.s), axis=-1) <= 0)


@methods
@every_shape
def test_leading_directions(assert_close, method, shape):
    rank = 6
    for scale in (1e-8, 1e4):
        exact = scale * with_spectrum(shape, gapped(rank))
        factors = decompose(jnp.asarray(exact, jnp.float32), rank, method)
        assert_close(compose(factors), leading(exact, rank), 1e-5)
        # mutation weighs every direction by its own: they must be right one by one, whatever the signs of a pair
        coefficients = np.linspace(-1.0, 1.0, rank)
        u, s, vt = np.linalg.svd(exact, full_matrices=False)
        wanted = u[..., :rank] * (s[..., :rank] * coefficients)[..., None, :] @ vt[..., :rank, :]
        weights = jnp.broadcast_to(jnp.asarray(coefficients, jnp.float32), factors.s.shape)
        assert_close(compose(factors, weights), wanted, 1e-4)


@every_shape
@pytest.mark.parametrize("rank", [pytest.param(5, marks=pytest.mark.exhaustive), 24])
def test_orthonormality_is_as_stated(shape, rank):
    steep = jnp.asarray(with_spectrum(shape, falling(24, 1e-7)), jnp.float32)  # far below what gram resolves
    for method in ("svd", "randomized"):
        u, _, vt = decompose(steep, rank, method)
        assert departure(u) < 5e-6
        assert departure(np.swapaxes(vt, -1, -2)) < 5e-6
    u, s, vt = decompose(steep, rank, "gram")
    shorter, longer = (u, np.swapaxes(vt, -1, -2)) if shape[-2] <= shape[-1] else (np.swapaxes(vt, -1, -2), u)
    assert departure(shorter) < 5e-6
    np.testing.assert_allclose(np.linalg.norm(longer, axis=-2), 1.0, atol=1e-5)
    resolved = int((np.asarray(s).min(axis=tuple(range(s.ndim - 1))) > 1e-2 * np.asarray(s).max()).sum())
    assert resolved > 3
    assert departure(longer[..., :resolved]) < 2e-3
    if rank == 24:
        assert departure(longer) > 0.05  # else the docstring warns of nothing


@every_shape
def test_gram_is_a_projection_at_any_rank(assert_close, shape):
    steep = with_spectrum(shape, falling(24, 1e-7))
    factors = decompose(jnp.asarray(steep, jnp.float32), method="gram")
    assert_close(compose(factors), steep, 3e-6)
    kept = decompose(jnp.asarray(steep, jnp.float32), 8, "gram")
    assert_close(compose(kept), leading(steep, 8), 1e-3)
    assert np.all(norms(compose(kept)) <= norms(steep) * (1 + 1e-6))


@methods
@every_shape
def test_zero_matrices(method, shape):
    factors = decompose(jnp.zeros(shape), method=method)
    assert all(np.isfinite(x).all() for x in factors)
    np.testing.assert_array_equal(factors.s, 0)
    np.testing.assert_array_equal(compose(factors), 0)


@methods
def test_a_zero_matrix_among_others(assert_close, method):
    exact = with_spectrum((3, 40, 24), falling(24))
    exact[1] = 0
    factors = decompose(jnp.asarray(exact, jnp.float32), method=method)
    np.testing.assert_array_equal(factors.s[1], 0)
    assert_close(compose(factors), exact, 3e-6)


@methods
@every_shape
def test_repeated_singular_values(assert_close, method, shape):
    equal = with_spectrum(shape, np.ones(24))
    factors = decompose(jnp.asarray(equal, jnp.float32), method=method)
    assert_close(compose(factors), equal, 3e-6)
    np.testing.assert_allclose(factors.s, 1.0, rtol=1e-5)
    # Half of them equal: which directions are found is open, but not the space they span together.
    exact = with_spectrum(shape, np.r_[np.ones(4), np.full(20, 0.01)])
    assert_close(compose(decompose(jnp.asarray(exact, jnp.float32), 4, method)), leading(exact, 4), 1e-5)


@methods
def test_fewer_directions_than_the_rank(assert_close, method):
    exact = with_spectrum((3, 40, 24), falling(5, 0.1))
    factors = decompose(jnp.asarray(exact, jnp.float32), 12, method)
    assert_close(compose(factors), exact, 3e-6)
    np.testing.assert_allclose(factors.s[:, 5:], 0, atol=3e-6)


@methods
def test_a_flat_spectrum_keeps_nearly_the_best_energy(method):
    noise = np.random.default_rng(0).normal(size=(2, 96, 128))
    best = (np.linalg.svd(noise, compute_uv=False)[:, :8] ** 2).sum(-1)
    kept = (np.asarray(decompose(jnp.asarray(noise, jnp.float32), 8, method).s, np.float64) ** 2).sum(-1)
    assert np.all(kept <= best * (1 + 1e-5))
    assert np.all(kept >= best * (0.95 if method == "randomized" else 1 - 1e-5))


@methods
@pytest.mark.parametrize(
    "shape", [*(pytest.param(shape, marks=pytest.mark.exhaustive) for shape in ((5, 3), (3, 5))), (2, 1, 4), (1, 1)], ids=str
)
def test_rank_beyond_the_matrix_keeps_all(assert_identical, assert_close, method, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    factors = decompose(x, 99, method)
    assert_identical(factors, decompose(x, None, method))
    assert factors.s.shape[-1] == min(shape[-2:])
    assert_close(compose(factors), x, 3e-6)


@methods
def test_deterministic_and_alike_alone_or_stacked(assert_identical, assert_close, method):
    x = jnp.asarray(with_spectrum((5, 24, 40), gapped(6)), jnp.float32)
    once = decompose(x, 6, method)
    with jax.default_prng_impl("rbg"):
        assert_identical(decompose(x, 6, method), once)
    alone = decompose(x[3], 6, method)
    if method == "svd":
        assert_identical(alone, jax.tree.map(lambda leaf: leaf[3], once))
    assert_close(compose(alone), compose(jax.tree.map(lambda leaf: leaf[3], once)), 1e-6)


@pytest.mark.exhaustive
@methods
def test_inside_jit_and_vmap(assert_close, method):
    x = jnp.asarray(with_spectrum((3, 24, 40), falling(24)), jnp.float32)
    want = compose(decompose(x, 6, method))
    assert_close(jax.jit(lambda y: compose(factorize({"w": y}, 6, method=method)["w"]))(x), want, 3e-6)
    assert_close(jax.vmap(lambda y: compose(factorize({"w": y}, 6, method=method)["w"]))(x), want, 3e-6)


@methods
def test_what_is_not_finite_is_refused(method):
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((2, 5, 4), np.float32)
        x[1, 2, 3] = bad
        with pytest.raises(InputError, match=r"decomposed as leaf 'layers/w', got NaN, infinity"):
            factorize({"layers": {"w": jnp.asarray(x)}}, method=method)


def test_unknown_methods_and_ranks_are_refused():
    with pytest.raises(InputError, match="one of svd, gram, randomized, got 'qr'"):
        inspect.unwrap(decompose)(jnp.ones((3, 3)), None, "qr")  # the tests' own check of types would be first
    for rank in (0, -3):
        with pytest.raises(InputError, match=f"rank to be a positive integer, or null for full rank, got {rank}"):
            decompose(jnp.ones((3, 3)), rank)


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4), ("fsdp", "tensor"))


@pytest.mark.exhaustive
@methods
@pytest.mark.parametrize(
    "stack", [stack if stack in ((), (11,)) else pytest.param(stack, marks=pytest.mark.exhaustive) for stack in STACKS], ids=str
)
def test_spread_over_devices_equals_one(assert_identical, assert_close, mesh, method, stack):
    x = jnp.asarray(with_spectrum((*stack, 24, 40), gapped(6)), jnp.float32)
    one, spread = decompose(x, 6, method), decompose(x, 6, method, mesh)
    if method == "svd":
        assert_identical(spread, one)
    assert_close(spread.s, one.s, 1e-6)
    assert_close(compose(spread), compose(one), 1e-6)
    assert_identical(factorize({"w": x}, 6, method=method, mesh=mesh), {"w": spread})


@methods
def test_spreading_moves_no_matrices_between_devices(mesh, method):
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    shape = jax.ShapeDtypeStruct((16, 24, 40), jnp.float32, sharding=place)
    compiled = jax.jit(lambda x: decompose(x, 6, method, mesh)).lower(shape).compile()
    found = jax.tree.leaves(compiled.output_shardings)
    assert all(len(x.shard_shape((16, 24, 40))) == 3 and x.shard_shape((16, 24, 40))[0] == 2 for x in found[::2])
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in text


@pytest.mark.exhaustive
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(METHODS),
    m=st.sampled_from([2, 9]),
    n=st.sampled_from([2, 9]),
    exponent=st.sampled_from([-8, 0, 4]),
)
def test_any_matrix(assert_close, seed, method, m, n, exponent):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(2, m, n)) * 10.0**exponent, jnp.float32)
    factors = decompose(x, method=method)
    assert isinstance(factors, Factors)
    assert_close(compose(factors), x, 5e-6)
