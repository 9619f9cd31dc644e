"""Expressing at scale: on a mesh without moving weights, into old buffers, without temporaries of a model's size."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.genome import DenseSpace, ExpertSpace, express
from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.genome.expert_space import _express, _express_into, _express_population
from cycleqd_jax.models import llama
from cycleqd_jax.operators import is_matrix
from cycleqd_jax.types import Adapter, InputError, LowRank, tree_paths

from .llama_space import CONFIG, make_space, mutant, on_mesh, params

COLLECTIVES = re.compile(r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "sizes",
    [
        {"fsdp": 4, "tensor": 2},
        {"population": 2, "fsdp": 2, "tensor": 2},
        {"tensor": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mesh_gives_the_same_weights_without_collectives(sizes, dtype, assert_close):
    space = make_space(dtype)
    sharded = on_mesh(space, **sizes)
    genome = mutant(space)
    want, got = space.express(genome), sharded.express(genome)
    assert_close(got, want, 1e-6 if dtype == "float32" else 1e-3)
    specs = dict(sharded.specs)
    for path, leaf in tree_paths(got):
        assert leaf.sharding.is_equivalent_to(jax.sharding.NamedSharding(sharded.mesh, specs[path]), leaf.ndim), path
    program = _express.lower(sharded, genome).compile().as_text()
    assert not COLLECTIVES.findall(program)
    # and the search for them can find one
    gathered = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(sharded.mesh, jax.sharding.PartitionSpec()))
    assert COLLECTIVES.findall(gathered.lower(got["layers"]["mlp"]["up"]).compile().as_text())


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_population_over_the_mesh(dtype, assert_close):
    space = make_space(dtype)
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    sharded = on_mesh(space, population=4, tensor=2)
    genomes = [mutant(space, seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *genomes)
    axis = jax.sharding.NamedSharding(sharded.mesh, jax.sharding.PartitionSpec("population"))
    spread = jax.device_put(stacked, axis)
    got = sharded.express_population(spread)
    for i, genome in enumerate(genomes):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], got), space.express(genome), tolerance)
    up = got["layers"]["mlp"]["up"]
    assert up.sharding.spec[0] == "population"
    assert {shard.data.shape[0] for shard in up.addressable_shards} == {1}
    every = frozenset(path for path, _ in tree_paths(space.base))
    assert not COLLECTIVES.findall(_express_population.lower(sharded, spread, every).compile().as_text())
    unsharded = space.express_population(stacked)
    assert_close(unsharded, jax.tree.map(np.asarray, got), tolerance)


@pytest.mark.exhaustive
def test_a_mesh_that_does_not_divide_is_refused():
    space = make_space()
    if len(jax.devices()) < 5:
        pytest.skip("needs 8 (simulated) devices")
    mesh = sharding.make_mesh(tensor=5)
    with pytest.raises(InputError, match="divide by the 5 devices"):
        sharding.shardings(mesh, space.base, llama.logical_axes(CONFIG))
    with pytest.raises(InputError, match="every leaf of the base"):
        space.shard(mesh, {"norm": jax.sharding.PartitionSpec()})


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.exhaustive), "bfloat16"])
def test_old_weights_are_overwritten(dtype, assert_identical):
    space = make_space(dtype)
    first, second = mutant(space, 1), mutant(space, 2)
    want = space.express(second)
    old = space.express(first)
    got = space.express(second, old)
    assert_identical(got, want)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    memory = _express_into.lower(space, second, got).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(got))
    with pytest.raises(InputError, match="got no such leaf in the weights to overwrite"):
        space.express(second, {"norm": got["norm"]})


@pytest.mark.exhaustive
def test_rows_in_blocks_are_the_whole(monkeypatch, assert_close):
    space = make_space()
    genome = mutant(space)
    want = jax.tree.map(np.asarray, space.express(genome))
    monkeypatch.setattr(express, "_BLOCK", 300)
    _express.clear_cache()
    got = space.express(genome)
    _express.clear_cache()
    assert_close(got, want, 1e-6)
    assert express.block_shape(64, 32, 6) == (8, 32)  # at most 300 numbers
    assert express.block_shape(7, 1000, 6) == (7, 42)  # 24 blocks, the last one moved back
    assert express.block_shape(64, 32, 96) == (3, 32)  # the factor of three rows has 288


@pytest.mark.exhaustive
def test_an_embedding_is_made_in_the_loop_over_layers():
    assert express._blocks(49152, 576, 192, {30}) == 30
    assert express._blocks(49152, 576, 192, {2}) == 2  # neither product nor factor is larger than a block may be
    assert express._blocks(128256, 4096, 3 * 4096, {32}) == 94  # more than there are layers
    assert express._blocks(2048, 32064, 768, {32}) == 4  # large products are not made smaller
    assert express._blocks(64, 32, 6, {80}) == 1  # every block would read more of the factor than it has rows
    base, *experts = (jax.tree.map(lambda x: x * k, llama.init_params(CONFIG, jax.random.key(k))) for k in (1, 2, 3))
    space = ExpertSpace.from_experts(base, experts, rank=3)
    program = str(jax.make_jaxpr(space.express)(space.expert(0)))
    assert len(re.findall(r"\b(?:while|scan)\[", program)) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_temporaries_on_cpu_are_smaller_than_the_model(dtype):
    """Its backend has no slices of 16-bit floats, and would hold all experts in float32."""
    if jax.default_backend() != "cpu":
        pytest.skip("of the CPU backend")
    config = llama.LlamaConfig(512, 64, 256, 24, 8, 4, 8, dtype=dtype)
    base = llama.abstract_params(config)  # the program depends on shapes alone
    leaves, K, r = dict(tree_paths(base)), 3, 2

    def basis(leaf):
        *stack, m, n = leaf.shape
        shapes = ((*stack, m, K, r), (K, *stack, r), (*stack, K, r, n))
        return Basis(*(jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, (dtype, "float32", dtype), strict=True)))

    bases = {path: basis(leaf) for path, leaf in leaves.items() if is_matrix(path, leaf)}
    space = ExpertSpace(base, {path: (leaf,) * K for path, leaf in leaves.items()}, {}, bases, {}, num_experts=K)
    real = make_space(dtype, 2)  # this is what a space is made of
    assert {path: x.u.dtype for path, x in real.bases.items()} == dict.fromkeys(real.bases, jnp.dtype(dtype))
    assert {path: x.s.dtype for path, x in real.bases.items()} == dict.fromkeys(real.bases, jnp.float32)
    matrices = {path for path, leaf in tree_paths(real.base) if is_matrix(path, leaf)}
    assert set(real.bases) == set(real.experts) == matrices  # the norms are equal in all experts here
    genome = jax.eval_shape(lambda space: space.expert(0), space)
    memory = _express_into.lower(space, genome, space.base).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.25 * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())


def test_experts_are_held_and_not_copied():
    experts = [params(k) for k in (1, 2)]
    space = ExpertSpace.from_experts(params(0), experts, rank=2)
    assert any("norm" in path for path, _ in tree_paths(experts[0]) if path not in space.experts)  # equal in all: not held
    for k, expert in enumerate(experts):
        for path, leaf in tree_paths(expert):
            if path in space.experts:
                assert space.experts[path][k] is leaf
            else:
                np.testing.assert_array_equal(leaf, dict(tree_paths(space.base))[path])


@pytest.mark.parametrize(("rank", "ratio"), [(None, 1000), (256, 8000)])
def test_size_of_a_child_of_llama_3_8b(rank, ratio):
    config = llama.LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, dtype="bfloat16")
    shapes = dict(tree_paths(llama.abstract_params(config)))
    matrices = {path: leaf.shape for path, leaf in shapes.items() if "norm" not in path}
    ranks = {path: min(*shape[-2:], rank or 10**9) for path, shape in matrices.items()}
    genome = sum(3 * math.prod(shape[:-2]) * ranks[path] for path, shape in matrices.items()) * 4 + 3 * 4
    dense = sum(leaf.size * 2 for leaf in shapes.values())
    assert dense == 16_060_522_496
    assert dense > ratio * genome
    assert 675 * genome < 8e9


@pytest.mark.exhaustive
def test_the_size_of_a_genome_is_that_of_its_arrays():
    """The figures above are what a space really makes: checked where it fits."""
    space = make_space(rank=None)
    genome = space.expert(0)
    matrices = {path: leaf.shape for path, leaf in tree_paths(space.base) if "norm" not in path}
    want = sum(3 * math.prod(shape[:-2]) * min(shape[-2:]) for path, shape in matrices.items()) * 4 + 3 * 4
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(genome)) == want


@pytest.mark.exhaustive
def test_adapters_on_a_mesh(assert_close):
    base = params(0)
    rng = np.random.default_rng(0)

    def adapter(rank):
        a, b = rng.normal(size=(3, 32, rank)), rng.normal(size=(3, rank, 48)) / 10
        return Adapter({"layers/mlp/up": LowRank(a.astype(np.float32), b.astype(np.float32)), "norm": np.ones(32, np.float32)})

    space = ExpertSpace.from_experts(base, [adapter(2), adapter(4)], rank=3)
    sharded = on_mesh(space, fsdp=4, tensor=2)
    genome = space.mutate(jax.random.key(0), space.expert(1), 1)
    assert_close(sharded.express(genome), space.express(genome), 1e-6)
    assert not COLLECTIVES.findall(_express.lower(sharded, genome).compile().as_text())


@pytest.mark.exhaustive
def test_dense_space_is_of_the_models_size():
    space = DenseSpace.from_experts(params(0), [params(1), params(2)], mutation="none")
    genome = space.expert(0)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(genome)) == 4 * llama.num_params(CONFIG)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("m", "n"), [*(pytest.param(*shape, marks=pytest.mark.exhaustive) for shape in ((64, 32), (67, 16))), (16, 67), (31, 31)]
)
def test_blocks_cover_every_matrix(m, n, monkeypatch, assert_close):
    """Prime sizes too: the last block is moved back over its neighbour."""
    rng = np.random.default_rng(0)
    base, *experts = ({"w": jnp.asarray(rng.normal(size=(m, n)), jnp.float32)} for _ in range(3))
    space = ExpertSpace.from_experts(base, experts, rank=3)
    genome = space.mutate(jax.random.key(0), space.expert(1), 0)
    want = jax.tree.map(np.asarray, space.express(genome))
    monkeypatch.setattr(express, "_BLOCK", 300)
    rows, columns = express.block_shape(m, n, 6)
    assert rows * columns <= 300
    assert (rows, columns) != (1, n)
    _express.clear_cache()
    got = space.express(genome)
    _express.clear_cache()
    assert_close(got, want, 1e-6)


@pytest.mark.parametrize("sizes", [{}, pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.exhaustive)], ids=str)
def test_weights_that_are_still_needed_are_not_overwritten(sizes):
    space = make_space()
    space = on_mesh(space, **sizes) if sizes else space
    genome = mutant(space)
    out = space.express(genome)
    for held in (space.base, jax.tree.map(lambda x: x, space.base)):
        with pytest.raises(InputError, match="still needed"):
            space.express(genome, held)
    held = [space.experts[path][0] if path in space.experts else out_leaf for path, out_leaf in tree_paths(out)]
    expert = jax.tree.unflatten(jax.tree.structure(space.base), held)
    with pytest.raises(InputError, match="still needed"):
        space.express(genome, expert)
    with pytest.raises(InputError, match="still needed"):
        space.express(genome, {**out, "norm": space.base["norm"]})
    layers = {**out["layers"], "post_norm": out["layers"]["input_norm"]}
    with pytest.raises(InputError, match="still needed"):  # one buffer for two leaves
        space.express(genome, {**out, "layers": layers})
    with pytest.raises(InputError, match=r"live jax\.Array of dtype float32"):
        space.express(genome, {**out, "norm": out["norm"].astype(jnp.bfloat16)})
    with pytest.raises(InputError, match=r"live jax\.Array"):
        space.express(genome, {**out, "norm": np.asarray(out["norm"])})
    if sizes:
        with pytest.raises(InputError, match="got it elsewhere"):
            space.express(genome, make_space().express(mutant(make_space())))
    again = space.express(genome, out)
    assert out["norm"].is_deleted()
    assert not again["norm"].is_deleted()


def test_meshes_that_do_not_fit():
    space = make_space()
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 (simulated) devices")
    P = jax.sharding.PartitionSpec
    mesh = sharding.make_mesh(population=4, tensor=2)
    specs = jax.tree.map(lambda leaf: P(), space.base)
    with pytest.raises(InputError, match="partition spec of 'norm', got 'nope'"):
        space.shard(mesh, {**specs, "norm": P("nope")})
    with pytest.raises(InputError, match="at most 1 dimensions for 'norm', got 2"):
        space.shard(mesh, {**specs, "norm": P(None, "tensor")})
    layers = {**specs["layers"], "input_norm": P("tensor")}
    with pytest.raises(InputError, match=r"'tensor' of the mesh.*divide.*'layers/input_norm'.*dimension of 3"):
        space.shard(mesh, {**specs, "layers": layers})
    three = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), mutant(space))
    with pytest.raises(InputError, match="divides 3 individuals"):
        space.shard(mesh, specs).express_population(three)
    other = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("x",))
    with pytest.raises(InputError, match="axis 'population'"):
        space.shard(other, specs).express_population(three)


@pytest.mark.exhaustive
def test_bases_are_those_of_the_experts():
    base, experts = params(0), [params(1), params(2)]
    space = ExpertSpace.from_experts(base, experts, rank=4)
    same = ExpertSpace.from_experts(base, experts, rank=4, bases=space.bases)
    assert all(same.bases[path] is space.bases[path] for path in space.bases)
    up = "layers/mlp/up"
    wrong = {
        "basis of expert 0 for .*, got another": ExpertSpace.from_experts(base, [params(3), params(2)], rank=4).bases,
        "basis of expert 1 for .*, got another": ExpertSpace.from_experts(base, [params(1), params(3)], rank=4).bases,
        "expected float32 factors of shapes .* at rank 4": ExpertSpace.from_experts(base, experts, rank=3).bases,
        "the finite basis of expert 1": {
            **space.bases,
            up: space.bases[up]._replace(u=space.bases[up].u.at[0, 3, 1, 2].set(jnp.nan)),
        },
        "float32, float16 and": {
            **space.bases,
            up: space.bases[up]._replace(s=space.bases[up].s.astype(jnp.float16)),
        },
        "a difference at 'layers/mlp/up'": {path: basis for path, basis in space.bases.items() if path != up},
    }
    for named, bases in wrong.items():
        with pytest.raises(InputError, match=named):
            ExpertSpace.from_experts(base, experts, rank=4, bases=bases)
    nothing = ExpertSpace.from_experts(base, [base, params(1)], rank=2)  # an expert that is the base has a basis of zeros
    ExpertSpace.from_experts(base, [base, params(1)], rank=2, bases=nothing.bases)


@pytest.mark.parametrize("k", [np.int64(5), np.int64(-1), jnp.int32(3), 3, -1])
def test_experts_that_are_not_there(k):
    space = make_space()
    for call in (lambda: space.expert(k), lambda: space.mutate(jax.random.key(0), space.expert(0), k)):
        with pytest.raises(InputError, match="experts 0 to 2"):
            call()


@pytest.mark.parametrize("options", [{"w_max": math.inf}, {"rank": 2.5}, {"rank": 0}])
def test_options_that_make_no_sense(options, unchecked):
    with pytest.raises(InputError):
        unchecked(ExpertSpace.from_experts)(params(0), [params(1), params(2)], **{"rank": 2, **options})


def test_a_stack_of_no_matrices():
    base, *experts = ({"w": jnp.zeros((0, 4, 4)), "v": jnp.ones((4, 4)) * k} for k in range(3))
    space = ExpertSpace.from_experts(base, experts)
    assert space.express(space.expert(1))["w"].shape == (0, 4, 4)


@pytest.mark.parametrize("method", ["svd", "randomized"])
def test_dense_mutation_of_the_leading_directions(method):
    base, *experts = ({"w": jnp.asarray(np.random.default_rng(k).normal(size=(12, 9)), jnp.float32)} for k in range(3))
    space = DenseSpace.from_experts(base, experts, rank=2, method=method)
    tau = space.expert(0)
    u, s, vt = np.linalg.svd(np.asarray(tau["w"], np.float64))
    change = np.asarray(space.mutate(jax.random.key(0), tau, 0)["w"], np.float64) - np.asarray(tau["w"], np.float64)
    inside = u.T @ change @ vt.T
    w = np.diag(inside)[:2] / s[:2]
    assert np.all((w >= -1e-3) & (w <= 0.3 + 1e-3))
    assert np.linalg.norm(inside[2:]) < 0.15 * np.linalg.norm(inside)
    with pytest.raises(InputError, match="rank"):
        DenseSpace.from_experts(base, experts, rank=0)
