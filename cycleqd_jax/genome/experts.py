"""What both genome spaces need of their experts: checked, sorted into dense and low-rank updates, and stacked."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from cycleqd_jax.operators.adapter import check_updates, dense_update
from cycleqd_jax.operators.task_vector import check_same_shapes, task_vector
from cycleqd_jax.types import Adapter, Array, InputError, Int, LowRank, Params, tree_paths

__all__ = ["check_expert", "check_experts", "sort_leaves", "stacked_task_vectors"]


def check_expert(k: int | Int[Array, ""], count: int) -> None:
    """Refuses the number of an expert that is not there; a traced one can't be looked at.

    Raises:
        InputError: when ``k`` is not in 0 … count − 1.
    """
    if not isinstance(k, Tracer) and not 0 <= int(k) < count:
        raise InputError(f"there are experts 0 to {count - 1}, but expert {k} was asked for.")


def check_experts(base: Params, experts: Sequence[Params | Adapter]) -> None:
    """Refuses experts that can't be merged.

    Args:
        base: weights of the base model.
        experts: weights of each expert, trees like ``base``, or what it adds to the base.

    Raises:
        InputError: with fewer than two experts, or when one differs from the base in structure, shape or dtype, or holds NaN
            or infinity; the message names the expert and the leaf.
    """
    if len(experts) < 2:
        raise InputError(f"evolution by merging needs at least two experts, got {len(experts)}.")
    reference = dict(tree_paths(base))
    for name, expert in [("the base", base), *((f"expert {k}", expert) for k, expert in enumerate(experts))]:
        if isinstance(expert, Adapter):
            check_updates(expert, base, name)
            for path, update in expert.updates.items():
                if not all(bool(jnp.all(jnp.isfinite(part))) for part in jax.tree.leaves(update)):
                    raise InputError(f"{name}: its update of {path!r} holds NaN or infinity: the adapter is broken.")
            continue
        check_same_shapes(expert, base, name)
        for path, leaf in tree_paths(expert):
            if leaf.dtype != reference[path].dtype:
                raise InputError(
                    f"{name}: leaf {path!r} has dtype {leaf.dtype}, the base has {reference[path].dtype}: convert one of them."
                )
            if not bool(jnp.all(jnp.isfinite(leaf))):
                raise InputError(f"{name}: leaf {path!r} holds NaN or infinity: the checkpoint is broken.")


def sort_leaves(base: Params, experts: Sequence[Params | Adapter], densify: bool) -> tuple[list[str], list[str]]:
    """Which leaves are held as task vectors, and which as factors; leaves that no expert changes are neither.

    Args:
        base: weights of the base model.
        experts: see :func:`check_experts`, which they passed. One that is given as weights changes every leaf.
        densify: leaves that some experts change by low-rank updates and others otherwise are dense.

    Returns:
        The paths of dense leaves and those of low-rank leaves, in the order of the base.

    Raises:
        InputError: there is such a leaf and ``densify`` is false, or no expert changes any leaf.
    """
    dense, low_rank = [], []
    for path, leaf in tree_paths(base):
        by_factors, otherwise = [], []
        for k, expert in enumerate(experts):
            if not isinstance(expert, Adapter):
                otherwise.append(k)
            elif path in expert.updates:
                (by_factors if isinstance(expert.updates[path], LowRank) else otherwise).append(k)
        if by_factors and otherwise and not densify:
            raise InputError(
                f"expert {by_factors[0]} changes {path!r} by a low-rank update, but expert {otherwise[0]} changes all of it: "
                f"give densify=True if the update may become an array of shape {tuple(leaf.shape)}, or give all as adapters."
            )
        if otherwise:
            dense.append(path)
        elif by_factors:
            low_rank.append(path)
    if not dense and not low_rank:
        raise InputError("none of the experts changes any leaf of the base: there is nothing to merge.")
    return dense, low_rank


def stacked_task_vectors(base: Params, experts: Sequence[Params | Adapter]) -> dict[str, Array]:
    """τ_1 … τ_K of the experts on a leading axis, by the path of the leaf.

    Args:
        base: weights of the base model.
        experts: see :func:`check_experts`, which they passed. Low-rank updates are multiplied out.

    Returns:
        Arrays ``[K, *shape]``, float32.
    """
    leaves = dict(tree_paths(base))

    def task_vectors(expert: Params | Adapter) -> dict[str, Array]:
        if not isinstance(expert, Adapter):
            return dict(tree_paths(task_vector(expert, base)))
        return {
            path: dense_update(expert.updates[path]) if path in expert.updates else jnp.zeros(leaves[path].shape, jnp.float32)
            for path in leaves
        }

    taus = [task_vectors(expert) for expert in experts]
    return {path: jnp.stack([tau[path] for tau in taus]) for path in leaves}
