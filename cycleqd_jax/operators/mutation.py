"""Mutation of task vectors: along singular directions (the paper's), or by Gaussian noise (its ablation)."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Key

from cycleqd_jax.operators.svd import Factors, MatrixPredicate, compose, is_matrix
from cycleqd_jax.types import Array, Float, InputError, PRNGKeyArray, PyTree, leaf_path, tree_paths

__all__ = ["gaussian_mutation", "matrix_keys", "mutation_coefficients", "svd_mutation"]


def matrix_keys(key: PRNGKeyArray, path: str, stack: tuple[int, ...]) -> Key[Array, "*stack"]:
    """A key for every matrix of a leaf.

    The key of a matrix depends only on the leaf's path and the index of the matrix in the stack. It does not depend on other
    leaves, the number of layers stacked after it, or the sharding of the leaf.

    Args:
        key: the key of the individual.
        path: the path of the leaf.
        stack: the leaf's leading axes.

    Returns:
        Keys of shape ``stack``.
    """
    leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    places = jnp.arange(math.prod(stack), dtype=jnp.uint32)
    return jax.vmap(functools.partial(jax.random.fold_in, leaf_key))(places).reshape(stack)


def _per_matrix(sample, keys: Key[Array, ...], stack: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    return jax.vmap(sample)(keys.reshape(-1)).reshape(*stack, *shape)


def mutation_coefficients(
    key: PRNGKeyArray, path: str, stack: tuple[int, ...], rank: int, w_max: float | Array = 0.3
) -> Float[Array, "*stack rank"]:
    """W ~ U[0, w_max]^r, independently for every matrix of a leaf (the paper's SVD-based mutation).

    Args:
        key: the key of the individual; a typed PRNG key.
        path: the path of the leaf.
        stack: the leaf's leading axes.
        rank: r.
        w_max: upper end of the uniform distribution.
    """
    keys = matrix_keys(key, path, stack)
    return _per_matrix(lambda k: jax.random.uniform(k, (rank,), jnp.float32, maxval=w_max), keys, stack, (rank,))


@jax.jit
def svd_mutation(
    key: PRNGKeyArray, tau: PyTree[Array], factors: Mapping[str, Factors], w_max: float | Array = 0.3
) -> PyTree[Array]:
    """τ_l + U_l (Σ_l ⊙ w) V_lᵀ for every matrix l, w ~ U[0, w_max]^r; other leaves are unchanged.

    The caller chooses the SVD. The reference code takes that of the active task's expert; a literal reading of the paper takes
    that of the child.

    Args:
        key: consumed; a typed PRNG key.
        tau: task vector of the child.
        factors: the result of :func:`~cycleqd_jax.operators.factorize`; leaves without factors are unchanged.
        w_max: upper end of the uniform distribution.

    Returns:
        The mutated task vector.

    Raises:
        InputError: there are factors of a leaf that ``tau`` does not have, or of a leaf of another shape.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import factorize, svd_mutation
    >>> tau = {"w": jnp.eye(3), "norm": jnp.ones(3)}
    >>> child = svd_mutation(jax.random.key(0), tau, factorize(tau), w_max=0.3)
    >>> bool((child["w"] != tau["w"]).any()), bool((child["norm"] == tau["norm"]).all())
    (True, True)
    """
    stray = sorted(set(factors) - {path for path, _ in tree_paths(tau)})
    if stray:
        raise InputError(
            f"expected factors of leaves of the task vector, got factors of {stray[0]!r}; factorize a tree like it"
        )
    w_max = jnp.asarray(w_max, jnp.float32)

    def mutate(path, leaf: Array) -> Array:
        name = leaf_path(path)
        if name not in factors:
            return leaf
        f = factors[name]
        *stack, rank = f.s.shape
        matrices = (*stack, f.u.shape[-2], f.vt.shape[-1])
        if (leaf.shape, f.u.shape, f.vt.shape) != (matrices, (*matrices[:-1], rank), (*stack, rank, matrices[-1])):
            raise InputError(
                f"expected factors of matrices of shape {leaf.shape} for leaf {name!r}, got u {f.u.shape}, s {f.s.shape} and "
                f"vt {f.vt.shape}; factorize a tree like the task vector"
            )
        w = mutation_coefficients(key, name, f.s.shape[:-1], f.s.shape[-1], w_max)
        return leaf + compose(f, w)

    return jax.tree_util.tree_map_with_path(mutate, tau)


@functools.partial(jax.jit, static_argnames="predicate")
def gaussian_mutation(
    key: PRNGKeyArray, tau: PyTree[Array], sigma: float | Array, predicate: MatrixPredicate = is_matrix
) -> PyTree[Array]:
    """τ_l + ε, ε ~ N(0, σ²) for every entry of every matrix l (the paper's ablation); other leaves are unchanged.

    Args:
        key: consumed; a typed PRNG key.
        tau: task vector of the child.
        sigma: standard deviation of the noise, in the units of the weights.
        predicate: which leaves are matrices.

    Returns:
        The mutated task vector.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import gaussian_mutation
    >>> child = gaussian_mutation(jax.random.key(0), {"w": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}, 0.01)
    >>> bool((child["w"] != 0).all()), bool((child["bias"] == 0).all())
    (True, True)
    """

    def mutate(path, leaf: Array) -> Array:
        name = leaf_path(path)
        if not predicate(name, leaf):
            return leaf
        stack, shape = leaf.shape[:-2], leaf.shape[-2:]
        noise = _per_matrix(lambda k: jax.random.normal(k, shape, jnp.float32), matrix_keys(key, name, stack), stack, shape)
        return leaf + jnp.asarray(sigma, jnp.float32) * noise

    return jax.tree_util.tree_map_with_path(mutate, tau)
