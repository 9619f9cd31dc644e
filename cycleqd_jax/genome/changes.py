"""What the experts of a space change: leaves as a whole, and leaves by a low rank."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cycleqd_jax.genome.basis import Basis, change_at, changes_of, low_rank_bases
from cycleqd_jax.types import Adapter, Array, Params, tree_paths

__all__ = ["low_rank_directions", "whole_changes"]


def whole_changes(
    base: Params, experts: Sequence[Params | Adapter], paths: Sequence[str]
) -> tuple[dict[str, tuple[Array, ...]], dict[str, tuple[Array | None, ...]]]:
    """The leaves that experts change as a whole.

    Args:
        base: weights θ_base.
        experts: one per task.
        paths: the paths of the leaves.

    Returns:
        By path, the experts' own arrays if all of them have weights, and otherwise τ of every expert, in float32 (None where it
        changes nothing).
    """
    leaves = dict(tree_paths(base))
    weights = [None if isinstance(expert, Adapter) else dict(tree_paths(expert)) for expert in experts]
    given: dict[str, tuple[Array, ...]] = {}
    updates: dict[str, tuple[Array | None, ...]] = {}
    for path in paths:
        if all(tree is not None for tree in weights):
            given[path] = tuple(tree[path] for tree in weights if tree is not None)
        else:
            updates[path] = tuple(
                None if change is None else change_at(leaves[path], change, (), whole)
                for change, whole in changes_of(path, experts)
            )
    return given, updates


def low_rank_directions(
    base: Params, experts: Sequence[Params | Adapter], paths: Sequence[str], chosen: Collection[str], rank: int | None
) -> tuple[dict[str, Basis], dict[str, Basis]]:
    """The directions of leaves that experts change by a low rank.

    Args:
        base: weights θ_base.
        experts: one per task.
        paths: the paths of the leaves.
        chosen: the paths of the leaves that mutation acts on.
        rank: directions that mutation acts on; None is all.

    Returns:
        By path, the directions that mutation acts on, and the others.
    """
    kept: dict[str, Basis] = {}
    remainders: dict[str, Basis] = {}
    for path, whole in low_rank_bases(base, experts, paths):
        full = whole.s.shape[-1]
        count = 0 if path not in chosen else full if rank is None else min(rank, full)
        if count > 0:
            kept[path] = whole.directions(slice(0, count))
        if count < full:
            remainders[path] = whole.directions(slice(count, full))
    return kept, remainders
