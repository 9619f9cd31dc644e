"""Low-rank updates: merged, and decomposed without being multiplied out, against float64 algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from cycleqd_jax.operators import apply_adapter, compose, dense_update, factorize_low_rank
from cycleqd_jax.types import Adapter, InputError, LowRank

seeds = st.integers(0, 2**32 - 1)
SHAPES = [((), 6, 4, 2), ((3,), 5, 7, 3), ((2, 2), 4, 4, 1), ((2,), 3, 8, 5), ((), 4, 4, 9)]


def low_rank(seed, stack, m, n, r, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return LowRank(jnp.asarray(rng.normal(size=(*stack, m, r)), dtype), jnp.asarray(rng.normal(size=(*stack, r, n)), dtype))


def product(update):
    return np.asarray(update.a, np.float64) @ np.asarray(update.b, np.float64)


@pytest.mark.exhaustive
@settings(max_examples=40)
@given(seeds, st.sampled_from(SHAPES), st.sampled_from([1e-5, 1.0, 1e4]))
def test_decomposition_of_the_product(assert_close, seed, shape, scale):
    update = low_rank(seed, *shape)
    update = update._replace(a=update.a * scale)
    stack, m, n, r = shape
    factors = factorize_low_rank(update)
    kept = min(m, n, r)
    assert (factors.u.shape, factors.s.shape) == ((*stack, m, kept), (*stack, kept))
    assert factors.vt.shape == (*stack, kept, n)
    assert_close(compose(factors), product(update), 2e-6)
    np.testing.assert_allclose(
        factors.s, np.linalg.svd(product(update), compute_uv=False)[..., :kept], rtol=1e-5, atol=1e-5 * scale
    )
    assert np.all(np.diff(np.asarray(factors.s), axis=-1) <= 0)
    identity = np.broadcast_to(np.eye(kept), (*stack, kept, kept))
    assert_close(np.swapaxes(factors.u, -1, -2) @ np.asarray(factors.u), identity, 3e-6)
    assert_close(np.asarray(factors.vt) @ np.swapaxes(factors.vt, -1, -2), identity, 3e-6)


def test_stacked_is_per_matrix(assert_close):
    update = low_rank(0, (3, 2), 5, 4, 2)
    stacked = factorize_low_rank(update)
    for i in np.ndindex(3, 2):
        single = factorize_low_rank(LowRank(update.a[i], update.b[i]))
        assert_close(stacked.s[i], single.s)
        assert_close(compose(jax.tree.map(lambda x, i=i: x[i], stacked)), compose(single), 2e-6)


def test_factors_padded_with_zeros_and_zero_updates(assert_close):
    update = low_rank(0, (2,), 6, 5, 2)
    padded = LowRank(jnp.pad(update.a, ((0, 0), (0, 0), (0, 2))), jnp.pad(update.b, ((0, 0), (0, 2), (0, 0))))
    factors = factorize_low_rank(padded)
    np.testing.assert_allclose(factors.s[:, 2:], 0, atol=1e-6)
    assert_close(compose(factors), product(update), 2e-6)
    nothing = factorize_low_rank(LowRank(jnp.zeros((2, 6, 3)), jnp.zeros((2, 3, 5))))
    assert all(np.isfinite(part).all() for part in nothing)
    np.testing.assert_array_equal(nothing.s, 0)


def test_nothing_of_the_size_of_the_matrix_is_made():
    """The program of a 2000 × 3000 matrix at rank 4 has no array with more than the factors' numbers."""
    update = LowRank(jax.ShapeDtypeStruct((2000, 4), jnp.float32), jax.ShapeDtypeStruct((4, 3000), jnp.float32))
    program = jax.make_jaxpr(factorize_low_rank)(update)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    assert max(sizes(program.jaxpr)) <= 4 * 3000


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_merged_is_summed_in_float32_and_cast_once(assert_identical, dtype):
    rng = np.random.default_rng(0)
    base = {
        "layers": {"q": jnp.asarray(rng.normal(size=(3, 6, 5)), dtype), "norm": jnp.asarray(rng.normal(size=(3, 6)), dtype)},
        "untouched": jnp.asarray(rng.normal(size=4), dtype),
    }
    update = low_rank(1, (3,), 6, 5, 2)
    whole = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    merged = apply_adapter(base, Adapter({"layers/q": update, "layers/norm": whole}))
    want = (base["layers"]["q"].astype(jnp.float32) + product(update).astype(np.float32)).astype(dtype)
    tolerance = {jnp.float32: 1e-6, jnp.float16: 1e-3, jnp.bfloat16: 8e-3}[dtype]
    np.testing.assert_allclose(merged["layers"]["q"].astype(jnp.float32), want.astype(jnp.float32), tolerance, 2e-6)
    assert_identical(merged["layers"]["norm"], (base["layers"]["norm"].astype(jnp.float32) + whole).astype(dtype))
    assert_identical(merged["untouched"], base["untouched"])
    jax.tree.map(lambda leaf: leaf.delete(), merged)  # as a donation does: no array is the base's
    assert all(np.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(base))


def test_numpy_updates_of_any_float_are_taken(assert_close):
    base = {"w": jnp.ones((6, 5)), "v": jnp.ones(4)}
    update = low_rank(0, (), 6, 5, 2)
    adapter = Adapter({"w": LowRank(*(np.asarray(part, np.float64) for part in update)), "v": np.ones(4, np.float16)})
    merged = apply_adapter(base, adapter)
    assert_close(merged["w"], 1 + product(update), 1e-6)
    np.testing.assert_array_equal(merged["v"], 2)
    assert dense_update(adapter.updates["w"]).dtype == jnp.float32


def test_no_recompilation(compilations):
    base, updates = {"w": jnp.ones((6, 5))}, [low_rank(seed, (), 6, 5, 2) for seed in range(2)]
    apply_adapter(base, Adapter({"w": updates[0]}))
    factorize_low_rank(updates[0])
    assert compilations(lambda: (apply_adapter(base, Adapter({"w": updates[1]})), factorize_low_rank(updates[1]))) == 0


def factors(a, b):
    return LowRank(np.zeros(a, np.float32), np.zeros(b, np.float32))


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"q": factors((6, 2), (2, 5))}, "updates of leaves of the base, got 'q' in the adapter"),
        ({"w": factors((6, 2), (2, 4))}, r"\(6, 5\) of the base for the update of 'w', got factors.*\(2, 4\)"),
        ({"w": factors((6, 2), (3, 5))}, r"update of 'w', got factors.*\(6, 2\) and \(3, 5\)"),
        ({"w": factors((1, 6, 2), (1, 2, 5))}, "update of 'w', got factors"),
        ({"s": factors((6, 2), (2, 5))}, r"\(3, 6, 5\) of the base for the update of 's', got factors"),
        ({"s": factors((3, 6, 2), (1, 2, 5))}, "update of 's', got factors"),
        ({"v": factors((4, 2), (2, 4))}, r"\(4,\) of the base for the update of 'v', got factors"),
        ({"w": np.zeros((5, 6), np.float32)}, r"update of 'w', got shape \(5, 6\)"),
        ({"w": np.zeros((6, 5), np.int32)}, "update of 'w', got dtype int32"),
        ({"w": LowRank(np.zeros((6, 2), np.int32), np.zeros((2, 5), np.float32))}, "update of 'w', got dtype int32"),
    ],
)
def test_updates_that_do_not_fit(updates, message):
    base = {"w": jnp.zeros((6, 5)), "s": jnp.zeros((3, 6, 5)), "v": jnp.zeros(4)}
    with pytest.raises(InputError, match=message):
        apply_adapter(base, Adapter(updates))
