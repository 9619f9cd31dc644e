"""Adapters as experts: the space of their factors is that of the same adapters multiplied out, and holds nothing dense."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.operators import apply_adapter, crossover_weights
from cycleqd_jax.types import Adapter, GenomeSpace, InputError, LowRank, tree_paths

SHAPES = {
    "embed": (12, 8),
    "layers": {"q": (3, 8, 10), "k": (3, 8, 6), "experts": (2, 2, 8, 6), "attn_norm": (3, 8)},
    "head": (8, 12),
    "norm": (8,),
}
# rank of every expert by leaf: they differ in targets and ranks, and "head" and the norms are touched by none
RANKS = [
    {"layers/q": 2, "layers/k": 1, "embed": 3},
    {"layers/q": 4, "layers/experts": 2},
    {"layers/q": 3, "layers/k": 2},
]


@functools.cache
def base_model(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def make_adapter(seed, ranks, whole=()):
    rng = np.random.default_rng(seed)
    shapes = {path: leaf.shape for path, leaf in tree_paths(base_model())}

    def low_rank(path, r):
        *stack, m, n = shapes[path]
        return LowRank(*(rng.normal(size=(*stack, *shape)).astype(np.float32) for shape in ((m, r), (r, n))))

    updates = {path: low_rank(path, r) for path, r in ranks.items()}
    return Adapter(updates | {path: rng.normal(size=shapes[path]).astype(np.float32) for path in whole})


@functools.cache
def adapters():
    return [make_adapter(seed + 1, ranks) for seed, ranks in enumerate(RANKS)]


@functools.cache
def make_space(dtype=jnp.float32, **options):
    return ExpertSpace.from_experts(base_model(dtype), adapters(), **options)


@functools.cache
def dense_space(**options):
    """The same experts as whole models."""
    base = base_model()
    return ExpertSpace.from_experts(base, [apply_adapter(base, adapter) for adapter in adapters()], **options)


crossover = jax.jit(lambda space, *args: space.crossover(*args))
mutate = jax.jit(lambda space, *args: space.mutate(*args))


def lineage(space, seed, depth=8):
    """The last of a random line of crossovers and mutations: the same one for every space with the same experts."""
    rng = np.random.default_rng(seed)
    genomes = [space.expert(k) for k in range(space.num_experts)]
    for t in range(depth):
        other = genomes[int(rng.integers(len(genomes)))]
        cross_key, mutate_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), t))
        child = crossover(space, genomes[-1], other, crossover_weights(cross_key))
        genomes.append(mutate(space, mutate_key, child, int(rng.integers(space.num_experts))))
    return genomes[-1]


@pytest.mark.exhaustive
def test_is_a_genome_space():
    space = make_space()
    assert isinstance(space, GenomeSpace)
    assert space.num_experts == 3
    assert {path: d.shape for path, d in space.expert(0).mutation.items()} == {
        "embed": (3, 3),
        "layers/q": (3, 3, 4),
        "layers/k": (3, 3, 2),
        "layers/experts": (3, 2, 2, 2),
    }


def test_experts_express_to_their_merged_models(assert_close, assert_identical):
    space = make_space()
    for k, adapter in enumerate(adapters()):
        merged, got = apply_adapter(space.base, adapter), space.express(space.expert(k))
        assert_close(got, merged, 2e-6)
        for path in ("head", "norm"):
            assert_identical(got[path], space.base[path])


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(20))
def test_lineages_are_those_of_the_adapters_multiplied_out(assert_close, seed):
    """20 lineages of 8 generations: the mutations of one key agree, since leading coefficients do not depend on the rank."""
    sparse, dense = make_space(), dense_space()
    one, other = (space.express(lineage(space, seed)) for space in (sparse, dense))
    assert_close(one, other, 1e-5)
    moved = space_mixing(dense, lineage(dense, seed))
    assert all(np.linalg.norm(one["layers"][p] - moved["layers"][p]) > 0.1 for p in ("q", "k"))  # mutation does something


def space_mixing(space, genome):
    return space.express(genome._replace(mutation=jax.tree.map(jnp.zeros_like, genome.mutation)))


def test_nothing_dense_is_held():
    space = make_space()
    assert space.experts == space.updates == {}
    assert space.remainders == {}
    leaves, genome = dict(tree_paths(space.base)), space.expert(0)
    for path, basis in space.bases.items():
        ranks = [ranks.get(path, 0) for ranks in RANKS]
        *stack, m, n = leaves[path].shape
        rank = max(ranks)
        assert [part.shape for part in basis] == [(*stack, m, 3, rank), (3, *stack, rank), (*stack, 3, rank, n)]
        assert genome.mutation[path].shape == basis.s.shape
    assert "head" not in space.bases


def test_expressing_makes_no_stack_of_task_vectors():
    """At the shapes of an 8B model, expressing three adapters of rank 16 makes nothing larger than the weight itself."""
    layers, m, n, r = 32, 4096, 14336, 16
    base = {"layers": {"gate": jnp.zeros((1, 4, 4), jnp.bfloat16)}}
    space = ExpertSpace.from_experts(base, [Adapter({"layers/gate": LowRank(np.ones((1, 4, 2)), np.ones((1, 2, 4)))})] * 3)

    def real(leaf, shape):
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    basis = space.bases["layers/gate"]
    shaped = space.replace(
        base={"layers": {"gate": real(base["layers"]["gate"], (layers, m, n))}},
        bases={
            "layers/gate": type(basis)(
                real(basis.u, (layers, m, 3, r)), real(basis.s, (3, layers, r)), real(basis.vt, (layers, 3, r, n))
            )
        },
    )
    genome = jax.eval_shape(lambda space: space.expert(0), shaped)
    program = jax.make_jaxpr(lambda space, genome: space.express(genome))(shaped, genome)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    assert max(sizes(program.jaxpr)) == layers * m * n


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "rank", [pytest.param(1, marks=pytest.mark.exhaustive), 2, pytest.param(3, marks=pytest.mark.exhaustive)]
)
def test_truncation_leaves_crossover_exact(assert_close, rank):
    full, truncated = make_space(), make_space(rank=rank)
    assert set(truncated.remainders) == {path for path, f in full.bases.items() if f.s.shape[-1] > rank}
    omega = jnp.asarray([1.1, 0.9])
    child, want = (crossover(space, space.expert(0), space.expert(1), omega) for space in (truncated, full))
    assert_close(truncated.express(child), full.express(want), 2e-6)
    assert all(d.shape[-1] <= rank for d in child.mutation.values())
    for active in range(3):
        mutant = mutate(truncated, jax.random.key(0), child, active)
        after, before = dict(tree_paths(truncated.express(mutant))), dict(tree_paths(truncated.express(child)))
        for path in truncated.bases:
            difference = np.asarray(after[path], np.float64) - np.asarray(before[path], np.float64)
            s = np.linalg.svd(difference, compute_uv=False)
            assert np.all(s[..., rank:] < 1e-5)
            assert np.all(s[..., 0] > 1e-2) == (path in RANKS[active])


@pytest.mark.exhaustive
def test_a_truncated_lineage_is_that_of_truncated_dense_factors(assert_close):
    one, other = make_space(rank=2), dense_space(rank=2)
    assert_close(one.express(lineage(one, 0)), other.express(lineage(other, 0)), 1e-5)


def test_padded_directions_have_no_effect(assert_identical):
    space = make_space()
    genome = space.expert(0)
    d = genome.mutation["layers/q"]  # expert 0 has rank 2 of 4
    moved = genome._replace(mutation={**genome.mutation, "layers/q": d.at[0, :, 2:].set(5.0)})
    assert_identical(space.express(moved), space.express(genome))


def test_a_predicate_keeps_mutation_off_but_not_crossover(assert_close, assert_identical):
    space, full = make_space(predicate=lambda path, leaf: path == "layers/k"), make_space()
    assert set(space.bases) == {"layers/k"}
    assert set(space.remainders) == set(full.bases) - {"layers/k"}
    omega = jnp.asarray([1.0, 0.8])
    child, want = (crossover(s, s.expert(0), s.expert(1), omega) for s in (space, full))
    assert_close(space.express(child), full.express(want), 2e-6)
    mutant = mutate(space, jax.random.key(0), child, 0)
    assert_identical(space.express(mutant)["layers"]["q"], space.express(child)["layers"]["q"])
    nothing = make_space(predicate=lambda path, leaf: False)
    assert nothing.num_experts == 3
    assert_close(nothing.express(nothing.expert(1)), full.express(full.expert(1)), 2e-6)


@pytest.mark.exhaustive
def test_half_precision_bases(assert_close):
    space = make_space(jnp.bfloat16)
    got = space.express(lineage(space, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    same = make_space().replace(base=jax.tree.map(lambda x: x.astype(jnp.float32), base_model(jnp.bfloat16)))
    assert_close(got, jax.tree.map(lambda x: x.astype(jnp.bfloat16), same.express(lineage(same, 0))), 1e-3)


@pytest.mark.exhaustive
def test_jit_is_eager_and_vmapped_is_the_loop(assert_close, assert_identical):
    space = make_space(rank=2)
    keys = jax.random.split(jax.random.key(0), 3)
    population = jax.tree.map(lambda *x: jnp.stack(x), *(space.expert(k) for k in range(3)))
    mutants = jax.jit(jax.vmap(space.mutate, in_axes=(0, 0, None)))(keys, population, 1)
    models = jax.jit(jax.vmap(space.express))(mutants)
    for j in range(3):
        one = space.mutate(keys[j], space.expert(j), 1)
        assert_identical(jax.tree.map(lambda x, j=j: x[j], mutants), one)
        assert_close(jax.tree.map(lambda x, j=j: x[j], models), space.express(one), 2e-6)
    with jax.disable_jit():
        assert_close(space.express(one), jax.tree.map(lambda x: x[2], models), 2e-6)


def test_passes_through_jit_without_recompilation(compilations):
    one = make_space()
    other = one.replace(base=jax.tree.map(lambda x: x + 1, one.base))
    genome = lineage(one, 0, 1)
    one.express(genome)
    assert compilations(lambda: other.express(lineage(other, 0, 1))) == 0


# --------------------------------------------------------------------------------------------------------------------
# Dense and low-rank


@pytest.mark.exhaustive
def test_whole_updates_are_dense_leaves_beside_low_rank_ones(assert_close):
    base = base_model()
    experts = [make_adapter(1, RANKS[0], ["norm", "head"]), make_adapter(2, RANKS[1]), make_adapter(3, {}, ["head"])]
    space = ExpertSpace.from_experts(base, experts)
    assert {path: [tau is not None for tau in taus] for path, taus in space.updates.items()} == {
        "head": [True, True, True] if RANKS[1].get("head") else [True, False, True],
        "norm": [True, False, False],
    }
    assert not space.experts
    assert set(space.bases) == {"embed", "head", "layers/q", "layers/k", "layers/experts"}
    dense = ExpertSpace.from_experts(base, [apply_adapter(base, adapter) for adapter in experts])
    for seed in range(5):
        assert_close(space.express(lineage(space, seed)), dense.express(lineage(dense, seed)), 1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("whole", [pytest.param("a model", marks=pytest.mark.exhaustive), "an update"])
def test_low_rank_and_dense_of_one_leaf_are_refused_unless_asked_for(assert_close, whole):
    base = base_model()
    dense = make_adapter(5, {}, ["layers/q", "norm"])
    experts = [*adapters()[:2], apply_adapter(base, dense) if whole == "a model" else dense]
    with pytest.raises(InputError, match=r"got a low-rank update by expert \d and .* by expert 2; .*densify=True") as caught:
        ExpertSpace.from_experts(base, experts)
    assert "'layers/q'" in str(caught.value)
    space = ExpertSpace.from_experts(base, experts, densify=True)
    assert set(space.updates) == {"layers/q", "norm"}  # the model's other leaves are the base's
    models = [apply_adapter(base, e) if isinstance(e, Adapter) else e for e in experts]
    want = ExpertSpace.from_experts(base, models)
    for seed in range(5):
        assert_close(space.express(lineage(space, seed)), want.express(lineage(want, seed)), 1e-5)


def test_densify_leaves_what_is_low_rank_alone(assert_identical):
    assert_identical(make_space(densify=True), make_space())


@pytest.mark.exhaustive
def test_a_dense_space_takes_adapters(assert_close):
    space = DenseSpace.from_experts(base_model(), adapters())
    for k, adapter in enumerate(adapters()):
        assert_close(space.express(space.expert(k)), apply_adapter(space.base, adapter))


# --------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("space", [ExpertSpace, DenseSpace])
@pytest.mark.parametrize("part", ["a", "b", "whole"])
def test_numbers_that_are_not_finite(space, part):
    adapter = make_adapter(1, RANKS[0], ["head"])
    (adapter.updates["head"] if part == "whole" else getattr(adapter.updates["layers/q"], part))[0, 1] = np.nan
    with pytest.raises(InputError, match=r"finite update of '(head|layers/q)' in expert 1, got NaN or infinity"):
        space.from_experts(base_model(), [adapters()[1], adapter])


@pytest.mark.parametrize("space", [ExpertSpace, DenseSpace])
def test_adapters_of_another_base(space):
    with pytest.raises(InputError, match="leaves of the base, got 'layers/v' in expert 1"):
        space.from_experts(base_model(), [adapters()[0], Adapter({"layers/v": np.zeros((3, 8, 6), np.float32)})])
    bad = Adapter({"layers/q": LowRank(np.zeros((2, 8, 1), np.float32), np.zeros((2, 1, 10), np.float32))})
    with pytest.raises(InputError, match=r"for the update of 'layers/q', got factors of shapes .* in expert 0"):
        space.from_experts(base_model(), [bad, adapters()[0]])


def test_adapters_that_change_nothing():
    with pytest.raises(InputError, match="got none that changes any leaf"):
        ExpertSpace.from_experts(base_model(), [Adapter({}), Adapter({})])


def test_too_few_experts_and_bad_rank():
    with pytest.raises(InputError, match="two experts to merge, got 1"):
        ExpertSpace.from_experts(base_model(), adapters()[:1])
    with pytest.raises(InputError, match=r"rank.*0"):
        make_space(rank=0)
