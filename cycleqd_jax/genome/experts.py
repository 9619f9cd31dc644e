"""Experts of both genome spaces: checks, sorting into dense and low-rank changes, and stacked task vectors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cycleqd_jax.operators.adapter import check_updates, dense_update
from cycleqd_jax.operators.task_vector import check_same_shapes, task_vector
from cycleqd_jax.types import Adapter, AnyArray, Array, InputError, Int, LowRank, Params, tree_paths

__all__ = ["Index", "are_finite", "check_expert", "check_experts", "check_rank", "sort_leaves", "stacked_task_vectors"]

Index = int | np.integer | Int[AnyArray, ""]
"""The index of an expert, possibly traced."""


def check_expert(k: Index, count: int) -> None:
    """Checks the index of an expert; a traced index can't be checked.

    Raises:
        InputError: ``k`` is not in 0 … count − 1.
    """
    if not isinstance(k, Tracer) and not 0 <= int(k) < count:
        raise InputError(f"expected one of the experts 0 to {count - 1}, got {k}; correct the index")


def check_rank(rank: Any) -> int | None:
    """Checks the rank of an operator.

    Args:
        rank: an integer, also one of NumPy, or None.

    Returns:
        The rank as Python's int, or None.

    Raises:
        InputError: it is not a positive integer or None.
    """
    if rank is None:
        return None
    try:
        number = 0 if isinstance(rank, bool | np.bool_) else operator.index(rank)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"expected rank to be a positive integer, or null for full rank, got {rank}; correct the config")
    return number


def check_experts(base: Params, experts: Sequence[Params | Adapter]) -> None:
    """Checks that experts can be merged.

    Args:
        base: weights of the base model.
        experts: the weights of each expert, a tree like ``base``, or its adapter.

    Raises:
        InputError: there are fewer than two experts, or one differs from the base in structure, shape or dtype, or has NaN or
            infinity. The message names the expert and the leaf.
    """
    if len(experts) < 2:
        raise InputError(f"expected at least two experts to merge, got {len(experts)}; add experts")
    reference = dict(tree_paths(base))
    for name, expert in [("the base", base), *((f"expert {k}", expert) for k, expert in enumerate(experts))]:
        if isinstance(expert, Adapter):
            check_updates(expert, base, name)
            for path, finite in zip(expert.updates, are_finite(list(expert.updates.values())), strict=True):
                if not finite:
                    raise InputError(
                        f"expected a finite update of {path!r} in {name}, got NaN or infinity; use another adapter"
                    )
            continue
        check_same_shapes(expert, base, name)
        for (path, leaf), finite in zip(tree_paths(expert), are_finite(jax.tree.leaves(expert)), strict=True):
            if leaf.dtype != reference[path].dtype:
                raise InputError(
                    f"expected dtype {reference[path].dtype} of the base for leaf {path!r}, got {leaf.dtype} in {name}; "
                    "convert one of them"
                )
            if not finite:
                raise InputError(
                    f"expected finite weights, got NaN or infinity in leaf {path!r} of {name}; use another checkpoint"
                )


def are_finite(trees: Sequence[Any]) -> list[bool]:
    """Whether each tree has finite leaves only. One program for all trees starts much sooner than one for each leaf."""
    return [bool(finite) for finite in jax.device_get(_are_finite(trees))]


@jax.jit
def _are_finite(trees: Sequence[Any]) -> list[Array]:
    return [jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all() for tree in trees]


def sort_leaves(base: Params, experts: Sequence[Params | Adapter], densify: bool) -> tuple[list[str], list[str]]:
    """Sorts leaves into dense ones, kept as task vectors, and low-rank ones, kept as factors.

    Args:
        base: weights of the base model.
        experts: checked by :func:`check_experts`. An expert given by its weights changes as a whole every leaf that some such
            expert has with other values than the base. Leaves that fine-tuning froze in all experts need no basis.
        densify: make a leaf dense that some experts change by low-rank updates and others as a whole.

    Returns:
        The paths of dense leaves and of low-rank leaves, in the order of the base, without leaves that no expert changes.

    Raises:
        InputError: experts change a leaf in both ways and ``densify`` is false, or all are adapters that change no leaf.
    """
    dense, low_rank = [], []
    changed = _changed_by_weights(base, [expert for expert in experts if not isinstance(expert, Adapter)])
    for path, leaf in tree_paths(base):
        by_factors, as_whole = [], []
        for k, expert in enumerate(experts):
            if not isinstance(expert, Adapter):
                as_whole += [k] if path in changed else []
            elif path in expert.updates:
                (by_factors if isinstance(expert.updates[path], LowRank) else as_whole).append(k)
        if by_factors and as_whole and not densify:
            raise InputError(
                f"expected one kind of change of {path!r}, got a low-rank update by expert {by_factors[0]} and a change of the "
                f"whole leaf by expert {as_whole[0]}; set densify=True (in a config, genome.densify) to allow an array of "
                f"shape {tuple(leaf.shape)} for the update, or use adapters for all experts"
            )
        if as_whole:
            dense.append(path)
        elif by_factors:
            low_rank.append(path)
    if not dense and not low_rank and all(isinstance(expert, Adapter) for expert in experts):
        raise InputError("expected experts that change the base, got none that changes any leaf; check the experts")
    return dense, low_rank


def _changed_by_weights(base: Params, experts: Sequence[Params]) -> set[str]:
    """The paths of leaves that differ from the base in some expert."""
    paths, leaves = [path for path, _ in tree_paths(base)], jax.tree.leaves(base)
    found = [jax.device_get(_differ(leaves, jax.tree.leaves(expert))) for expert in experts]
    return {path for flags in found for path, flag in zip(paths, flags, strict=True) if flag}


@jax.jit
def _differ(ones: Sequence[Any], others: Sequence[Any]) -> list[Array]:
    return [jnp.any(one != other) for one, other in zip(ones, others, strict=True)]


def stacked_task_vectors(base: Params, experts: Sequence[Params | Adapter]) -> dict[str, Array]:
    """τ_1 … τ_K of the experts on a leading axis, by the path of the leaf.

    Args:
        base: weights of the base model.
        experts: checked by :func:`check_experts`. Low-rank updates are multiplied out.

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
