"""Experts as adapters of their base: low-rank updates (LoRA) and updates of whole leaves."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Adapter, Array, Float, InputError, LowRank, Params, leaf_path, tree_paths

__all__ = ["apply_adapter", "check_updates", "dense_update"]


def check_updates(adapter: Adapter, base: Params, what: str = "the adapter") -> None:
    """Checks that an adapter matches a base.

    Args:
        adapter: the adapter to check.
        base: weights θ_base (arrays or ``ShapeDtypeStruct``).
        what: the name of the adapter in the error.

    Raises:
        InputError: an update is for a leaf that the base does not have, has another shape, or is not floating point. The
            message names the first one.
    """
    leaves = dict(tree_paths(base))
    for path, update in adapter.updates.items():
        if path not in leaves:
            raise InputError(f"expected updates of leaves of the base, got {path!r} in {what}; use models of one architecture")
        expected = tuple(leaves[path].shape)
        if isinstance(update, LowRank):
            a, b = tuple(update.a.shape), tuple(update.b.shape)
            fits = len(a) == len(b) == len(expected) >= 2 and (*a[:-1], *b[-1:]) == expected and b[:-1] == (*a[:-2], a[-1])
            got = f"factors of shapes {a} and {b}"
        else:
            fits, got = tuple(update.shape) == expected, f"shape {tuple(update.shape)}"
        if not fits:
            raise InputError(
                f"expected shape {expected} of the base for the update of {path!r}, got {got} in {what}; use models of one "
                "architecture and vocabulary"
            )
        for part in jax.tree.leaves(update):
            if not jnp.issubdtype(part.dtype, jnp.floating):
                raise InputError(
                    f"expected a floating-point update of {path!r}, got dtype {part.dtype} in {what}; convert the update"
                )


def dense_update(update: LowRank | Array | np.ndarray) -> Float[Array, "*shape"]:
    """What an update adds to its leaf: the product a @ b of a low-rank update, or the update of a whole leaf.

    Args:
        update: the update of one leaf.

    Returns:
        An array of the leaf's shape, float32.
    """
    if isinstance(update, LowRank):
        return jnp.matmul(jnp.asarray(update.a, jnp.float32), jnp.asarray(update.b, jnp.float32), precision=HIGHEST)
    return jnp.asarray(update, jnp.float32)


@jax.jit
def _apply(base: Params, updates: Mapping[str, LowRank | Array]) -> Params:
    def leaf(path, weights: Array) -> Array:
        name = leaf_path(path)
        if name not in updates:
            return weights
        return (weights.astype(jnp.float32) + dense_update(updates[name])).astype(weights.dtype)

    return jax.tree_util.tree_map_with_path(leaf, base)


def apply_adapter(base: Params, adapter: Adapter) -> Params:
    """Merges an adapter into its base: θ = θ_base + a @ b for every leaf.

    The product and the sum are taken in float32 and cast once to the dtypes of the base.

    Args:
        base: weights θ_base.
        adapter: the updates to add.

    Returns:
        Weights with the dtypes of ``base``, in arrays of their own; leaves without an update equal those of the base.

    Raises:
        InputError: see :func:`check_updates`.
    """
    check_updates(adapter, base)
    return _apply(base, dict(adapter.updates))
