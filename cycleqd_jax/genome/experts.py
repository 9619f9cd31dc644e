"""What both genome spaces need of their experts: checked, stacked task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.task_vector import check_same_shapes, task_vector
from cycleqd_jax.types import Array, InputError, Int, Params, PyTree, tree_paths

__all__ = ["check_expert", "stacked_task_vectors"]


def check_expert(k: int | Int[Array, ""], count: int) -> None:
    """Refuses the number of an expert that is not there; a traced one can't be looked at.

    Raises:
        InputError: when ``k`` is not in 0 … count − 1.
    """
    if isinstance(k, int) and not 0 <= k < count:
        raise InputError(f"there are experts 0 to {count - 1}, but expert {k} was asked for.")


def stacked_task_vectors(base: Params, experts: Sequence[Params]) -> PyTree[Array]:
    """τ_1 … τ_K of the experts on a leading axis.

    Args:
        base: weights of the base model.
        experts: weights of each expert, trees like ``base``.

    Returns:
        A tree like ``base`` with float32 leaves ``[K, *shape]``.

    Raises:
        InputError: with fewer than two experts, or when one differs from the base in structure, shape or dtype, or holds NaN
            or infinity; the message names the expert and the leaf.
    """
    if len(experts) < 2:
        raise InputError(f"evolution by merging needs at least two experts, got {len(experts)}.")
    reference = dict(tree_paths(base))
    for name, params in [("the base", base), *((f"expert {k}", expert) for k, expert in enumerate(experts))]:
        check_same_shapes(params, base, name)
        for path, leaf in tree_paths(params):
            if leaf.dtype != reference[path].dtype:
                raise InputError(
                    f"{name}: leaf {path!r} has dtype {leaf.dtype}, the base has {reference[path].dtype}: convert one of them."
                )
            if not bool(jnp.all(jnp.isfinite(leaf))):
                raise InputError(f"{name}: leaf {path!r} holds NaN or infinity: the checkpoint is broken.")
    taus = [task_vector(expert, base) for expert in experts]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *taus)
