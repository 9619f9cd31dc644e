"""Bases: what they hold, decomposed leaf by leaf, on one device or on many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.genome import basis as module
from cycleqd_jax.genome.basis import basis_bytes, basis_shapes, dense_bases, low_rank_bases, matrix_leaves, sketch
from cycleqd_jax.operators import compose, factorize
from cycleqd_jax.types import Adapter, InputError, LowRank, tree_paths

SHAPES = {"embed": (40, 12), "layers/norm": (5, 12), "layers/q": (5, 12, 16), "layers/up": (5, 12, 16)}


def weights(seed, around=None, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    made = {path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}
    return {path: (x + (0 if around is None else around[path].astype(x.dtype))).astype(dtype) for path, x in made.items()}


def matrices():
    return [path for path in SHAPES if "norm" not in path]


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("fsdp", "tensor"))


@pytest.mark.exhaustive
def test_a_basis_is_the_factors_of_every_expert(assert_identical, assert_close):
    base = weights(0, dtype=jnp.bfloat16)
    experts = [weights(k, base, 0.1, jnp.bfloat16) for k in (1, 2, 3)]
    for path, basis, (energies, _) in dense_bases(base, experts, matrices(), 7):
        for k, expert in enumerate(experts):
            tau = expert[path].astype(jnp.float32) - base[path].astype(jnp.float32)
            assert_identical(basis.of(k), factorize({path: tau}, 7)[path])
            want = np.sum(np.square(np.asarray(tau, np.float64)), axis=(-2, -1))
            np.testing.assert_allclose(energies[k], want, rtol=1e-6)
            assert np.all(np.sum(np.square(np.asarray(basis.s[k], np.float64)), axis=-1) < want)
    for _, basis, (energies, _) in dense_bases(base, experts, matrices(), None):
        np.testing.assert_allclose(np.sum(np.square(np.asarray(basis.s, np.float64)), axis=-1), energies, rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("svd", "gram")), "randomized"]
)
def test_many_devices_give_the_bits_of_one(assert_identical, mesh, method):
    # 3 experts × 5 layers are two rounds of eight devices, the second with one to spare; the embeddings are less than one
    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2, 3)]
    one = list(dense_bases(base, experts, matrices(), 7, method))
    many = list(dense_bases(base, experts, matrices(), 7, method, mesh))
    assert [path for path, *_ in many] == matrices()
    for (_, wanted, wanted_sketch), (_, found, sketched) in zip(one, many, strict=True):
        assert isinstance(found.u, np.ndarray)
        if method == "svd":
            assert_identical(found, jax.tree.map(np.asarray, wanted))
        for k in range(3):
            np.testing.assert_allclose(found.s[k], wanted.s[k], rtol=2e-6)
            np.testing.assert_allclose(compose(wanted.of(k)), compose(jax.tree.map(jnp.asarray, found.of(k))), atol=1e-6)
        assert_identical(sketched, wanted_sketch)


def test_no_device_holds_the_matrices_of_others(mesh, monkeypatch):
    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2, 3)]
    first, size, held = jax.devices()[0], 12 * 16, []

    def on_first():
        matrices = [x for x in jax.live_arrays() if x.shape[-2:] == (12, 16)]  # other tests' arrays come and go
        shards = [shard for x in matrices for shard in x.addressable_shards]
        return sum(shard.data.size for shard in shards if shard.device == first)

    def counted(batch, *rest):
        assert {shard.data.shape for shard in batch.addressable_shards} == {(1, 12, 16)}
        held.append((on_first() - before) / size)
        return decompose(batch, *rest)

    decompose = module.decompose
    monkeypatch.setattr(module, "decompose", counted)
    before = on_first()
    list(dense_bases(base, experts, ["layers/q"], 7, "svd", mesh))
    assert len(held) == 2
    assert max(held) < 3, "its own matrix, and no more than another that is on its way"


def test_stacks_without_matrices(mesh):
    base = {"w": jnp.zeros((0, 6, 8)), "v": jnp.zeros((3, 0, 6, 8))}
    experts = [base, base]
    for where in (None, mesh):
        found = {path: basis for path, basis, _ in dense_bases(base, experts, ["w", "v"], None, "svd", where)}
        assert [x.shape for x in found["w"]] == [(0, 6, 2, 6), (2, 0, 6), (0, 2, 6, 8)]
        assert [x.shape for x in found["v"]] == [(3, 0, 6, 2, 6), (2, 3, 0, 6), (3, 0, 2, 6, 8)]


@pytest.mark.parametrize("scale", [1e-24, 1.0, 1e30])
def test_energies_of_any_size(scale):
    base = {"w": jnp.zeros((5, 12, 16))}
    tau = (scale * np.random.default_rng(0).normal(size=(5, 12, 16))).astype(np.float32)
    tau[3] = 0
    found = sketch(base, [{"w": jnp.asarray(tau)}, base], "w")
    np.testing.assert_allclose(found.energies[0], np.sum(np.square(tau, dtype=np.float64), axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(found.energies[1], 0)
    assert found.projections.shape == (2, 5, 3)
    assert np.isfinite(found.projections).all()
    np.testing.assert_array_equal(found.projections[0, 3], 0)


def test_projections_are_linear_and_see_every_element():
    def projections(tau):
        return sketch({"w": jnp.zeros((6, 8))}, [{"w": jnp.asarray(tau, jnp.float32)}], "w").projections[0]

    units = np.stack([projections(unit) for unit in np.eye(48).reshape(48, 6, 8)])
    assert np.all((np.abs(units) >= 1) & (np.abs(units) <= 4))
    tau = np.random.default_rng(0).normal(size=(6, 8))
    np.testing.assert_allclose(projections(tau), tau.ravel() @ units, atol=1e-5)


def test_low_rank_updates_beyond_float32_are_refused():
    base = {"w": jnp.zeros((6, 8))}
    update = LowRank(np.full((6, 2), 3e30, np.float32), np.full((2, 8), 3e30, np.float32))  # finite, their product not
    fine = Adapter({"w": LowRank(np.ones((6, 2), np.float32), np.ones((2, 8), np.float32))})
    with pytest.raises(InputError, match="of 'w' with a finite float32 product, got NaN or infinity in expert 1"):
        ExpertSpace.from_experts(base, [fine, Adapter({"w": update})])

    @jax.jit
    def traced(updates):
        return dict(low_rank_bases(base, [Adapter(updates)], ["w"]))["w"].s

    assert np.isnan(traced({"w": update})).any()
    assert np.isfinite(traced(fine.updates)).all()


def test_leaves_that_are_spread_over_the_mesh(assert_identical, mesh):
    def spread(params):
        specs = {"embed": ("fsdp", "tensor"), "layers/norm": (), "layers/q": (None, "fsdp", "tensor"), "layers/up": ()}
        return {
            path: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*specs[path])))
            for path, x in params.items()
        }

    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2)]
    one = {path: basis for path, basis, _ in dense_bases(base, experts, matrices(), None)}
    for path, basis, _ in dense_bases(spread(base), list(map(spread, experts)), matrices(), None, "svd", mesh):
        assert_identical(basis, jax.tree.map(np.asarray, one[path]))


@pytest.mark.exhaustive
def test_bases_that_are_given_are_those_that_are_computed(assert_identical, mesh):
    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2)]
    inside = ExpertSpace.from_experts(base, experts, rank=5)
    given = {path: basis for path, basis, _ in dense_bases(base, experts, matrices(), 5, "svd", mesh)}
    outside = ExpertSpace.from_experts(base, experts, rank=5, bases=given)
    genome = inside.mutate(jax.random.key(0), inside.expert(0), 1)
    assert_identical(outside.express(genome), inside.express(genome))


def test_bases_of_others_are_refused():
    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2, 3)]
    bases = {path: basis for path, basis, _ in dense_bases(base, experts, matrices(), 5)}
    with pytest.raises(InputError, match=r"for 2 experts at rank 5 in the basis of 'embed', got"):
        ExpertSpace.from_experts(base, experts[:2], rank=5, bases=bases)
    with pytest.raises(InputError, match=r"bases of the leaves that these experts change, got a difference at 'layers/up'"):
        ExpertSpace.from_experts(base, experts, rank=5, bases={path: bases[path] for path in ("embed", "layers/q")})


def test_which_leaves_have_a_basis():
    base = weights(0)
    lora = Adapter({"layers/q": LowRank(np.ones((5, 12, 2), np.float32), np.ones((5, 2, 16), np.float32))})
    whole = Adapter({"embed": np.ones((40, 12), np.float32), "layers/norm": np.ones((5, 12), np.float32)})
    assert matrix_leaves(base, [lora, lora]) == ([], ["layers/q"])
    assert matrix_leaves(base, [lora, whole]) == (["embed"], ["layers/q"])
    assert matrix_leaves(base, [lora, weights(1)], densify=True) == (matrices(), [])
    with pytest.raises(InputError, match="densify"):
        matrix_leaves(base, [lora, weights(1)])
    assert matrix_leaves(base, [weights(1)] * 2, predicate=lambda path, leaf: path == "layers/norm") == (["layers/norm"], [])


def test_adapters_are_multiplied_out_where_leaves_are_dense(assert_close):
    base = weights(0)
    rng = np.random.default_rng(0)
    update = LowRank(np.float32(rng.normal(size=(5, 12, 2))), np.float32(rng.normal(size=(5, 2, 16))))
    experts = [Adapter({"layers/q": update}), weights(1, base, 0.1)]
    found = {
        path: (basis, sketched.energies) for path, basis, sketched in dense_bases(base, experts, ["embed", "layers/q"], None)
    }
    assert_close(compose(found["layers/q"][0].of(0)), np.asarray(update.a, np.float64) @ update.b, 3e-6)
    np.testing.assert_array_equal(found["embed"][1][0], 0)  # not changed by the adapter
    np.testing.assert_array_equal(found["embed"][0].s[0], 0)


def test_a_task_vector_beyond_float32_is_refused():
    base = {"w": jnp.full((3, 4), -3e38)}
    experts = [{"w": jnp.full((3, 4), -3e38)}, {"w": jnp.full((3, 4), 3e38)}]  # each finite, their difference not
    with pytest.raises(InputError, match="finite task vector of 'w', got NaN or infinity in expert 1"):
        ExpertSpace.from_experts(base, experts)


def test_leaves_come_one_by_one():
    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2)]
    stage = dense_bases(base, experts, matrices(), None)
    assert next(stage)[0] == "embed"
    assert dict(tree_paths(base)).keys() >= {next(stage)[0]}


def test_equal_shapes_are_compiled_once(compilations):
    base = weights(0)
    experts = [weights(k, base, 0.1) for k in (1, 2)]
    list(dense_bases(base, experts, ["layers/q"], 4))
    assert compilations(lambda: [basis for _, basis, _ in dense_bases(base, experts, ["layers/up"], 4)]) == 0


@pytest.mark.parametrize("rank", [None, 2, 99])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 5), (0, 4, 4)])
def test_shapes_and_bytes_are_those_of_the_bases(shape, rank):
    base = {"w": jnp.zeros(shape)}
    experts = [{"w": jax.random.normal(jax.random.key(k), shape)} for k in range(2)]
    ((_, basis, _),) = dense_bases(base, experts, ["w"], rank)
    assert tuple(x.shape for x in basis) == basis_shapes(shape, 2, rank)
    assert sum(x.nbytes for x in basis) == basis_bytes(shape, 2, rank)
