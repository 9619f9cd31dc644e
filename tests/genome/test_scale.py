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
from cycleqd_jax.genome.expert_space import _express, _express_into, _express_population
from cycleqd_jax.models import llama
from cycleqd_jax.operators import crossover_weights, mutation_coefficients
from cycleqd_jax.types import Adapter, InputError, LowRank, tree_paths

CONFIG = llama.LlamaConfig(64, 32, 48, 3, 4, 4, 8, initializer_range=0.2, qk_norm=True, model_type="qwen3")
COLLECTIVES = re.compile(r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)")


def params(seed, dtype="float32"):
    return llama.init_params(CONFIG.replace(dtype=dtype), jax.random.key(seed))


def make_space(dtype="float32", rank=5, **options):
    return ExpertSpace.from_experts(params(0, dtype), [params(k, dtype) for k in (1, 2, 3)], rank=rank, **options)


def mutant(space, seed=0):
    key, other = jax.random.split(jax.random.key(seed))
    child = space.crossover(space.expert(0), space.expert(2), crossover_weights(key))
    return space.mutate(other, child, 1)


def on_mesh(space, **sizes):
    if len(jax.devices()) < math.prod(sizes.values()):
        pytest.skip("needs 8 (simulated) devices")
    mesh = sharding.make_mesh(**sizes)
    return space.shard(mesh, sharding.shardings(mesh, space.base, llama.logical_axes(CONFIG)))


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"population": 2, "fsdp": 2, "tensor": 2}, {"tensor": 4}], ids=str)
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


def test_a_population_over_the_mesh(assert_close):
    space = make_space()
    sharded = on_mesh(space, population=4, tensor=2)
    genomes = [mutant(space, seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *genomes)
    axis = jax.sharding.NamedSharding(sharded.mesh, jax.sharding.PartitionSpec("population"))
    spread = jax.device_put(stacked, axis)
    got = sharded.express_population(spread)
    for i, genome in enumerate(genomes):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], got), space.express(genome), 1e-6)
    up = got["layers"]["mlp"]["up"]
    assert up.sharding.spec[0] == "population"
    assert {shard.data.shape[0] for shard in up.addressable_shards} == {1}
    assert not COLLECTIVES.findall(_express_population.lower(sharded, spread).compile().as_text())
    unsharded = space.express_population(stacked)
    assert_close(unsharded, jax.tree.map(np.asarray, got), 1e-6)


def test_a_mesh_that_does_not_divide_is_refused():
    space = make_space()
    if len(jax.devices()) < 5:
        pytest.skip("needs 8 (simulated) devices")
    mesh = sharding.make_mesh(tensor=5)
    with pytest.raises(InputError, match="divide by the 5 devices"):
        sharding.shardings(mesh, space.base, llama.logical_axes(CONFIG))
    with pytest.raises(InputError, match="every leaf of the base"):
        space.shard(mesh, {"norm": jax.sharding.PartitionSpec()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_old_weights_are_written_over(dtype, assert_identical):
    space = make_space(dtype)
    first, second = mutant(space, 1), mutant(space, 2)
    want = space.express(second)
    old = space.express(first)
    got = space.express(second, old)
    assert_identical(got, want)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    memory = _express_into.lower(space, second, got).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(got))
    with pytest.raises(InputError, match="weights to write over lack the leaf"):
        space.express(second, {"norm": got["norm"]})


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
    assert express.block_shape(7, 1000, 6) == (7, 40)
    assert express.block_shape(64, 32, 96) == (2, 32)  # the factor of two rows has 192


def test_experts_are_held_and_not_copied():
    experts = [params(k) for k in (1, 2)]
    space = ExpertSpace.from_experts(params(0), experts, rank=2)
    for k, expert in enumerate(experts):
        for path, leaf in tree_paths(expert):
            assert space.experts[path][k] is leaf


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


def test_the_size_of_a_genome_is_that_of_its_arrays():
    """The figures above are what a space really makes: checked where it fits."""
    space = make_space(rank=None)
    genome = space.expert(0)
    matrices = {path: leaf.shape for path, leaf in tree_paths(space.base) if "norm" not in path}
    want = sum(3 * math.prod(shape[:-2]) * min(shape[-2:]) for path, shape in matrices.items()) * 4 + 3 * 4
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(genome)) == want


def test_200_lineages_of_20_generations_against_float64():
    """Whole lineages on dense float64 weights, with the reference's order: crossover, then U diag(w s) Vᵀ of the active "
    "expert."""
    space = make_space(rank=None)
    experts = space.num_experts
    base = {path: np.asarray(leaf, np.float64) for path, leaf in tree_paths(space.base)}
    taus = [{path: np.asarray(leaf, np.float64) - base[path] for path, leaf in tree_paths(params(k))} for k in (1, 2, 3)]
    factors = [
        {path: tuple(np.asarray(x, np.float64) for x in basis.of(k)) for path, basis in space.bases.items()} for k in range(3)
    ]
    assert set(base) - set(space.bases) == {path for path in base if "norm" in path}

    @jax.jit
    def child(key, one, other, active):
        cross, mutate = jax.random.split(key)
        omega = crossover_weights(cross)
        genome = space.mutate(mutate, space.crossover(one, other, omega), active)
        w = {p: mutation_coefficients(mutate, p, b.s.shape[1:-1], b.s.shape[-1], space.w_max) for p, b in space.bases.items()}
        return genome, omega, w

    for lineage in range(200):
        rng = np.random.default_rng(lineage)
        genomes, dense = [space.expert(k) for k in range(experts)], list(taus)
        for t in range(20):
            i, j, active = len(genomes) - 1, int(rng.integers(len(genomes) - 1)), t % experts
            genome, omega, w = child(jax.random.fold_in(jax.random.key(lineage), t), genomes[i], genomes[j], active)
            w1, w2 = np.asarray(omega, np.float64)
            tau = {path: (w1 * dense[i][path] + w2 * dense[j][path]) / (w1 + w2) for path in base}
            for path, (u, s, vt) in factors[active].items():
                tau[path] = tau[path] + (u * (np.asarray(w[path], np.float64) * s)[..., None, :]) @ vt
            genomes.append(genome)
            dense.append(tau)
        got = dict(tree_paths(space.express(genomes[-1])))
        for path, tau in dense[-1].items():
            want = base[path] + tau
            assert np.linalg.norm(np.asarray(got[path], np.float64) - want) <= 1e-5 * np.linalg.norm(want), (lineage, path)


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


def test_dense_space_is_of_the_models_size():
    space = DenseSpace.from_experts(params(0), [params(1), params(2)], mutation="none")
    genome = space.expert(0)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(genome)) == 4 * llama.num_params(CONFIG)
