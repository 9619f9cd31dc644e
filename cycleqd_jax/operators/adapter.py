"""Experts given as what they add to their base: low-rank updates (LoRA) and updates of whole leaves."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Adapter, Array, Float, InputError, LowRank, Params, leaf_path, tree_paths

__all__ = ["apply_adapter", "check_updates", "dense_update"]


def check_updates(adapter: Adapter, base: Params, what: str = "the adapter") -> None:
    """Refuses an adapter that does not fit a base.

    Args:
        adapter: the adapter to check.
        base: weights θ_base (arrays or ``ShapeDtypeStruct``).
        what: how to call the adapter in the error.

    Raises:
        InputError: naming the first update that is of no leaf of the base, of another shape, or not floating point.
    """
    leaves = dict(tree_paths(base))
    for path, update in adapter.updates.items():
        if path not in leaves:
            raise InputError(f"{what} changes {path!r}, which is no leaf of the base: they must share one architecture.")
        expected = tuple(leaves[path].shape)
        if isinstance(update, LowRank):
            a, b = tuple(update.a.shape), tuple(update.b.shape)
            fits = len(a) == len(b) == len(expected) >= 2 and (*a[:-1], *b[-1:]) == expected and b[:-1] == (*a[:-2], a[-1])
            got = f"factors of shapes {a} and {b}"
        else:
            fits, got = tuple(update.shape) == expected, f"shape {tuple(update.shape)}"
        if not fits:
            raise InputError(
                f"{what}: its update of {path!r} has {got}, the base has {expected}: they must share one architecture and "
                "vocabulary."
            )
        for part in jax.tree.leaves(update):
            if not jnp.issubdtype(part.dtype, jnp.floating):
                raise InputError(
                    f"{what}: its update of {path!r} has dtype {part.dtype}: an update is of floating-point numbers."
                )


def dense_update(update: LowRank | Array | np.ndarray) -> Float[Array, "*shape"]:
    """What an update adds to its leaf: the product a @ b of a low-rank one, another as it is.

    Args:
        update: of one leaf.

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
    """θ = θ_base + a @ b leaf by leaf: the adapter merged into its base.

    The product and the sum are taken in float32 and cast once to the dtypes of the base.

    Args:
        base: weights θ_base.
        adapter: what to add.

    Returns:
        Weights with the dtypes of ``base``; leaves that the adapter does not name are those of the base.

    Raises:
        InputError: see :func:`check_updates`.
    """
    check_updates(adapter, base)
    return _apply(base, dict(adapter.updates))
