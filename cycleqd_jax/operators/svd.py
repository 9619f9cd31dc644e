"""Singular value decomposition of task vectors, batched over stacked layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.types import Array, Float, InputError, LowRank, PyTree, tree_paths

__all__ = ["Factors", "MatrixPredicate", "compose", "factorize", "factorize_low_rank", "is_matrix"]

MatrixPredicate = Callable[[str, Array | jax.ShapeDtypeStruct], bool]
"""``predicate(path, leaf)``: does SVD mutation act on this leaf? Paths read ``"layers/attn/q"``."""

HIGHEST = jax.lax.Precision.HIGHEST  # TensorFloat-32 would round the factors to 10 bits


class Factors(NamedTuple):
    """The decomposition U diag(s) Vᵀ of the matrices of one leaf; leading axes are those of the leaf.

    Attributes:
        u: ``[*stack, m, r]``, orthonormal columns.
        s: ``[*stack, r]``, descending.
        vt: ``[*stack, r, n]``, orthonormal rows.
    """

    u: Float[Array, "*stack m r"]
    s: Float[Array, "*stack r"]
    vt: Float[Array, "*stack r n"]


def is_matrix(path: str, leaf: Array | jax.ShapeDtypeStruct) -> bool:
    """Is this leaf a matrix, or a stack of matrices, of rank above one?

    As in the reference code everything with "norm" in its name passes through mutation unchanged, however it is stacked; so do
    biases, vectors and scalars. Embeddings and ``lm_head`` are matrices.

    Args:
        path: of the leaf, as ``"layers/attn/q"``.
        leaf: an array or ``ShapeDtypeStruct``.
    """
    name = path.lower()
    return leaf.ndim >= 2 and min(leaf.shape[-2:]) > 1 and "norm" not in name and "bias" not in name


@functools.partial(jax.jit, static_argnames="rank")
def _truncated_svd(matrices: Float[Array, "*stack m n"], rank: int) -> Factors:
    u, s, vt = jnp.linalg.svd(matrices.astype(jnp.float32), full_matrices=False)
    return Factors(u[..., :, :rank], s[..., :rank], vt[..., :rank, :])


def factorize(tau: PyTree[Array], rank: int | None = None, predicate: MatrixPredicate = is_matrix) -> dict[str, Factors]:
    """τ_l = U_l Σ_l V_lᵀ for every matrix l of a task vector.

    On CPU the last bits depend on how many threads LAPACK uses; runs of the ``cycleqd`` command set it to one
    (``OPENBLAS_NUM_THREADS=1`` before SciPy is imported), so that they repeat on any number of cores.

    Args:
        tau: a task vector (see :func:`~cycleqd_jax.operators.task_vector`).
        rank: keep the leading ``rank`` directions of each matrix; None keeps all ``min(m, n)``, which is exact. A rank above
            ``min(m, n)`` keeps all of them.
        predicate: which leaves are matrices.

    Returns:
        A dict from the path of each matrix leaf to its factors, float32.

    Raises:
        InputError: when ``rank`` is not positive.
    """
    if rank is not None and rank < 1:
        raise InputError(f"rank must be a positive integer, or null for full rank, but is {rank}.")
    factors = {}
    for path, leaf in tree_paths(tau):
        if predicate(path, leaf):
            full = min(leaf.shape[-2:])
            factors[path] = _truncated_svd(leaf, full if rank is None else min(rank, full))
    return factors


@jax.jit
def factorize_low_rank(update: LowRank) -> Factors:
    """A B = U Σ Vᵀ for every matrix of a low-rank update, from its factors: the product is never formed.

    With A = Q_a R_a and Bᵀ = Q_b R_b, the decomposition of the small core R_a R_bᵀ = U' Σ V'ᵀ gives U = Q_a U' and
    Vᵀ = (Q_b V')ᵀ, exactly. What :func:`factorize` says of the last bits on CPU holds here too.

    Args:
        update: a ``[*stack, m, r]`` and b ``[*stack, r, n]``.

    Returns:
        Factors of ``min(m, n, r)`` directions, float32. Zero columns of a, or rows of b, give zero singular values.
    """
    qa, ra = jnp.linalg.qr(update.a.astype(jnp.float32))
    qb, rb = jnp.linalg.qr(jnp.swapaxes(update.b.astype(jnp.float32), -1, -2))
    u, s, vt = jnp.linalg.svd(jnp.matmul(ra, jnp.swapaxes(rb, -1, -2), precision=HIGHEST), full_matrices=False)
    return Factors(jnp.matmul(qa, u, precision=HIGHEST), s, jnp.matmul(vt, jnp.swapaxes(qb, -1, -2), precision=HIGHEST))


def compose(factors: Factors, coefficients: Float[Array, "*stack r"] | None = None) -> Float[Array, "*stack m n"]:
    """U diag(c ⊙ s) Vᵀ for a stack of matrices, as one batched product.

    Args:
        factors: of one leaf.
        coefficients: c, ``[*stack, r]``; None is all ones, which gives the (truncated) matrix back.

    Returns:
        ``[*stack, m, n]``, float32.
    """
    s = factors.s if coefficients is None else factors.s * coefficients
    return jnp.matmul(factors.u * s[..., None, :], factors.vt, precision=HIGHEST)
