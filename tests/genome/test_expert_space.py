"""ExpertSpace against dense float64 algebra: whole lineages, and what they end in."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.operators import crossover_weights, mutation_coefficients
from cycleqd_jax.types import GenomeSpace, tree_paths

seeds = st.integers(0, 2**31 - 1)
MATRICES = ("embed", "layers/q", "layers/experts")


@functools.cache
def model(seed, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {
        "embed": (7, 4),
        "layers": {"q": (3, 4, 5), "attn_norm": (3, 4), "experts": (2, 2, 4, 3)},
        "norm": (4,),
        "bias": (4,),
    }
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s) * scale, dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


@functools.cache
def make_space(seed=0, experts=3, dtype=jnp.float32, **options):
    return ExpertSpace.from_experts(model(seed, dtype), [model(seed + 1 + k, dtype) for k in range(experts)], **options)


crossover = jax.jit(lambda space, *args: space.crossover(*args))
mutate = jax.jit(lambda space, *args: space.mutate(*args))


def f64(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree_paths(tree)}


class Dense:
    """The paper's algebra on float64 task vectors, from the same float32 task vectors and factors."""

    def __init__(self, space):
        self.base = f64(space.base)
        self.taus = [f64(space.task_vector(k)) for k in range(space.num_experts)]
        self.factors = {
            path: [tuple(np.asarray(x, np.float64) for x in basis.of(k)) for k in range(space.num_experts)]
            for path, basis in space.bases.items()
        }
        self.w_max = space.w_max

    def crossover(self, p1, p2, omega):
        w1, w2 = np.asarray(omega, np.float64)
        return {p: (w1 * p1[p] + w2 * p2[p]) / (w1 + w2) for p in p1}

    def mutate(self, key, tau, active):
        child = dict(tau)
        for path, factors in self.factors.items():
            u, s, vt = factors[active]
            w = np.asarray(mutation_coefficients(key, path, s.shape[:-1], s.shape[-1], self.w_max), np.float64)
            child[path] = child[path] + u @ ((s * w)[..., None] * vt)
        return child

    def express(self, tau):
        return {path: self.base[path] + tau[path] for path in tau}


def test_is_a_genome_space():
    space = make_space()
    assert isinstance(space, GenomeSpace)
    assert space.num_experts == 3
    assert set(space.bases) == set(MATRICES)
    genome = space.expert(1)
    assert genome.mixing.shape == (3,)
    assert {p: d.shape for p, d in genome.mutation.items()} == {
        "embed": (3, 4),
        "layers/q": (3, 3, 4),
        "layers/experts": (3, 2, 2, 3),
    }


def test_experts_express_to_themselves(assert_close):
    space = make_space()
    for k in range(3):
        assert_close(space.express(space.expert(k)), model(1 + k))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)])
def test_half_precision_experts_express_to_themselves_exactly(dtype, assert_identical):
    space = make_space(dtype=dtype)
    for k in range(3):
        assert_identical(space.express(space.expert(k)), model(1 + k, dtype))


@pytest.mark.exhaustive
@settings(max_examples=8)
@given(seeds, st.sampled_from([(3, None), (2, 2)]), st.integers(10, 14))
def test_lineages_against_dense_algebra(assert_close, seed, kind, depth):
    """A random genealogy: every individual equals its dense rendering, however deep it lies."""
    experts, rank = kind
    space = make_space(0, experts, rank=rank)
    dense = Dense(space)
    genomes, taus = [space.expert(k) for k in range(experts)], list(dense.taus)
    rng = np.random.default_rng(seed)
    for t in range(depth):
        # the youngest is always a parent: the last individual has `depth` generations behind it
        i, j = len(genomes) - 1, int(rng.integers(len(genomes) - 1))
        cross_key, mutate_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), t))
        omega = crossover_weights(cross_key)
        genomes.append(mutate(space, mutate_key, crossover(space, genomes[i], genomes[j], omega), t % experts))
        taus.append(dense.mutate(mutate_key, dense.crossover(taus[i], taus[j], omega), t % experts))
    for genome, tau in zip(genomes[experts:], taus[experts:], strict=True):
        assert_close(f64(space.express(genome)), dense.express(tau))


def test_norms_and_biases_are_mixed_but_never_mutated(assert_identical, assert_close):
    space = make_space()
    child = crossover(space, space.expert(0), space.expert(2), jnp.asarray([1.0, 0.9]))
    mutant = mutate(space, jax.random.key(0), child, 1)
    before, after = f64(space.express(child)), f64(space.express(mutant))
    for path in before:
        if path in MATRICES:
            assert np.all(before[path] != after[path])
        else:
            assert_identical(before[path], after[path])
    mixed = (np.float64(model(1)["norm"]) + np.float64(0.9) * model(3)["norm"]) / 1.9
    assert_close(before["norm"], mixed, scale=2.0)


def test_mutation_follows_the_active_expert_only(assert_identical):
    space = make_space()
    genome = space.expert(0)
    mutant = mutate(space, jax.random.key(0), genome, 2)
    assert_identical(mutant.mixing, genome.mixing)
    for path in MATRICES:
        assert np.all(mutant.mutation[path][:2] == 0)
        assert np.all(mutant.mutation[path][2] >= 0)
        assert np.any(mutant.mutation[path][2] > 0)
        assert np.all(mutant.mutation[path] < 0.3)


def test_zero_mutation_is_identity(assert_identical):
    space = make_space(w_max=0.0)
    assert_identical(mutate(space, jax.random.key(0), space.expert(1), 0), space.expert(1))


@settings(max_examples=15)
@given(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_equal_parents_have_exactly_that_child(assert_identical, w1, w2):
    space = make_space()
    parent = mutate(space, jax.random.key(0), space.expert(1), 0)
    assert_identical(crossover(space, parent, parent, jnp.asarray([w1, w2], jnp.float32)), parent)


def test_weights_that_cancel_give_the_mean(assert_close):
    space = make_space()
    child = crossover(space, space.expert(0), space.expert(1), jnp.asarray([1.0, -1.0]))
    np.testing.assert_array_equal(child.mixing, [0.5, 0.5, 0.0])


@pytest.mark.exhaustive
def test_jit_is_eager_and_vmapped_is_the_loop(assert_close, assert_identical):
    space = make_space(experts=2)
    keys = jax.random.split(jax.random.key(0), 3)
    population = jax.tree.map(lambda *x: jnp.stack(x), *(space.expert(k % 2) for k in range(3)))
    mutants = jax.jit(jax.vmap(space.mutate, in_axes=(0, 0, None)))(keys, population, 1)
    models = jax.jit(jax.vmap(space.express))(mutants)
    for j in range(3):
        one = space.mutate(keys[j], space.expert(j % 2), 1)
        assert_identical(jax.tree.map(lambda x, j=j: x[j], mutants), one)
        assert_close(jax.tree.map(lambda x, j=j: x[j], models), space.express(one))
    with jax.disable_jit():
        assert_close(space.express(one), jax.tree.map(lambda x: x[2], models))


def test_stacked_layers_express_as_single_layers(assert_close):
    """A model of one layer taken out of the stack, with its row of coefficients, has that layer's weights."""
    space = make_space()
    child = mutate(space, jax.random.key(0), crossover(space, space.expert(0), space.expert(1), jnp.ones(2)), 0)
    whole = space.express(child)["layers"]["q"]
    for layer in range(3):
        single = ExpertSpace.from_experts(
            {"q": model(0)["layers"]["q"][layer]}, [{"q": model(1 + k)["layers"]["q"][layer]} for k in range(3)]
        )
        genome = child._replace(mutation={"q": child.mutation["layers/q"][:, layer]})
        assert_close(single.express(genome)["q"], whole[layer], 2e-6)


@pytest.mark.exhaustive
def test_truncated_rank_leaves_crossover_exact(assert_close):
    full, truncated = make_space(), make_space(rank=1)
    omega = jnp.asarray([1.1, 0.9])
    child = [crossover(space, space.expert(0), space.expert(1), omega) for space in (full, truncated)]
    assert_close(full.express(child[0]), truncated.express(child[1]))
    # and mutation moves each matrix within one direction
    mutant = f64(truncated.express(mutate(truncated, jax.random.key(0), child[1], 0)))
    before = f64(truncated.express(child[1]))
    for path in MATRICES:
        s = np.linalg.svd(mutant[path] - before[path], compute_uv=False)
        assert np.all(s[..., 1:] < 1e-5)


def test_rank_beyond_the_matrices_is_full_rank(assert_identical):
    assert_identical(make_space(rank=1000).bases, make_space().bases)


def test_zero_task_vectors(assert_identical):
    base = model(0, jnp.bfloat16)
    space = ExpertSpace.from_experts(base, [base, base])
    child = mutate(space, jax.random.key(0), crossover(space, space.expert(0), space.expert(1), jnp.ones(2)), 1)
    assert_identical(space.express(child), base)


def test_passes_through_jit_without_recompilation(compilations):
    one, other = make_space(0), make_space(10)
    key = jax.random.key(0)
    genome = mutate(one, key, crossover(one, one.expert(0), one.expert(1), jnp.ones(2)), 0)
    one.express(genome)
    genomes = other.expert(1), other.expert(2)
    omega = jnp.asarray([0.9, 1.0])

    def generation():
        return other.express(mutate(other, key, crossover(other, *genomes, omega), 2))

    assert compilations(generation) == 0


def test_predicate_chooses_the_matrices_of_the_model_not_of_the_stack():
    seen = {}

    def predicate(path, leaf):
        seen[path] = leaf.shape
        return path == "embed"

    space = make_space(predicate=predicate)
    assert set(space.bases) == {"embed"}
    assert seen == {path: leaf.shape for path, leaf in tree_paths(model(0))}


@pytest.mark.exhaustive
def test_bases_do_not_depend_on_the_number_of_cores():
    """LAPACK's last bits depend on its number of threads, which the space sets to one by itself."""
    code = """
import os, sys
cores = sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]
os.sched_setaffinity(0, cores)
import hashlib, jax, numpy as np
from cycleqd_jax import ExpertSpace
from cycleqd_jax.types import Adapter, LowRank
keys = jax.random.split(jax.random.key(0), 7)
base = {"w": jax.random.normal(keys[0], (3, 768, 192))}
whole = [{"w": jax.random.normal(key, (3, 768, 192))} for key in keys[1:3]]
a = [jax.random.normal(key, (3, 768, 64)) for key in keys[3:5]]
b = [jax.random.normal(key, (3, 64, 192)) for key in keys[5:]]
adapters = [Adapter({"w": LowRank(*pair)}) for pair in zip(a, b)]
leaves = []
for experts in (whole, adapters):
    space = ExpertSpace.from_experts(base, experts, rank=32)
    leaves += jax.tree.leaves((space.bases, space.remainders))
print(len(leaves), hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest())
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    shown = [
        subprocess.run([sys.executable, "-c", code, cores], env=environment, capture_output=True, text=True, check=True).stdout
        for cores in ("1", "2")
    ]
    assert shown[0] == shown[1]
    assert shown[0].split()[0] == "9"  # bases of both, and what the adapters have beyond the rank
