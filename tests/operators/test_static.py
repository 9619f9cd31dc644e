"""Static merges against float64 references written with sorts and loops."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.operators import (
    STATIC_MERGES,
    apply_adapter,
    dare,
    dare_ties,
    keep_counts,
    linear,
    slerp,
    stack_axes,
    static_merge,
    task_arithmetic,
    ties,
    uniform,
)
from cycleqd_jax.operators.by_leaf import entries, mix
from cycleqd_jax.operators.select import find_cut, largest
from cycleqd_jax.types import Adapter, InputError, LowRank, tree_paths

seeds = st.integers(0, 2**32 - 1)
KEY = jax.random.key(0)


def methods(*quick):
    """All static merges as parameters. Merges without a name here run with ``--all`` only."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in STATIC_MERGES]


def trees(seed, count, dtype=jnp.float32, spread=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"layers": {"w": (3, 6, 8), "norm": (3, 8)}, "embed": (12, 8), "bias": (16,)}
    base = jax.tree.map(lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    moved = [jax.tree.map(lambda leaf: leaf + spread * rng.normal(size=leaf.shape), base) for _ in range(count)]
    return [jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree) for tree in (base, *moved)]


def f64(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree_paths(tree)}


def each_tensor(path, leaf):
    """The slices of a leaf that are one tensor each."""
    return np.ndindex(*leaf.shape[: stack_axes(path, leaf)])


def top(delta, density):
    kept = np.zeros(delta.size, bool)
    kept[np.argsort(-np.abs(delta.astype(np.float32)).ravel(), kind="stable")[: max(1, int(density * delta.size))]] = True
    return kept.reshape(delta.shape)


def reference(base, deltas, weights, masks, scale, normalize, elect):
    """By the words of the papers, entry by entry."""
    out = {}
    for path, leaf in base.items():
        parts = np.stack([w * np.where(m[path], d[path], 0) for w, d, m in zip(weights, deltas, masks, strict=True)])
        w = np.asarray(weights, np.float64).reshape(-1, *[1] * leaf.ndim) * np.ones_like(parts)
        if elect:
            same = np.sign(parts) == np.where(parts.sum(0) >= 0, 1, -1)
            parts, w = parts * same, w * same
        total, divisor = parts.sum(0), w.sum(0)
        out[path] = leaf + scale * (total / np.where(np.abs(divisor) < 1e-8, 1, divisor) if normalize else total)
    return out


def close(got, want, tol=2e-6):
    for path, leaf in tree_paths(got):
        np.testing.assert_allclose(np.asarray(leaf, np.float64), want[path], rtol=tol, atol=tol, err_msg=path)


@pytest.mark.exhaustive
@settings(max_examples=8)
@given(seeds, st.sampled_from([1, 3]), st.booleans())
def test_ties(seed, count, normalize):
    base, *experts = trees(seed, count)
    rng = np.random.default_rng(seed)
    weights, densities = rng.normal(size=count).tolist(), rng.uniform(0.01, 1, size=count).tolist()
    deltas = [{path: f64(expert)[path] - f64(base)[path] for path in f64(base)} for expert in experts]
    masks = []
    for delta, density in zip(deltas, densities, strict=True):
        mask = {path: np.zeros(leaf.shape, bool) for path, leaf in delta.items()}
        for path, leaf in delta.items():
            for i in each_tensor(path, leaf):
                mask[path][i] = top(leaf[i], density)
        masks.append(mask)
    got = ties(base, experts, weights, densities, scale=0.7, normalize=normalize)
    want = reference(f64(base), deltas, weights, masks, 0.7, normalize, True)
    # Where the sum of an entry is zero to rounding, its sign and the mean's divisor may go either way.
    close(got, want, 2e-5)


@settings(max_examples=25)
@given(seeds, st.integers(1, 60), st.integers(1, 4))
def test_the_largest_entries_are_counted_exactly(seed, keep, levels):
    """Few distinct magnitudes: of equal ones, the first are kept."""
    rng = np.random.default_rng(seed)
    delta = rng.integers(-levels, levels + 1, size=(2, 6, 10)).astype(np.float32)
    base = np.zeros_like(delta)
    cut = find_cut(base, delta, np.full(2, keep, np.uint32))
    got = np.asarray(largest(jnp.asarray(delta), cut)) & (delta != 0)
    for g, d in zip(got, delta, strict=True):
        np.testing.assert_array_equal(g, top(d, (keep + 0.5) / d.size) & (d != 0))


@pytest.mark.exhaustive
@settings(max_examples=6)
@given(seeds, st.sampled_from([1, 3]))
def test_uniform_and_task_arithmetic(seed, count):
    base, *experts = trees(seed, count)
    stacked = {path: np.mean([f64(expert)[path] for expert in experts], 0) for path in f64(base)}
    close(uniform(base, experts), stacked)
    close(linear(experts), stacked)
    total = {p: x + 0.3 * sum(w * (f64(e)[p] - x) for w, e in enumerate(experts, 1)) for p, x in f64(base).items()}
    close(task_arithmetic(base, experts, [float(k + 1) for k in range(count)], scale=0.3), total, 1e-5)


@settings(max_examples=10)
@given(seeds, st.floats(0, 1), st.sampled_from([1.0, 1e-3]))
def test_slerp(seed, t, spread):
    base, first, second = trees(seed, 2, spread=spread)
    got = dict(tree_paths(slerp(base, [first, second], t)))
    for path, a in f64(first).items():
        b = f64(second)[path]
        for i in each_tensor(path, a):
            cosine = np.sum(a[i] * b[i]) / np.linalg.norm(a[i]) / np.linalg.norm(b[i])
            if abs(abs(cosine) - 0.9995) < 1e-5:
                continue  # rounding decides which formula counts
            angle = np.arccos(cosine)
            shares = (
                (1 - t, t)
                if abs(cosine) > 0.9995
                else (np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle))
            )
            np.testing.assert_allclose(np.asarray(got[path])[i], shares[0] * a[i] + shares[1] * b[i], rtol=1e-5, atol=1e-5)


def test_slerp_of_zeros_and_opposites():
    zeros = {"w": jnp.zeros((2, 3))}
    one = {"w": jnp.ones((2, 3))}
    assert np.isfinite(slerp(zeros, [zeros, one])["w"]).all()
    np.testing.assert_allclose(slerp(zeros, [one, {"w": -one["w"]}], 0.25)["w"], 0.5)


def test_dare_statistics():
    """The share of kept entries, the mean and the independence of masks between leaves, experts and keys."""
    base = {"a": jnp.zeros((300, 400)), "b": jnp.zeros((300, 400))}
    expert = jax.tree.map(jnp.ones_like, base)
    merged = dare(KEY, base, [expert], densities=0.25, scale=1.0)
    for leaf in merged.values():
        kept = np.asarray(leaf) != 0
        assert abs(kept.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / kept.size)
        np.testing.assert_array_equal(np.asarray(leaf)[kept], 4.0)
    masks = [np.asarray(merged["a"]) != 0, np.asarray(merged["b"]) != 0]
    masks.append(np.asarray(dare(jax.random.key(1), base, [expert], densities=0.25)["a"]) != 0)
    two = np.asarray(dare(KEY, base, [expert, expert], [1.0, 10.0], 0.25, scale=1.0, rescale="none")["a"])
    assert ((two % 2 == 1) == masks[0]).all()  # the first expert's mask does not depend on the second
    masks.append(two >= 10)
    for i in range(len(masks)):
        for j in range(i):
            assert abs((masks[i] & masks[j]).mean() - 0.0625) < 4 * np.sqrt(0.0625 / masks[0].size)


@pytest.mark.exhaustive
def test_dare_keeps_norms():
    base, *experts = trees(0, 1)
    for path, leaf in tree_paths(dare(KEY, base, experts, densities=0.5, scale=1.0, rescale="l1")):
        before = np.asarray(dict(tree_paths(experts[0]))[path] - dict(tree_paths(base))[path])
        after = np.asarray(leaf - dict(tree_paths(base))[path])
        for i in each_tensor(path, before):
            np.testing.assert_allclose(np.abs(after[i]).sum(), np.abs(before[i]).sum(), rtol=1e-5)


@pytest.mark.parametrize("operator", [dare, dare_ties])
def test_dare_with_given_masks(operator):
    base, *experts = trees(0, 3)
    rng = np.random.default_rng(0)
    masks = [jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.3, base) for _ in experts]
    deltas = [{p: (f64(e)[p] - x) / 0.3 for p, x in f64(base).items()} for e in experts]
    got = operator(KEY, base, experts, [1.0, -0.5, 2.0], 0.3, scale=0.6, normalize=True, masks=masks)
    wanted = [dict(tree_paths(mask)) for mask in masks]
    close(got, reference(f64(base), deltas, [1.0, -0.5, 2.0], wanted, 0.6, True, operator is dare_ties), 1e-4)


def values_by_layer(base, numbers):
    return jax.tree.map(lambda leaf: np.asarray(numbers) if leaf.shape[0] == 3 else 0.5, base)


def test_values_by_leaf_and_layer(assert_identical):
    """A stack of layers with a value for each layer is what single layers with these values are."""
    base, *experts = trees(0, 2)
    weights, densities = values_by_layer(base, [0.1, 0.5, 1.0]), values_by_layer(base, [0.9, 0.3, 0.05])
    got = ties(base, experts, [weights, 1.0], [densities, 0.4])["layers"]["w"]
    for i, (w, d) in enumerate(zip([0.1, 0.5, 1.0], [0.9, 0.3, 0.05], strict=True)):
        single = [{"w": tree["layers"]["w"][i]} for tree in (base, *experts)]
        assert_identical(got[i], ties(single[0], single[1:], [w, 1.0], [d, 0.4])["w"])


@pytest.mark.parametrize("method", methods("uniform", "task_arithmetic", "dare_ties", "slerp"))
def test_merges_of_equal_bfloat16_models_keep_dtype_and_structure(method, assert_close):
    base, expert = trees(0, 1, jnp.bfloat16)
    merged = static_merge(method, base, [expert, expert], KEY)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    if method in ("uniform", "slerp"):
        assert_close(merged, expert, 1e-2)


@pytest.mark.parametrize("method", methods("task_arithmetic", "ties", "slerp"))
def test_adapters_are_their_weights(method, assert_close):
    base, whole = trees(0, 1)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 6, 2)).astype(np.float32), rng.normal(size=(3, 2, 8)).astype(np.float32)
    adapter = Adapter({"layers/w": LowRank(a, b), "bias": rng.normal(size=16).astype(np.float32)})
    got = static_merge(method, base, [adapter, whole], KEY)
    assert_close(got, static_merge(method, base, [apply_adapter(base, adapter), whole], KEY), 1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", methods("uniform", "dare_ties", "slerp"))
def test_sharded_equals_unsharded(method):
    base, *experts = trees(0, 2)
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("x", "y"))

    def placed(tree):
        specs = {"layers": {"w": P(None, "x", "y"), "norm": P(None, "y")}, "embed": P("x", "y"), "bias": P(("x", "y"))}
        return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), tree, specs)

    want = static_merge(method, base, experts, KEY)
    got = static_merge(method, placed(base), [placed(expert) for expert in experts], KEY)
    close(got, f64(want), 1e-6)
    for leaf, place in zip(jax.tree.leaves(got), jax.tree.leaves(placed(base)), strict=True):
        assert leaf.sharding.is_equivalent_to(place.sharding, leaf.ndim)


def test_the_largest_entries_are_found_without_gathering_a_leaf():
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("x",))
    leaf = jax.ShapeDtypeStruct((1024, 64), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    text = find_cut.lower(leaf, leaf, np.asarray(9, np.uint32)).compile().as_text()
    gathered = [line for line in text.splitlines() if "all-gather" in line or "all-to-all" in line]
    assert not [line for line in gathered if "[1024,64]" in line or "[65536]" in line]


def test_no_compilation_for_other_values(compilations):
    base, *experts = trees(0, 2)
    ties(base, experts, [1.0, 2.0], [0.5, 0.3])
    assert compilations(lambda: ties(base, experts, [0.3, 0.2], [0.1, 0.9])) == 0


@pytest.mark.exhaustive
def test_under_jit(assert_close):
    base, *experts = trees(0, 2)
    for method in ("ties", "dare", "task_arithmetic"):
        got = jax.jit(lambda b, e, method=method: static_merge(method, b, e, KEY))(base, experts)
        assert_close(got, static_merge(method, base, experts, KEY), 1e-6)


def test_keep_counts():
    assert [int(keep_counts(d, n)) for d, n in ((0.29, 100), (0.001, 10), (1.0, 7), (0.5, 7))] == [28, 1, 7, 3]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_densities_out_of_range(density):
    base, *experts = trees(0, 2)
    with pytest.raises(InputError, match="expected a density above 0 and at most 1"):
        ties(base, experts, densities=[0.5, density])


@pytest.mark.exhaustive
def test_refused():
    base, *experts = trees(0, 3)
    with pytest.raises(InputError, match="expected two experts for SLERP, got 3"):
        slerp(base, experts)
    with pytest.raises(InputError, match="expected one weight for each of 3 experts, got 2"):
        task_arithmetic(base, experts, [1.0, 2.0])
    with pytest.raises(InputError, match="at least one expert"):
        uniform(base, [])
    with pytest.raises(InputError, match="at least one model"):
        linear([])
    with pytest.raises(InputError, match="sum other than zero"):
        linear(experts[:2], [1.0, -1.0])
    with pytest.raises(InputError, match="expected a key"):
        static_merge("dare", base, experts)
    with pytest.raises(InputError, match="'soup'"):
        static_merge("soup", base, experts)
    with pytest.raises(InputError, match="expert 1"):
        ties(base, [experts[0], {"w": jnp.ones(2)}])
    with pytest.raises(InputError, match="no value for the leaf"):
        ties(base, experts, [{"embed": 1.0}, 1.0, 1.0])


@pytest.mark.parametrize("rescale", ["L1", False, None])
def test_rescale_must_be_known(rescale):
    base, *experts = trees(0, 2)
    with pytest.raises(InputError, match=f"rescale to be one of none, density, l1, got {rescale!r}; choose one of them"):
        inspect.unwrap(mix)(base, experts, weights=1.0, scale=1.0, normalize=True, elect=True, rescale=rescale)


def test_numbers_of_numpy_and_jax(assert_identical):
    base, *experts = trees(0, 2)
    for half in (np.float32(0.5), np.float64(0.5), np.asarray(0.5), jnp.asarray(0.5)):
        assert_identical(ties(base, experts, half, half), ties(base, experts, 0.5, 0.5))


def test_one_tree_for_all_experts_is_refused():
    with pytest.raises(InputError, match="list with one density for each of 2 experts, got a mapping for the density; make"):
        inspect.unwrap(entries)({"w": 0.5}, 2, "density")


@pytest.mark.parametrize(
    ("change", "got"), [(lambda m: m.pop("bias"), "none"), (lambda m: m.update(bias=np.ones(1, bool)), r"\(1,\)")]
)
def test_masks_must_be_like_the_base(change, got):
    base, *experts = trees(0, 2)
    masks = [jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), base) for _ in experts]
    change(masks[1])
    with pytest.raises(InputError, match=rf"mask of shape \(16,\) for the leaf 'bias' of expert 1, got {got} in masks"):
        dare(KEY, base, experts, masks=masks)


def test_a_matrix_of_one_column_is_one_tensor(assert_identical):
    shapes = {"head": (16, 1), "layers/kernel": (2, 16, 1), "layers/norm": (2, 1), "layers/q_bias": (2, 4, 1)}
    assert [stack_axes(path, jnp.zeros(shape)) for path, shape in shapes.items()] == [0, 1, 1, 2]
    base, *experts = [{"head": tree["bias"][:, None]} for tree in trees(0, 3)]
    as_vectors = [{"head": tree["head"][:, 0]} for tree in (base, *experts)]
    for merge in (lambda b, e: ties(b, e, densities=0.25), lambda b, e: slerp(b, e[:2], 0.3)):
        assert_identical(merge(base, experts)["head"][:, 0], merge(as_vectors[0], as_vectors[1:])["head"])


def test_the_tensors_of_a_leaf_may_be_chosen(assert_identical):
    """A leaf that is called a norm stacks vectors, unless ``stack`` says that it is one tensor."""
    base, *experts = [{"norm": tree["layers"]["norm"]} for tree in trees(0, 2)]
    flat = [{"norm": tree["norm"].reshape(-1)} for tree in (base, *experts)]
    whole = slerp(base, experts, 0.3, stack=lambda path, leaf: 0)["norm"]
    assert_identical(whole.reshape(-1), slerp(flat[0], flat[1:], 0.3)["norm"])
    assert not np.array_equal(whole, slerp(base, experts, 0.3)["norm"])
    values = [{"norm": np.linspace(0.1, 1, 24).reshape(3, 8)}, 1.0]

    def each(path, leaf):
        return leaf.ndim

    summed = linear(experts, values, normalize=False, stack=each)["norm"]
    assert_identical(summed[2, 7], (experts[0]["norm"] + experts[1]["norm"])[2, 7])
    assert task_arithmetic(base, experts, values, stack=each)["norm"].shape == (3, 8)
