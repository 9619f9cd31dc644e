"""Experts that can't be merged are refused by name and leaf, before anything is computed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.genome.experts import check_rank
from cycleqd_jax.types import InputError

SPACES = [ExpertSpace, DenseSpace]


def model(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {"layers": {"q": jnp.asarray(rng.normal(size=(2, 4, 3)), dtype)}, "norm": jnp.asarray(rng.normal(size=4), dtype)}


def with_leaf(**leaves):
    return {**model(1), **leaves}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (with_leaf(norm=jnp.zeros(5)), r"\(4,\) of the base for leaf 'norm', got \(5,\) in expert 1"),
        (with_leaf(norm=jnp.zeros(4, jnp.bfloat16)), "float32 of the base for leaf 'norm', got bfloat16 in expert 1"),
        (with_leaf(layers={}), "leaf 'layers/q' of the base, got no such leaf in expert 1"),
        (with_leaf(lm_head=jnp.zeros((4, 9))), "another leaf 'lm_head' in expert 1"),
        (with_leaf(norm=jnp.asarray([1, jnp.nan, 1, 1])), "NaN or infinity in leaf 'norm' of expert 1"),
        (with_leaf(norm=jnp.asarray([1, jnp.inf, 1, 1])), "NaN or infinity in leaf 'norm' of expert 1"),
        (with_leaf(norm=jnp.asarray([jnp.inf, -jnp.inf, 1, 1])), "NaN or infinity in leaf 'norm' of expert 1"),
    ],
)
def test_bad_experts(space, bad, message):
    with pytest.raises(InputError, match=message):
        space.from_experts(model(0), [model(1), bad])


@pytest.mark.parametrize("space", SPACES)
def test_a_broken_base_is_called_the_base(space):
    with pytest.raises(InputError, match=r"NaN or infinity in leaf 'norm' of the base"):
        space.from_experts({**model(0), "norm": jnp.full(4, jnp.nan)}, [model(1), model(2)])


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("count", [0, 1])
def test_at_least_two_experts(space, count):
    with pytest.raises(InputError, match=f"two experts to merge, got {count}"):
        space.from_experts(model(0), [model(1)] * count)


def test_large_finite_weights_are_not_called_infinite():
    huge = with_leaf(norm=jnp.full(4, 1e38))  # their sum overflows float32
    assert DenseSpace.from_experts(model(0), [model(1), huge]).num_experts == 2


def test_a_tree_of_other_containers_is_refused_as_input():
    """Equal paths in other containers are still another tree: the error must be ours, not one from inside JAX."""
    as_list, as_tuple = {"w": [jnp.zeros((3, 3))]}, {"w": (jnp.zeros((3, 3)),)}
    with pytest.raises(InputError, match="in expert 0"):
        ExpertSpace.from_experts(as_list, [as_tuple, as_tuple])


def test_ranks():
    assert [check_rank(rank) for rank in (None, 2, np.int64(2), np.uint8(3))] == [None, 2, 2, 3]
    for rank in (True, np.True_, 0, -1, 2.0, "2"):
        with pytest.raises(InputError, match=f"rank to be a positive integer, or null for full rank, got {rank}"):
            check_rank(rank)


@pytest.mark.parametrize("space", SPACES)
def test_numpys_integers_are_ranks(space):
    assert space.from_experts(model(0), [model(1), model(2)], rank=np.int64(2)).num_experts == 2


@pytest.mark.parametrize("w_max", [-0.1, float("nan")])
def test_w_max_must_not_be_negative(w_max):
    with pytest.raises(InputError, match="w_max"):
        ExpertSpace.from_experts(model(0), [model(1), model(2)], w_max=w_max)


def test_task_vectors_are_float32_whatever_the_weights():
    space = ExpertSpace.from_experts(model(0, jnp.bfloat16), [model(1, jnp.bfloat16), model(2, jnp.bfloat16)])
    assert {leaf.dtype for k in range(2) for leaf in space.task_vector(k).values()} == {jnp.dtype(jnp.float32)}
    assert {basis.s.dtype for basis in space.bases.values()} == {jnp.dtype(jnp.float32)}
