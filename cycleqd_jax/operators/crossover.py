"""Linear crossover of task vectors, or of values that depend on them linearly."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.task_vector import check_same_shapes
from cycleqd_jax.types import Array, Float, InputError, PRNGKeyArray, PyTree

__all__ = ["crossover_weights", "linear_crossover", "normalize_weights"]

MIN_WEIGHT_SUM = 1e-3


def crossover_weights(key: PRNGKeyArray, mu: float = 1.0, sigma: float = 0.03) -> Float[Array, 2]:
    """The raw weights ω1, ω2 ~ N(μ, σ²) of the paper's crossover; they may be negative.

    Args:
        key: consumed.
        mu: μ.
        sigma: σ, the standard deviation.

    >>> import jax
    >>> from cycleqd_jax.operators import crossover_weights
    >>> crossover_weights(jax.random.key(0)).shape
    (2,)
    """
    return mu + sigma * jax.random.normal(key, (2,), jnp.float32)


def normalize_weights(omega: Float[Array, 2]) -> Float[Array, 2]:
    """(ω1, ω2) / (ω1 + ω2): weights that sum to one.

    The reference code always divides. Here a pair whose sum is within 1e-3 of zero gives the mean of the parents, because the
    quotient would make the child arbitrarily large.

    Args:
        omega: raw weights.

    Raises:
        InputError: there are not two weights.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import normalize_weights
    >>> normalize_weights(jnp.array([3.0, 1.0])).tolist()
    [0.75, 0.25]
    """
    if jnp.shape(omega) != (2,):
        raise InputError(
            f"expected the weights of two parents, of shape (2,), got shape {jnp.shape(omega)} in omega; pass two numbers, and "
            "use jax.vmap for several pairs of parents"
        )
    total = jnp.sum(omega)
    safe = ~(jnp.abs(total) < MIN_WEIGHT_SUM)  # NaN stays NaN
    return jnp.where(safe, omega / jnp.where(safe, total, 1.0), 0.5)


@jax.jit
def linear_crossover(parent1: PyTree[Array], parent2: PyTree[Array], omega: Float[Array, 2]) -> PyTree[Array]:
    """τ_child = ω1/(ω1+ω2) τ_p1 + ω2/(ω1+ω2) τ_p2 (the paper's crossover).

    One pair of weights serves the whole model. Crossing weights θ instead of task vectors τ gives the same child, since
    the weights sum to one.

    Args:
        parent1: the task vector (or genome) of the first parent.
        parent2: the task vector of the second parent, the same tree of shapes.
        omega: raw weights, see :func:`crossover_weights`.

    Returns:
        The child, float32.

    Raises:
        InputError: the trees differ, and the message names the leaf; or there are not two weights.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import linear_crossover
    >>> linear_crossover({"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([4.0, 4.0])}, jnp.array([3.0, 1.0]))["w"].tolist()
    [1.0, 4.0]
    """
    check_same_shapes(parent2, parent1, "the second parent", "first parent")
    w = normalize_weights(jnp.asarray(omega, jnp.float32))

    # p1 + w2 (p2 − p1) instead of w1 p1 + w2 p2: the child of equal parents is exactly equal to them
    def cross(p1: Array, p2: Array) -> Array:
        p1, p2 = p1.astype(jnp.float32), p2.astype(jnp.float32)
        return p1 + w[1] * (p2 - p1)

    return jax.tree.map(cross, parent1, parent2)
