"""Merging coefficients per expert and group of layers, against sums of weights in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace, ExpertSpace
from cycleqd_jax.models import llama
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.types import Adapter, GenomeSpace, InputError, LowRank, tree_paths

CONFIG = llama.LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=4,
    max_position_embeddings=16,
    rope_theta=1e4,
    tie_word_embeddings=False,
)
MATRICES = ("layers/attn/q", "layers/mlp/down")


def weights(seed, like):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), like)


@functools.cache
def base():
    return weights(0, llama.abstract_params(CONFIG))


@functools.cache
def experts(kind):
    if kind == "whole":
        return [weights(k, base()) for k in (1, 2, 3)]
    rng = np.random.default_rng(5)
    shapes = {path: leaf.shape for path, leaf in tree_paths(base())}

    def low_rank(path, r):
        *stack, m, n = shapes[path]
        return LowRank(*(rng.normal(size=(*stack, *shape)).astype(np.float32) for shape in ((m, r), (r, n))))

    return [Adapter({path: low_rank(path, k + 1) for path in MATRICES}) for k in range(3)]


@functools.cache
def space(kind, groups=2):
    return CoefficientSpace.from_experts(base(), experts(kind), groups=groups)


def genome(groups, seed=0):
    return CoefficientGenome(jnp.asarray(np.random.default_rng(seed).normal(size=(groups, 3)), jnp.float32))


def dense(kind, c):
    """θ in float64."""
    found = {}
    models = [apply_adapter(base(), e) if kind == "adapters" else e for e in experts(kind)]
    trees = [dict(tree_paths(model)) for model in models]
    for path, leaf in tree_paths(base()):
        theta = np.asarray(leaf, np.float64)
        taus = [np.asarray(tree[path], np.float64) - theta for tree in trees]
        if path.startswith("layers/"):
            rows = [theta[i] + sum(c[i * len(c) // 5, k] * tau[i] for k, tau in enumerate(taus)) for i in range(5)]
            found[path] = np.stack(rows)
        else:
            found[path] = theta + sum(c.mean(0)[k] * tau for k, tau in enumerate(taus))
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["whole", "adapters"])
@pytest.mark.parametrize("groups", [*(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2)), 5])
def test_weights_are_sums_by_group(kind, groups):
    one = genome(groups)
    expected = dense(kind, np.asarray(one.coefficients, np.float64))
    for path, leaf in tree_paths(space(kind, groups).express(one)):
        np.testing.assert_allclose(np.asarray(leaf, np.float64), expected[path], rtol=0, atol=2e-5, err_msg=path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["whole", "adapters"])
def test_one_group_is_the_mixing_of_expert_space(kind, assert_close):
    whole = ExpertSpace.from_experts(base(), experts(kind), rank=2)
    one = genome(1)
    assert_close(space(kind, 1).express(one), whole.express(whole.expert(0)._replace(mixing=one.coefficients[0])), tol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["whole", "adapters"])
@pytest.mark.parametrize("groups", [*(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2)), 5])
def test_the_gradient_of_the_coefficients(kind, groups):
    """Against products with task vectors in float64: the difference of two models, coefficient by coefficient."""
    gradient = weights(9, base())
    found = np.asarray(space(kind, groups).coefficient_gradient(gradient).coefficients)
    zero = np.zeros((groups, 3))
    for g in range(groups):
        for k in range(3):
            one = zero.copy()
            one[g, k] = 1.0
            moved, start = dense(kind, one), dense(kind, zero)
            expected = sum(
                np.sum(np.asarray(leaf, np.float64) * (moved[path] - start[path])) for path, leaf in tree_paths(gradient)
            )
            np.testing.assert_allclose(found[g, k], expected, rtol=2e-5, atol=2e-3)


def test_the_gradient_through_updates_of_whole_leaves():
    """Adapters that bring whole leaves, and an expert that does not change one."""
    rng = np.random.default_rng(3)
    here = {"layers": {"w": jnp.zeros((2, 3, 3))}, "norm": jnp.ones(3)}
    first, second = rng.normal(size=(2, 3, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    found = CoefficientSpace.from_experts(here, [Adapter({"layers/w": first}), Adapter({"norm": second})], groups=2)
    gradient = {"layers": {"w": jnp.asarray(rng.normal(size=(2, 3, 3)), jnp.float32)}, "norm": jnp.array([1.0, 2.0, 3.0])}
    half = float(second @ np.array([1.0, 2.0, 3.0])) / 2
    by_layer = np.sum(np.asarray(gradient["layers"]["w"]) * first, (1, 2))
    expected = [[by_layer[0], half], [by_layer[1], half]]
    np.testing.assert_allclose(found.coefficient_gradient(gradient).coefficients, expected, rtol=1e-5)


def test_it_is_a_genome_space(assert_identical):
    here = space("whole")
    assert isinstance(here, GenomeSpace)
    for k in range(3):
        assert_identical(here.expert(k).coefficients, jnp.stack([jax.nn.one_hot(k, 3)] * 2))
    child = here.crossover(here.expert(0), here.expert(1), jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(child.coefficients, [[0.25, 0.75, 0.0]] * 2, rtol=1e-6)
    children = jax.vmap(lambda key: here.mutate(key, child, jnp.int32(0)))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(np.std(children.coefficients, axis=0), 0.1, rtol=0.05)
    np.testing.assert_allclose(np.mean(children.coefficients, axis=0), child.coefficients, atol=0.01)


def test_old_weights_are_overwritten(assert_identical):
    here = space("whole")
    old = here.express(genome(2, seed=1))
    expected = here.express(genome(2))
    assert_identical(here.express(genome(2), out=old), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))


def test_a_population_shares_the_base():
    here = space("adapters")
    genomes = jax.tree.map(lambda *x: jnp.stack(x), genome(2), genome(2, seed=1))
    mixed = dict(tree_paths(here.express_mixed(genomes)))
    for i in range(2):
        alone = dict(tree_paths(here.express(jax.tree.map(lambda x, i=i: x[i], genomes))))
        for path in MATRICES:
            w, u, vt, c = (mixed[f"{path}/{part}"] for part in ("w", "u", "vt", "coefficients"))
            theta = w + jnp.einsum("lmr,lr,lrn->lmn", u, c[:, i], vt, precision="highest")
            np.testing.assert_allclose(theta, alone[path], rtol=0, atol=2e-5)
    with pytest.raises(InputError, match="expected experts that change stacked matrices by a low rank"):
        space("whole").express_mixed(genomes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_weights_can_be_differentiated(dtype):
    """Also in the loop over layers, which writes them as integers on a CPU."""
    rng = np.random.default_rng(4)
    shape = (2, 6, 5)
    here = {"layers": {"w": jnp.asarray(rng.normal(size=shape), dtype)}}
    pairs = [((*shape[:2], 2), (2, 2, shape[2])), ((*shape[:2], 1), (2, 1, shape[2]))]
    updates = [LowRank(*(rng.normal(size=s).astype(np.float32) for s in pair)) for pair in pairs]
    two = CoefficientSpace.from_experts(here, [Adapter({"layers/w": update}) for update in updates], groups=2)
    gradient = {"layers": {"w": jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype).astype(jnp.float32)}}

    def loss(one):
        return jnp.sum(two.express(one)["layers"]["w"].astype(jnp.float32) * gradient["layers"]["w"])

    one = CoefficientGenome(jnp.asarray(rng.normal(size=(2, 2)), jnp.float32))
    expected = two.coefficient_gradient(gradient).coefficients
    assert float(jnp.abs(expected).min()) > 0.01
    for differentiate in (jax.grad(loss), jax.jit(jax.grad(loss))):
        np.testing.assert_allclose(differentiate(one).coefficients, expected, rtol=2e-2, atol=2e-2)
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), one)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(both).coefficients, jnp.stack([expected] * 2), rtol=2e-2, atol=2e-2)


def test_a_space_without_weights_expresses_nothing():
    for here, one in ((space("adapters"), genome(2)), (space("adapters").experts, space("adapters").experts.expert(0))):
        bare = here.without_weights()
        some = jax.tree.map(lambda x: x[None], one)
        for call in (lambda: bare.express(one), lambda: bare.express_mixed(some)):
            with pytest.raises(InputError, match="expected a space with weights to express a genome, got one without them"):
                call()
    with pytest.raises(InputError, match="expected a space with weights"):
        bare.express_population(some)
    with pytest.raises(InputError, match="expected a space with weights"):
        bare.task_vector(0)
    with pytest.raises(InputError, match="expected a space with weights"):
        space("adapters").without_weights().coefficient_gradient(base())


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [pytest.param("whole", marks=pytest.mark.exhaustive), "adapters"])
def test_a_mesh_gives_the_same_weights(kind, assert_close):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    here = space(kind)
    sharded = here.shard(mesh, sharding.shardings(mesh, base(), llama.logical_axes(CONFIG)))
    assert_close(jax.device_get(sharded.express(genome(2))), jax.device_get(here.express(genome(2))), tol=1e-6)


@pytest.mark.parametrize("groups", [0, 6, -1])
def test_more_groups_than_layers(groups):
    with pytest.raises(InputError, match=f"expected 1 to 5 groups of layers, .*got {groups} in groups; correct"):
        CoefficientSpace.from_experts(base(), experts("whole"), groups=groups)


def test_groups_need_layers():
    with pytest.raises(InputError, match=r"expected leaves below 'layers/' .* got none in the base; use one group"):
        CoefficientSpace.from_experts({"w": jnp.ones((2, 2))}, [{"w": jnp.ones((2, 2))}] * 2, groups=2)
    with pytest.raises(InputError, match=r"expected sigma to be zero or positive, got -1\.0"):
        CoefficientSpace.from_experts({"w": jnp.ones((2, 2))}, [{"w": jnp.ones((2, 2))}] * 2, sigma=-1.0)


@pytest.mark.parametrize("kind", [list, lambda layers: {str(i): layer for i, layer in enumerate(layers)}])
def test_groups_need_stacked_layers(kind):
    """The first axis of a layer's own matrix is no axis of layers."""
    models = [{"layers": kind([{"kernel": x * jnp.ones((4, 3))} for _ in range(4)])} for x in (1.0, 2.0, 3.0)]
    with pytest.raises(InputError, match=r"got the leaf 'layers/0/kernel' of one layer in the base; stack the layers, or use"):
        CoefficientSpace.from_experts(models[0], models[1:], groups=2)
    one = CoefficientSpace.from_experts(models[0], models[1:])
    expressed = one.express(CoefficientGenome(jnp.array([[1.0, 1.0]])))
    np.testing.assert_array_equal(jax.tree.leaves(expressed), np.full((4, 4, 3), 4.0))
