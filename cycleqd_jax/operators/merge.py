"""Weighted merging of many task vectors into one model."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.task_vector import apply_task_vector, check_same_shapes
from cycleqd_jax.types import Array, Float, InputError, Params, PyTree

__all__ = ["merge", "softmax_weights", "weighted_sum"]


def softmax_weights(fitnesses: Float[Array, " k"]) -> Float[Array, " k"]:
    """β = softmax(f_1*, …, f_K*): the weights of the archives' elites in the paper's aggregation (equation 5).

    Args:
        fitnesses: quality of each archive's elite.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import softmax_weights
    >>> softmax_weights(jnp.array([0.5, 0.5])).tolist()
    [0.5, 0.5]
    """
    return jax.nn.softmax(jnp.asarray(fitnesses, jnp.float32))


@jax.jit
def weighted_sum(stacked: PyTree[Array], weights: Float[Array, " k"]) -> PyTree[Array]:
    """Σ_k w_k x_k over the leading axis of every leaf, in float32.

    Args:
        stacked: a tree whose leaves have a leading axis of K task vectors (or genomes).
        weights: w, of any sign and sum.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import weighted_sum
    >>> weighted_sum({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, jnp.array([0.5, 0.5]))["w"].tolist()
    [2.0, 3.0]
    """
    weights = jnp.asarray(weights, jnp.float32)

    def total(x: Array) -> Array:
        return jnp.tensordot(weights, x.astype(jnp.float32), axes=1, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(total, stacked)


def merge(base: Params, task_vectors: Sequence[PyTree[Array]], weights: Sequence[float] | Array) -> Params:
    """θ = θ_base + Σ_k w_k τ_k (task arithmetic; uniform merging is w_k = 1/K).

    Args:
        base: weights θ_base.
        task_vectors: τ_1 … τ_K, trees like ``base``.
        weights: w_1 … w_K, of any sign and sum.

    Returns:
        Weights with the dtypes of ``base``; the sum is taken in float32.

    Raises:
        InputError: the numbers of weights and task vectors differ or are zero, or a tree differs from the base.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import merge
    >>> base, taus = {"w": jnp.ones(2)}, [{"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 4.0])}]
    >>> merge(base, taus, [0.5, 0.5])["w"].tolist()
    [2.0, 3.0]
    """
    if len(task_vectors) == 0 or len(weights) != len(task_vectors):
        raise InputError(
            f"expected one weight for each of at least one task vector to merge, got {len(weights)} for {len(task_vectors)}; "
            "correct the weights"
        )
    for k, tau in enumerate(task_vectors):
        check_same_shapes(tau, base, f"task vector {k}")
    leaves, tree = jax.tree.flatten(base)
    w = jnp.asarray(weights, jnp.float32)
    # Leaf by leaf: no more than the task vectors of one leaf are copied to be stacked.
    found = [
        apply_task_vector(leaf, weighted_sum(jnp.stack(taus), w))
        for leaf, *taus in zip(leaves, *map(jax.tree.leaves, task_vectors), strict=True)
    ]
    return tree.unflatten(found)
