"""The placement of an :class:`~cycleqd_jax.genome.ExpertSpace` on a mesh, and checks of buffers that are overwritten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax import sharding
from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.genome.express import Coefficients, Parts, express_leaves
from cycleqd_jax.operators.task_vector import check_same_shapes
from cycleqd_jax.types import Array, Float, InputError, Params, PyTree, tree_paths

__all__ = ["check_out", "express_placed", "leaf_specs", "part_specs", "put"]


def leaf_specs(mesh: Mesh, specs: PyTree[P | NamedSharding], base: Params) -> dict[str, P]:
    """The partition spec of every leaf of the base, by path.

    Args:
        mesh: the devices.
        specs: a tree like the base.
        base: weights θ_base.

    Raises:
        InputError: the tree is not like the base, or a spec names an unknown axis or splits a dimension unevenly.
    """
    flat = {path: getattr(spec, "spec", spec) for path, spec in tree_paths(specs)}
    leaves = dict(tree_paths(base))
    for path, leaf in leaves.items():
        _check_spec(mesh, flat.get(path, P()), leaf.shape, path)
    if flat.keys() != leaves.keys():
        odd = min(flat.keys() ^ leaves.keys())
        raise InputError(
            f"expected a partition spec for every leaf of the base, got another tree at {odd!r}; build it from the base's axes"
        )
    return flat


def _check_spec(mesh: Mesh, spec: P, shape: tuple[int, ...], path: str) -> None:
    if len(spec) > len(shape):
        raise InputError(
            f"expected a partition spec of at most {len(shape)} dimensions for {path!r}, got {len(spec)} in {spec}; shorten it"
        )
    for size, axes in zip(shape, spec, strict=False):
        names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
        for name in names:
            if name not in mesh.shape:
                raise InputError(
                    f"expected an axis of the mesh {dict(mesh.shape)} in the partition spec of {path!r}, got {name!r}; use one "
                    "of its axes"
                )
        if size % math.prod(mesh.shape[name] for name in names):
            raise InputError(
                f"expected {axes!r} of the mesh {dict(mesh.shape)} to divide every dimension of {path!r} that it splits, got a "
                f"dimension of {size}; choose another mesh or spec"
            )


def part_specs(parts: Parts, spec: P) -> Parts:
    """Partition specs for all arrays that a leaf is made of.

    Args:
        parts: the parts of the leaf.
        spec: the partition spec of the leaf.

    Returns:
        ``parts`` with a spec in place of every array. What is split is never an axis that is summed over, so that no array
        moves between devices when weights are expressed.
    """
    axes = (*spec, *(None,) * (parts.base.ndim - len(spec)))
    *stack, m, n = axes if len(axes) > 1 else (None, None)

    def split(*names: Any) -> Any:
        return P(*names)

    def like(array: Any) -> Any:
        return None if array is None else spec

    basis = Basis(split(*stack, m, None, None), split(None, *stack, None), split(*stack, None, None, n))
    experts, updates = (tuple(map(like, arrays)) for arrays in (parts.experts, parts.updates))
    return Parts(like(parts.base), experts, updates, (basis,) * len(parts.bases))


def put(tree: PyTree, mesh: Mesh, specs: PyTree) -> PyTree:
    """Copies a tree of arrays to a mesh; ``specs`` has a partition spec for each of them."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda node: isinstance(node, P))
    return sharding.put(tree, shardings)


def express_placed(
    parts: Sequence[Parts],
    mixing: Float[Array, "k ..."],
    coefficients: Sequence[Coefficients],
    outs: Sequence[Array | None],
    mesh: Mesh | None,
    specs: Sequence[P] | None,
) -> list[Array]:
    """:func:`~cycleqd_jax.genome.express.express_leaves` on a mesh: each device computes its part from its own parts.

    Args:
        parts: see ``express_leaves``.
        mixing: see ``express_leaves``; every device has all of it.
        coefficients: see ``express_leaves``.
        outs: see ``express_leaves``.
        mesh: the devices; None is one device.
        specs: the partition spec of every leaf; None with one device.
    """
    if mesh is None or specs is None:
        return express_leaves(parts, mixing, coefficients, outs)
    placed = [part_specs(x, spec) for x, spec in zip(parts, specs, strict=True)]
    local = jax.shard_map(
        express_leaves,
        mesh=mesh,
        in_specs=(placed, P(), [tuple(b.s for b in x.bases) for x in placed], [x.base for x in placed]),
        out_specs=[x.base for x in placed],
        check_vma=False,  # the check does not support the mesh axis of a vmapped population
    )
    made = [jnp.zeros_like(x.base) if out is None else out for x, out in zip(parts, outs, strict=True)]
    return local(parts, mixing, coefficients, made)


def check_out(out: PyTree, base: Params, needed: PyTree) -> None:
    """Checks that weights may be overwritten; otherwise XLA would crash, or ignore the donation silently.

    Args:
        out: the weights to overwrite.
        base: weights θ_base, whose dtypes and places ``out`` must have.
        needed: arrays that must not be overwritten.

    Raises:
        InputError: ``out`` is not like the base, lies elsewhere, or shares memory with ``needed``.
    """
    check_same_shapes(out, base, "the weights to overwrite")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((out, needed))):
        return
    used = {pointer for leaf in jax.tree.leaves(needed) for pointer in _pointers(leaf)}
    for (path, leaf), like in zip(tree_paths(out), jax.tree.leaves(base), strict=True):
        if not isinstance(leaf, jax.Array) or leaf.dtype != like.dtype or leaf.is_deleted():
            raise InputError(
                f"expected a live jax.Array of dtype {like.dtype} as leaf {path!r} of the weights to overwrite, got another "
                "dtype, kind or a deleted array; pass expressed weights"
            )
        if isinstance(like, jax.Array) and not leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim):
            raise InputError(
                f"expected leaf {path!r} of the weights to overwrite on the devices of the base, got it elsewhere; pass "
                "expressed weights"
            )
        pointers = _pointers(leaf)
        if pointers & used:
            raise InputError(
                f"expected weights to overwrite that are not needed any more, got leaf {path!r}, which is still needed; pass "
                "expressed weights"
            )
        used |= pointers


def _pointers(leaf: Any) -> set[int]:
    """The addresses of an array on its devices."""
    if not isinstance(leaf, jax.Array) or leaf.size == 0 or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return set()
    return {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}
