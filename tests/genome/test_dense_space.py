"""DenseSpace: genomes are task vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.operators import mutation_coefficients
from cycleqd_jax.types import GenomeSpace


def model(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"q": (3, 4, 5), "attn_norm": (3, 4), "bias": (4,)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def make_space(dtype=jnp.float32, from_experts=DenseSpace.from_experts, **options):
    return from_experts(model(0, dtype), [model(1, dtype), model(2, dtype)], **options)


def test_is_a_genome_space(assert_close):
    space = make_space()
    assert isinstance(space, GenomeSpace)
    assert space.num_experts == 2
    for k in range(2):
        assert_close(space.express(space.expert(k)), model(1 + k))


def test_half_precision_experts_express_to_themselves_exactly(assert_identical):
    space = make_space(jnp.bfloat16)
    assert_identical(space.express(space.expert(1)), model(2, jnp.bfloat16))


@pytest.mark.exhaustive
def test_svd_mutation_is_around_the_childs_own_decomposition(assert_close):
    space, key = make_space(strength=0.5), jax.random.key(0)
    genome = space.crossover(space.expert(0), space.expert(1), jnp.asarray([1.0, 1.2]))
    mutant = space.mutate(key, genome, 0)
    u, s, vt = np.linalg.svd(np.asarray(genome["q"], np.float64), full_matrices=False)
    w = np.asarray(mutation_coefficients(key, "q", (3,), 4, 0.5), np.float64)
    # U diag(s (1 + w)) Vᵀ does not depend on the signs of the singular vectors
    assert_close(mutant["q"], u @ ((s * (1 + w))[..., None] * vt), 2e-5)
    assert_close({k: mutant[k] for k in ("attn_norm", "bias")}, {k: genome[k] for k in ("attn_norm", "bias")}, 0.0)


def test_gaussian_and_no_mutation(assert_identical):
    space = make_space(mutation="gaussian", strength=0.1)
    mutant = space.mutate(jax.random.key(0), space.expert(0), 0)
    assert np.all(mutant["q"] != space.expert(0)["q"])
    assert_identical(mutant["attn_norm"], space.expert(0)["attn_norm"])
    none = make_space(mutation="none")
    assert_identical(none.mutate(jax.random.key(0), none.expert(0), 0), none.expert(0))


def test_crossover_is_that_of_the_expert_space(assert_close):
    dense = make_space()
    sparse = ExpertSpace.from_experts(model(0), [model(1), model(2)])
    omega = jnp.asarray([1.03, 0.95])
    one, other = (space.express(space.crossover(space.expert(0), space.expert(1), omega)) for space in (dense, sparse))
    assert_close(one, other)


@pytest.mark.exhaustive
def test_vmapped_is_the_loop(assert_close):
    space, keys = make_space(), jax.random.split(jax.random.key(0), 3)
    population = jax.tree.map(lambda *x: jnp.stack(x), *(space.expert(k % 2) for k in range(3)))
    batch = jax.jit(jax.vmap(space.mutate, in_axes=(0, 0, None)))(keys, population, 0)
    for j in range(3):
        assert_close(jax.tree.map(lambda x, j=j: x[j], batch), space.mutate(keys[j], space.expert(j % 2), 0), 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mutation": "svg"}, "'svg'"),
        ({"method": "qr"}, "'qr'"),
        ({"strength": -0.1}, "-0.1"),
        ({"strength": float("nan")}, "nan"),
    ],
)
def test_bad_options(options, message, unchecked):
    from cycleqd_jax.types import InputError

    with pytest.raises(InputError, match=message):
        make_space(from_experts=unchecked(DenseSpace.from_experts), **options)
