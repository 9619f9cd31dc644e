"""The singular directions of all experts, laid out so that the sum over experts is one matrix product."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from cycleqd_jax.genome.experts import sort_leaves
from cycleqd_jax.operators.adapter import dense_update
from cycleqd_jax.operators.svd import HIGHEST, Factors, MatrixPredicate, Method, decompose, factorize_low_rank, is_matrix
from cycleqd_jax.types import Adapter, Array, Float, InputError, Int, LowRank, Params, tree_paths

__all__ = [
    "Basis",
    "Sketch",
    "basis_of",
    "change_at",
    "changes_of",
    "default_factor_dtype",
    "dense_bases",
    "low_rank_bases",
    "matrix_leaves",
    "sketch",
]

_PROJECTIONS = 3


class Basis(NamedTuple):
    """U_k, s_k and V_kᵀ of the experts of one leaf; leading axes are those of the leaf.

    Attributes:
        u: ``[*stack, m, K, r]``: seen as ``[m, K r]`` it is the left side of a product.
        s: ``[K, *stack, r]``, float32, as coefficients are kept.
        vt: ``[*stack, K, r, n]``: seen as ``[K r, n]`` its right side, in the dtype of u.
    """

    u: Float[Array, "*stack m k r"]
    s: Float[Array, "k *stack r"]
    vt: Float[Array, "*stack k r n"]

    def of(self, k: int) -> Factors:
        """The factors of expert k, u ``[*stack, m, r]``, s ``[*stack, r]``, vt ``[*stack, r, n]``."""
        return Factors(self.u[..., k, :], self.s[k], self.vt[..., k, :, :])

    def directions(self, some: slice) -> Basis:
        """Some of the r directions of every expert."""
        return Basis(self.u[..., some], self.s[..., some], self.vt[..., some, :])

    def astype(self, dtype: DTypeLike) -> Basis:
        """The directions u and vt rounded to a dtype; s stays float32."""
        dtype = jnp.dtype(dtype)
        return self if self.u.dtype == dtype else Basis(self.u.astype(dtype), self.s, self.vt.astype(dtype))


class Sketch(NamedTuple):
    """Few numbers that tell a task vector from another, of every matrix of a leaf, in float64.

    Attributes:
        energies: ‖τ_k‖², ``[K, *stack]``; zero where the expert is the base, and only there.
        projections: uᵀ τ_k v for some fixed pairs of vectors, ``[K, *stack, 3]``. Their entries have random signs and sizes
            from 1 to 2: a change δ of one element moves all by δ or more, and rows that swap places move them too.
    """

    energies: Float[np.ndarray, "k ..."]
    projections: Float[np.ndarray, "k ... pairs"]


def default_factor_dtype(weights: DTypeLike) -> np.dtype:
    """Of the directions that mutation acts on: bfloat16 where the weights of the model are, float32 elsewhere."""
    return jnp.dtype(jnp.bfloat16 if jnp.dtype(weights) == jnp.bfloat16 else jnp.float32)


def basis_of(factors: Sequence[Factors]) -> Basis:
    """The basis of the factors of every expert, which have one rank."""
    return Basis(
        jnp.stack([f.u for f in factors], axis=-2),
        jnp.stack([f.s for f in factors]),
        jnp.stack([f.vt for f in factors], axis=-3),
    )


def matrix_leaves(
    base: Params, experts: Sequence[Params | Adapter], *, densify: bool = False, predicate: MatrixPredicate = is_matrix
) -> tuple[list[str], list[str]]:
    """The leaves whose singular directions mutation acts on.

    Args:
        base: weights θ_base.
        experts: of each task.
        densify: see :func:`~cycleqd_jax.genome.experts.sort_leaves`.
        predicate: which leaves are matrices.

    Returns:
        The paths of those that some expert changes as a whole (:func:`dense_bases` decomposes them), and of those that are
        changed by low-rank updates alone (:func:`low_rank_bases`); in the order of the base.

    Raises:
        InputError: see :func:`~cycleqd_jax.genome.experts.sort_leaves`.
    """
    leaves = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in tree_paths(base)}
    dense, low_rank = sort_leaves(base, experts, densify)
    return tuple([path for path in paths if predicate(path, leaves[path])] for paths in (dense, low_rank))  # type: ignore


@functools.partial(jax.jit, static_argnames="weights")
def change_at(base: Array, change: LowRank | Array | None, at: tuple[Int[Array, ""], ...], weights: bool) -> Array:
    """τ of one matrix of a leaf, float32; nothing larger than it is made.

    Args:
        base: θ_base of the leaf, ``[*stack, *rest]``.
        change: what the expert makes of it, see :func:`changes_of`.
        at: place of the matrix in the stack; ``()`` is all of the leaf.
        weights: ``change`` is θ, not τ.
    """
    if change is None:
        return jnp.zeros(base.shape[len(at) :], jnp.float32)
    if isinstance(change, LowRank):
        return dense_update(LowRank(change.a[at], change.b[at]))
    tau = change[at].astype(jnp.float32)
    return tau - base[at].astype(jnp.float32) if weights else tau


def changes_of(path: str, experts: Sequence[Params | Adapter]) -> list[tuple[LowRank | Array | None, bool]]:
    """What every expert makes of a leaf: its weights there (and True), or what it adds, None being nothing (and False)."""
    return [
        (_on_device(expert.updates.get(path)), False) if isinstance(expert, Adapter) else (dict(tree_paths(expert))[path], True)
        for expert in experts
    ]


def _on_device(change: Any) -> Any:
    return jax.tree.map(jnp.asarray, change)


def dense_bases(
    base: Params,
    experts: Sequence[Params | Adapter],
    paths: Sequence[str],
    rank: int | None,
    method: Method = "svd",
    mesh: Mesh | None = None,
) -> Iterator[tuple[str, Basis, Sketch]]:
    """Decomposes the task vectors of leaves, one matrix of one expert at a time on each device.

    Args:
        base: weights θ_base.
        experts: of each task.
        paths: of the leaves.
        rank: directions kept; None keeps all.
        method: see :func:`~cycleqd_jax.operators.svd.decompose`.
        mesh: decompose as many matrices at a time as it has devices, whatever its axes; of one process. On CPU the result is
            that of one device, bit for bit.

    Yields:
        The path, the basis, and the :func:`sketch` of what it is of: how much of a matrix the basis holds is
        ``sum(s**2) / ‖τ_k‖²``. A basis lies on the default device, or in the host's memory where a mesh is given: it may be
        larger than any of its devices, and :meth:`~cycleqd_jax.genome.ExpertSpace.shard` is what spreads it.

    Raises:
        InputError: a matrix has no decomposition, because its task vector is infinite.
    """
    leaves = dict(tree_paths(base))
    width = 1 if mesh is None else mesh.size
    for path in paths:
        leaf, changes = leaves[path], changes_of(path, experts)
        *stack, m, n = leaf.shape
        full = min(m, n)
        r, count = full if rank is None else min(rank, full), math.prod(stack)
        u = np.empty((count, m, len(experts), r), np.float32)
        s = np.empty((len(experts), count, r), np.float32)
        vt = np.empty((count, len(experts), r, n), np.float32)
        places = [np.unravel_index(i, stack) if stack else () for i in range(count)]
        work = [(k, i) for i in range(count) for k in range(len(experts))]
        for start in range(0, len(work), width):
            part = work[start : start + width]
            batch = _batch((change_at(leaf, changes[k][0], places[i], changes[k][1]) for k, i in part), (m, n), mesh)
            found = jax.tree.map(np.asarray, decompose(batch, rank, method, mesh))
            for j, (k, i) in enumerate(part):
                if not np.isfinite(found.s[j]).all():
                    raise InputError(f"expert {k}: its change of {path!r} can't be decomposed: it is not finite.")
                u[i, :, k], s[k, i], vt[i, k] = found.u[j], found.s[j], found.vt[j]
        k = len(experts)
        host: Any = (u.reshape(*stack, m, k, r), s.reshape(k, *stack, r), vt.reshape(*stack, k, r, n))
        yield path, Basis(*(host if mesh is not None else map(jnp.asarray, host))), sketch(base, experts, path)


def _batch(taus: Iterator[Array], shape: tuple[int, int], mesh: Mesh | None) -> Array:
    """Matrices ``[devices, m, n]``, each on its own device; what is lacking is zero, so that all batches are of one shape."""
    if mesh is None:
        return next(taus)[None]
    # waited for one by one: where they are computed there is room for one, not for as many as there are devices
    parts = [
        jax.block_until_ready(jax.device_put(tau[None], device)) for tau, device in zip(taus, mesh.devices.flat, strict=False)
    ]
    parts += [jnp.zeros((1, *shape), jnp.float32, device=device) for device in mesh.devices.flat[len(parts) :]]
    spread = NamedSharding(mesh, P(mesh.axis_names))
    return jax.make_array_from_single_device_arrays((mesh.size, *shape), spread, parts)


def sketch(base: Params, experts: Sequence[Params | Adapter], path: str) -> Sketch:
    """What is remembered of a leaf's task vectors, to know them again: rows summed in float32, all the rest in float64.

    Args:
        base: weights θ_base.
        experts: of each task.
        path: of the leaf.
    """
    leaf = dict(tree_paths(base))[path]
    *stack, m, n = leaf.shape
    rng = np.random.default_rng((m, n))
    v, u = (np.float32(rng.choice((-1, 1), (size, _PROJECTIONS)) * rng.uniform(1, 2, (size, _PROJECTIONS))) for size in (n, m))
    energies = np.empty((len(experts), *stack))
    projections = np.empty((len(experts), *stack, _PROJECTIONS))
    for k, (change, weights) in enumerate(changes_of(path, experts)):
        for i in np.ndindex(*stack):
            sums = _row_sums(leaf, change, tuple(map(np.int32, i)), weights, v)
            scale, squares, rows = (np.asarray(x, np.float64) for x in sums)
            energies[(k, *i)] = scale**2 * squares.sum()
            projections[(k, *i)] = scale * np.sum(u * rows, axis=0)
    return Sketch(energies, projections)


@functools.partial(jax.jit, static_argnames="weights")
def _row_sums(
    base: Array, change: LowRank | Array | None, at: tuple[Int[Array, ""], ...], weights: bool, v: Array
) -> tuple[Array, Array, Array]:
    """Largest |τ|, and of every row of τ divided by it the sum of squares and the products with v."""
    tau = change_at(base, change, at, weights)
    # scaled, so that small task vectors do not underflow when squared
    scale = jnp.max(jnp.abs(tau))
    tau = tau / jnp.where(scale > 0, scale, 1.0)
    return scale, jnp.sum(jnp.square(tau), axis=-1), jnp.matmul(tau, v, precision=HIGHEST)


def low_rank_bases(base: Params, experts: Sequence[Params | Adapter], paths: Sequence[str]) -> Iterator[tuple[str, Basis]]:
    """Decomposes low-rank updates; nothing of a leaf's size is made.

    Args:
        base: weights θ_base.
        experts: of each task.
        paths: of leaves that are changed by low-rank updates alone.

    Yields:
        The path and the basis, whose rank is the largest of the experts': what an expert lacks of it is zero, and all is where
        it does not change the leaf.

    Raises:
        InputError: an update has no decomposition: its factors are not finite, or their product is not. Traced ones, inside of
            ``jax.jit``, can't be looked at: their factors are NaN.
    """
    leaves = dict(tree_paths(base))

    def padded(factors: Factors, rank: int) -> Factors:
        def pad(x: Array, axis: int) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, rank - x.shape[axis])
            return jnp.pad(x, widths)

        return Factors(pad(factors.u, -1), pad(factors.s, -1), pad(factors.vt, -2))

    for path in paths:
        *stack, m, n = leaves[path].shape
        nothing = Factors(*(jnp.zeros((*stack, *shape), jnp.float32) for shape in ((m, 0), (0,), (0, n))))
        updates = [expert.updates.get(path) if isinstance(expert, Adapter) else None for expert in experts]
        factors = [factorize_low_rank(update) if isinstance(update, LowRank) else nothing for update in updates]
        for k, f in enumerate(factors):
            if not isinstance(f.s, Tracer) and not bool(jnp.all(jnp.isfinite(f.s))):
                raise InputError(
                    f"expert {k}: its low-rank update of {path!r} can't be decomposed: its factors, or their product, are not "
                    "finite in float32."
                )
        rank = max(f.s.shape[-1] for f in factors)
        yield path, basis_of([padded(f, rank) for f in factors])
