"""Task vectors: float32 differences, one cast at the end, errors that name the leaf."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.operators import apply_task_vector, relative_norm, task_vector
from cycleqd_jax.operators.task_vector import check_same_shapes
from cycleqd_jax.types import InputError


def model(rng, scale=1.0, dtype=np.float32):
    tree = {"embed": (7, 4), "layers": {"q": (2, 4, 3), "norm": (2, 4)}, "scale": ()}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) * scale, dtype), tree, is_leaf=lambda x: isinstance(x, tuple)
    )


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-2, 1.0, 1e3]))
def test_against_float64(assert_close, seed, scale):
    rng = np.random.default_rng(seed)
    base, tau = model(rng), model(rng, scale)
    params = jax.tree.map(jnp.add, base, tau)
    f64 = [jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (params, base)]
    assert_close(task_vector(params, base), jax.tree.map(np.subtract, *f64), scale=scale + 1)
    assert_close(apply_task_vector(base, task_vector(params, base)), params)
    assert_close(
        apply_task_vector(base, tau, -0.5),
        jax.tree.map(lambda b, t: np.float64(b) - 0.5 * np.float64(t), base, tau),
        scale=2 + scale,
    )


def test_bfloat16_is_subtracted_and_summed_in_float32():
    base, params = {"w": jnp.asarray([1.0, 1.0], jnp.bfloat16)}, {"w": jnp.asarray([512.0, 1.0078125], jnp.bfloat16)}
    tau = task_vector(params, base)
    assert tau["w"].dtype == jnp.float32
    np.testing.assert_array_equal(tau["w"], [511.0, 0.0078125])  # 511 is not a bfloat16
    # 0.00390625 is half a unit in the last place of 1: twice half of it must not be lost on the way
    np.testing.assert_array_equal(apply_task_vector(base, tau)["w"], params["w"])
    assert apply_task_vector(base, tau)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_round_trip_in_the_dtype_of_the_base(dtype, assert_close):
    rng = np.random.default_rng(0)
    base, params = model(rng, dtype=dtype), model(rng, dtype=dtype)
    back = apply_task_vector(base, task_vector(params, base))
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(dtype)}
    assert_close(back, params, 0.0 if dtype != jnp.float32 else 1e-6)


def test_zero_task_vector_is_the_base(assert_identical):
    base = model(np.random.default_rng(0), dtype=jnp.bfloat16)
    assert_identical(apply_task_vector(base, jax.tree.map(lambda x: jnp.zeros(x.shape), base)), base)


def test_mismatched_trees_are_refused_by_leaf():
    rng = np.random.default_rng(0)
    base = model(rng)
    missing = {**base, "layers": {"q": base["layers"]["q"]}}
    with pytest.raises(InputError, match=r"layers/norm.*one architecture"):
        task_vector(missing, base)
    with pytest.raises(InputError, match="lm_head"):
        task_vector({**base, "lm_head": base["embed"]}, base)
    with pytest.raises(InputError, match=r"\(7, 4\) of the base for leaf 'embed', got \(8, 4\).*vocabulary"):
        task_vector({**base, "embed": jnp.zeros((8, 4))}, base)


def test_the_first_leaf_in_tree_order_is_named():
    base = {f"w{i:02d}": jnp.zeros(2) for i in range(40)}
    with pytest.raises(InputError, match="'w00'"):
        check_same_shapes({name: jnp.zeros(3) for name in base}, base)


def test_no_recompilation(compilations):
    rng = np.random.default_rng(0)
    trees = [model(rng) for _ in range(4)]
    task_vector(trees[0], trees[1])
    apply_task_vector(trees[0], trees[1], 0.5)
    assert compilations(lambda: task_vector(trees[2], trees[3])) == 0
    assert compilations(lambda: apply_task_vector(trees[2], trees[3], 0.7)) == 0


def test_relative_norm():
    base = {"w": jnp.asarray([[3.0, 0.0], [0.0, 4.0]]), "norm": jnp.ones(100)}
    params = {"w": base["w"] + jnp.asarray([[0.0, 0.3], [0.4, 0.0]]), "norm": jnp.zeros(100)}
    assert relative_norm(params, base) == pytest.approx(0.1)
    assert relative_norm(base, base) == 0
    with pytest.raises(InputError, match="leaf 'norm' of the base, got no such leaf in params"):
        relative_norm({"w": base["w"]}, base)


def test_what_is_applied_must_be_like_the_base():
    base = model(np.random.default_rng(0))
    tau = task_vector(base, base)
    with pytest.raises(InputError, match=r"\(7, 4\) of the base for leaf 'embed', got \(4,\) in the task vector"):
        apply_task_vector(base, {**tau, "embed": jnp.zeros(4)})
    with pytest.raises(InputError, match=r"expected one factor for the whole model, got shape \(4,\) in scale"):
        apply_task_vector(base, tau, jnp.ones(4))
    both = jax.tree.map(lambda x: jnp.stack([x, x]), tau)
    found = jax.jit(jax.vmap(apply_task_vector, in_axes=(None, 0, 0)))(base, both, jnp.asarray([0.5, 1.0]))
    assert found["embed"].shape == (2, 7, 4)
