"""Singular value decomposition of task vectors, batched over stacked layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cycleqd_jax.operators.threads import single_threaded_lapack
from cycleqd_jax.types import AnyArray, Array, Float, InputError, LowRank, PyTree, tree_paths

__all__ = [
    "Factors",
    "MatrixPredicate",
    "Method",
    "compose",
    "decompose",
    "factorize",
    "factorize_low_rank",
    "is_matrix",
    "is_norm_or_bias",
]

MatrixPredicate = Callable[[str, Array | jax.ShapeDtypeStruct], bool]
"""``predicate(path, leaf)``: whether SVD mutation acts on this leaf; paths have the form ``"layers/attn/q"``."""

HIGHEST = jax.lax.Precision.HIGHEST  # TensorFloat-32 would round the factors to 10 bits


Method = Literal["svd", "gram", "randomized"]
"""The method of decomposition: see :func:`decompose`."""

OVERSAMPLING, ITERATIONS = 16, 2
"""Of randomised subspace iteration: the directions beyond the rank, and the number of power iterations."""


class Factors(NamedTuple):
    """The decomposition U diag(s) Vᵀ of the matrices of one leaf; leading axes are those of the leaf.

    The method determines how close to orthonormal the directions are: see :func:`decompose`.

    Attributes:
        u: ``[*stack, m, r]``, orthonormal columns.
        s: ``[*stack, r]``, descending and nonnegative.
        vt: ``[*stack, r, n]``, orthonormal rows.
    """

    u: Float[AnyArray, "*stack m r"]
    s: Float[AnyArray, "*stack r"]
    vt: Float[AnyArray, "*stack r n"]


def is_matrix(path: str, leaf: AnyArray | jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is a matrix, or a stack of matrices, with more than one row and column.

    As in the reference code, mutation leaves everything with "norm" in its name unchanged, and biases, vectors and scalars
    too. Embeddings and ``lm_head`` are matrices.

    Args:
        path: the path of the leaf, as ``"layers/attn/q"``.
        leaf: an array or ``ShapeDtypeStruct``.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import is_matrix
    >>> is_matrix("layers/attn/q", jnp.zeros((2, 8, 8))), is_matrix("layers/norm", jnp.zeros((2, 8)))
    (True, False)
    """
    return leaf.ndim >= 2 and min(leaf.shape[-2:]) > 1 and not is_norm_or_bias(path)


def is_norm_or_bias(path: str) -> bool:
    """Whether a leaf with this path is called a norm or a bias, and so has vectors, however many axes it has."""
    name = path.lower()
    return "norm" in name or "bias" in name


_product = functools.partial(jnp.matmul, precision=HIGHEST)


def _transposed(x: AnyArray) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _svd(matrices: Array, rank: int) -> Factors:
    u, s, vt = jnp.linalg.svd(matrices, full_matrices=False)
    return Factors(u[..., :, :rank], s[..., :rank], vt[..., :rank, :])


def _gram(matrices: Array, rank: int) -> Factors:
    if matrices.shape[-2] > matrices.shape[-1]:
        u, s, vt = _gram(_transposed(matrices), rank)
        return Factors(_transposed(vt), s, _transposed(u))
    # Scaled, so that the squares of a small task vector do not underflow.
    scale = jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)
    scale = jnp.where(scale > 0, scale, 1.0)
    matrices = matrices / scale
    _, u = jnp.linalg.eigh(_product(matrices, _transposed(matrices)))  # ascending
    u = u[..., ::-1][..., :rank]
    rows = _product(_transposed(u), matrices)  # diag(s) Vᵀ; its norms are more precise than square roots of eigenvalues
    s = jnp.linalg.norm(rows, axis=-1)
    vt = rows / jnp.where(s > 0, s, 1.0)[..., None]
    order = jnp.argsort(-s, axis=-1)
    s = jnp.take_along_axis(s, order, -1)
    u = jnp.take_along_axis(u, order[..., None, :], -1)
    return Factors(u, s * scale[..., 0], jnp.take_along_axis(vt, order[..., None], -2))


def _randomized(matrices: Array, rank: int) -> Factors:
    *_stack, m, n = matrices.shape
    width = min(rank + OVERSAMPLING, m, n)
    # The same test matrix for all, from an explicit generator: results depend on no batch, device or global setting.
    y = _product(matrices, jax.random.normal(jax.random.key(0, impl="threefry2x32"), (n, width), jnp.float32))
    for _ in range(ITERATIONS):
        q = jnp.linalg.qr(y)[0]
        q = jnp.linalg.qr(_product(_transposed(matrices), q))[0]
        y = _product(matrices, q)
    q = jnp.linalg.qr(y)[0]
    u, s, vt = _svd(_product(_transposed(q), matrices), rank)
    return Factors(_product(q, u), s, vt)


_METHODS = {"svd": _svd, "gram": _gram, "randomized": _randomized}


@functools.partial(jax.jit, static_argnames=("rank", "method", "mesh"))
def _decompose(matrices: Float[Array, "*stack m n"], rank: int, method: Method, mesh: Mesh | None) -> Factors:
    one_by_one = functools.partial(_METHODS[method], rank=rank)
    if mesh is None:
        return one_by_one(matrices.astype(jnp.float32))
    *stack, m, n = matrices.shape
    flat = matrices.reshape(-1, m, n)
    count = len(flat)
    flat = jnp.pad(flat, ((0, -count % mesh.size), (0, 0), (0, 0)))
    # XLA does not partition calls of LAPACK and cuSOLVER, so that each device must get its own matrices.
    spread = P(mesh.axis_names)
    local = jax.shard_map(one_by_one, mesh=mesh, in_specs=spread, out_specs=spread)
    found = local(flat.astype(jnp.float32))
    return Factors(*(x[:count].reshape(*stack, *x.shape[1:]) for x in found))


def decompose(
    matrices: Float[Array, "*stack m n"], rank: int | None = None, method: Method = "svd", mesh: Mesh | None = None
) -> Factors:
    """A = U Σ Vᵀ for every matrix of a stack.

    Methods, all in float32; A is one matrix, ε = 6e-8 and σ_1 its largest singular value:

    - ``svd``: the routine of LAPACK or cuSOLVER. Singular values are accurate to a few ε σ_1; U and V are always orthonormal
      to rounding.
    - ``gram``: the eigenvectors of the smaller Gram matrix, for m ≤ n the columns of U; then diag(s) Vᵀ = Uᵀ A. Several times
      as fast. U is orthonormal to rounding, so that U diag(s) Vᵀ = U Uᵀ A is a projection of A, and equals A at full rank. But
      squaring halves the digits: directions below about √ε σ_1 = 3e-4 σ_1 are mixed with each other, and the corresponding
      rows of Vᵀ have norm one but are not orthogonal. Where s is zero, rows are zero.
    - ``randomized``: subspace iteration (Halko, Martinsson & Tropp 2011) with 16 extra directions and two passes, from a fixed
      test matrix. It needs products instead of decompositions, for ranks far below the matrix's. U and V are orthonormal to
      rounding. Leading directions are exact where singular values decay; otherwise the retained energy is nearly the best.

    On CPU the last bits depend on LAPACK's number of threads; :func:`single_threaded_lapack` sets it to one, so that results
    repeat on any number of cores.

    Args:
        matrices: one matrix or a stack.
        rank: keep the leading ``rank`` directions of each matrix; None, or a rank above ``min(m, n)``, keeps all.
        method: the decomposition; see above.
        mesh: distribute the matrices of the stack over all its devices; a stack that does not divide is padded with zeros. By
            default they are decomposed where they are. Results are equal to rounding, and with ``svd`` on CPU bit for bit.

    Returns:
        Float32 factors. They are NaN for a matrix with NaN or infinity.

    Raises:
        InputError: ``rank`` is not positive, or the method is unknown.
    """
    if method not in _METHODS:
        raise InputError(f"expected method to be one of {', '.join(_METHODS)}, got {method!r}; correct the config")
    if rank is not None and rank < 1:
        raise InputError(f"expected rank to be a positive integer, or null for full rank, got {rank}; correct the config")
    full = min(matrices.shape[-2:])
    return _decompose(matrices, full if rank is None else min(rank, full), method, mesh)


def factorize(
    tau: PyTree[Array],
    rank: int | None = None,
    predicate: MatrixPredicate = is_matrix,
    method: Method = "svd",
    mesh: Mesh | None = None,
) -> dict[str, Factors]:
    """τ_l = U_l Σ_l V_lᵀ for every matrix l of a task vector.

    On CPU it decomposes with one thread of LAPACK, so that results repeat bit for bit on any number of cores. This does not
    hold inside ``jax.jit``, whose program runs later; see :func:`single_threaded_lapack`.

    Args:
        tau: a task vector (see :func:`~cycleqd_jax.operators.task_vector`).
        rank: keep the leading ``rank`` directions of each matrix; None, or a rank above ``min(m, n)``, keeps all, which is
            exact.
        predicate: which leaves are matrices.
        method: see :func:`decompose`.
        mesh: see :func:`decompose`.

    Returns:
        The float32 factors of each matrix leaf, by path.

    Raises:
        InputError: ``rank`` is not positive, the method is unknown, or a leaf has NaN or infinity. Inside ``jax.jit`` values
            can't be checked; the factors are NaN instead.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import factorize
    >>> factors = factorize({"w": jnp.diag(jnp.array([1.0, 3.0])), "bias": jnp.ones(2)})
    >>> list(factors), factors["w"].s.tolist()
    (['w'], [3.0, 1.0])
    """
    factors = {}
    with single_threaded_lapack():
        for path, leaf in tree_paths(tau):
            if predicate(path, leaf):
                found = decompose(leaf, rank, method, mesh)
                if not isinstance(found.s, Tracer) and not bool(jnp.all(jnp.isfinite(jax.block_until_ready(found).s))):
                    raise InputError(
                        f"expected a matrix that can be decomposed as leaf {path!r}, got NaN, infinity or values near the "
                        "float32 maximum; correct the weights"
                    )
                factors[path] = found
    return factors


@jax.jit
def factorize_low_rank(update: LowRank) -> Factors:
    """A B = U Σ Vᵀ for every matrix of a low-rank update, from its factors without forming the product.

    With A = Q_a R_a and Bᵀ = Q_b R_b, the decomposition of the small core R_a R_bᵀ = U' Σ V'ᵀ gives U = Q_a U' and
    Vᵀ = (Q_b V')ᵀ, exactly. On CPU the last bits vary as described for :func:`decompose`.

    Args:
        update: a ``[*stack, m, r]`` and b ``[*stack, r, n]``.

    Returns:
        Float32 factors with ``min(m, n, r)`` directions. Zero columns of a and zero rows of b give zero singular values.
    """
    qa, ra = jnp.linalg.qr(update.a.astype(jnp.float32))
    qb, rb = jnp.linalg.qr(jnp.swapaxes(update.b.astype(jnp.float32), -1, -2))
    u, s, vt = jnp.linalg.svd(jnp.matmul(ra, jnp.swapaxes(rb, -1, -2), precision=HIGHEST), full_matrices=False)
    return Factors(jnp.matmul(qa, u, precision=HIGHEST), s, jnp.matmul(vt, jnp.swapaxes(qb, -1, -2), precision=HIGHEST))


def compose(factors: Factors, coefficients: Float[Array, "*stack r"] | None = None) -> Float[Array, "*stack m n"]:
    """U diag(c ⊙ s) Vᵀ for a stack of matrices, as one batched product.

    Args:
        factors: the factors of one leaf.
        coefficients: c, ``[*stack, r]``; None is all ones, which gives the (truncated) matrix.

    Returns:
        ``[*stack, m, n]``, float32.
    """
    s = factors.s if coefficients is None else factors.s * coefficients
    return jnp.matmul(factors.u * s[..., None, :], factors.vt, precision=HIGHEST)
