"""The singular directions of all experts, in a layout in which the sum over experts is one matrix product."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from cycleqd_jax.genome.experts import are_finite, sort_leaves
from cycleqd_jax.operators.adapter import dense_update
from cycleqd_jax.operators.svd import HIGHEST, Factors, MatrixPredicate, Method, decompose, factorize_low_rank, is_matrix
from cycleqd_jax.sharding import to_host
from cycleqd_jax.types import Adapter, AnyArray, Array, Float, InputError, Int, LowRank, Params, tree_paths

__all__ = [
    "Basis",
    "Sketch",
    "basis_bytes",
    "basis_of",
    "basis_shapes",
    "change_at",
    "changes_of",
    "check_bases",
    "default_factor_dtype",
    "dense_bases",
    "kept_rank",
    "low_rank_bases",
    "matrix_leaves",
    "sketch",
]

Shape = tuple[int, ...]

_PROJECTIONS = 3


class Basis(NamedTuple):
    """U_k, s_k and V_kᵀ of all experts for one leaf; ``*stack`` are the leading axes of the leaf.

    Attributes:
        u: ``[*stack, m, K, r]``; reshaped to ``[m, K r]`` it is the left side of a product.
        s: ``[K, *stack, r]``, float32, in the layout of coefficients.
        vt: ``[*stack, K, r, n]``; reshaped to ``[K r, n]`` it is the right side. Its dtype is that of u.
    """

    u: Float[AnyArray, "*stack m k r"]
    s: Float[AnyArray, "k *stack r"]
    vt: Float[AnyArray, "*stack k r n"]

    def of(self, k: int) -> Factors:
        """The factors of expert k, u ``[*stack, m, r]``, s ``[*stack, r]``, vt ``[*stack, r, n]``."""
        return Factors(self.u[..., k, :], self.s[k], self.vt[..., k, :, :])

    def directions(self, some: slice) -> Basis:
        """A slice of the r directions of every expert."""
        return Basis(self.u[..., some], self.s[..., some], self.vt[..., some, :])

    def astype(self, dtype: DTypeLike) -> Basis:
        """Casts u and vt to a dtype; s stays float32."""
        dtype = jnp.dtype(dtype)
        return self if self.u.dtype == dtype else Basis(self.u.astype(dtype), self.s, self.vt.astype(dtype))


class Sketch(NamedTuple):
    """A fingerprint of the task vectors of a leaf, per matrix, in float64.

    Attributes:
        energies: ‖τ_k‖², ``[K, *stack]``; zero exactly where the expert equals the base.
        projections: uᵀ τ_k v for three fixed pairs of vectors, ``[K, *stack, 3]``. Entries of the vectors have random signs and
            absolute values from 1 to 2: a change δ of one element changes every projection by at least δ, and swapped rows
            change them too.
    """

    energies: Float[np.ndarray, "k ..."]
    projections: Float[np.ndarray, "k ... pairs"]


def default_factor_dtype(weights: DTypeLike) -> np.dtype:
    """The default dtype of the directions that mutation acts on: bfloat16 for bfloat16 weights, otherwise float32."""
    return jnp.dtype(jnp.bfloat16 if jnp.dtype(weights) == jnp.bfloat16 else jnp.float32)


def kept_rank(shape: Sequence[int], rank: int | None) -> int:
    """The number of directions that are kept of a matrix: ``rank``, or all if there are fewer; None keeps all.

    Args:
        shape: the shape of the leaf, ``[*stack, m, n]``.
        rank: the maximum number of directions.
    """
    return min(shape[-2:]) if rank is None else min(rank, *shape[-2:])


def basis_shapes(shape: Sequence[int], experts: int, rank: int | None) -> tuple[Shape, Shape, Shape]:
    """The shapes of the :class:`Basis` of a leaf, field by field.

    Args:
        shape: the shape of the leaf, ``[*stack, m, n]``.
        experts: the number of experts.
        rank: see :func:`kept_rank`.
    """
    *stack, m, n = shape
    r = kept_rank(shape, rank)
    return (*stack, m, experts, r), (experts, *stack, r), (*stack, experts, r, n)


def basis_bytes(shape: Sequence[int], experts: int, rank: int | None) -> int:
    """The bytes of a float32 basis; see :func:`basis_shapes`."""
    return sum(4 * math.prod(field) for field in basis_shapes(shape, experts, rank))


def basis_of(factors: Sequence[Factors]) -> Basis:
    """The basis from the factors of every expert, which have the same rank."""
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
        experts: one per task.
        densify: see :func:`~cycleqd_jax.genome.experts.sort_leaves`.
        predicate: which leaves are matrices.

    Returns:
        The paths of leaves that some expert changes as a whole (see :func:`dense_bases`), and of leaves that are only changed
        by low-rank updates (see :func:`low_rank_bases`); in the order of the base.

    Raises:
        InputError: see :func:`~cycleqd_jax.genome.experts.sort_leaves`.
    """
    leaves = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in tree_paths(base)}
    dense, low_rank = sort_leaves(base, experts, densify)
    chosen = [[path for path in paths if predicate(path, leaves[path])] for paths in (dense, low_rank)]
    return chosen[0], chosen[1]


@functools.partial(jax.jit, static_argnames="weights")
def change_at(base: Array, change: LowRank | Array | None, at: tuple[Int[Array, ""], ...], weights: bool) -> Array:
    """τ of one matrix of a leaf, in float32; no larger array is created.

    Args:
        base: θ_base of the leaf, ``[*stack, *rest]``.
        change: the change of one expert, see :func:`changes_of`.
        at: the index of the matrix in the stack; ``()`` is the whole leaf.
        weights: whether ``change`` is θ rather than τ.
    """
    if change is None:
        return jnp.zeros(base.shape[len(at) :], jnp.float32)
    if isinstance(change, LowRank):
        return dense_update(LowRank(change.a[at], change.b[at]))
    tau = change[at].astype(jnp.float32)
    return tau - base[at].astype(jnp.float32) if weights else tau


def changes_of(path: str, experts: Sequence[Params | Adapter]) -> list[tuple[LowRank | Array | None, bool]]:
    """How every expert changes a leaf: ``(θ, True)`` for weights, ``(τ, False)`` or ``(None, False)`` for an adapter."""
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
        experts: one per task.
        paths: the paths of the leaves.
        rank: directions kept; None keeps all.
        method: see :func:`~cycleqd_jax.operators.svd.decompose`.
        mesh: decompose one matrix on each of its devices at a time, whatever its axes; for a single process. On CPU the
            result equals that of one device, bit for bit.

    Yields:
        The path, the basis, and the :func:`sketch` of the task vectors. The energy retained per matrix is
        ``sum(s**2) / ‖τ_k‖²``. The basis is on the default device. With a mesh it is in host memory, because it may be larger
        than one device; :meth:`~cycleqd_jax.genome.ExpertSpace.shard` distributes it.

    Raises:
        InputError: a matrix has no decomposition, because its task vector is not finite.
    """
    leaves = dict(tree_paths(base))
    width = 1 if mesh is None else mesh.size
    for path in paths:
        leaf, changes = leaves[path], changes_of(path, experts)
        *stack, m, n = leaf.shape
        r, count = kept_rank(leaf.shape, rank), math.prod(stack)
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
                    raise InputError(
                        f"expected a finite task vector of {path!r}, got NaN or infinity in expert {k}; correct its weights"
                    )
                u[i, :, k], s[k, i], vt[i, k] = found.u[j], found.s[j], found.vt[j]
        k = len(experts)
        basis = Basis(u.reshape(*stack, m, k, r), s.reshape(k, *stack, r), vt.reshape(*stack, k, r, n))
        yield path, basis if mesh is not None else jax.tree.map(jnp.asarray, basis), sketch(base, experts, path)


def _batch(taus: Iterator[Array], shape: tuple[int, int], mesh: Mesh | None) -> Array:
    """Matrices ``[devices, m, n]``, each on its own device; missing ones are zero, so that all batches have one shape."""
    if mesh is None:
        return next(taus)[None]
    # One after another: the device that computes them has memory for one matrix, not for one per device.
    parts = [
        jax.block_until_ready(jax.device_put(tau[None], device)) for tau, device in zip(taus, mesh.devices.flat, strict=False)
    ]
    parts += [jnp.zeros((1, *shape), jnp.float32, device=device) for device in mesh.devices.flat[len(parts) :]]
    spread = NamedSharding(mesh, P(mesh.axis_names))
    return jax.make_array_from_single_device_arrays((mesh.size, *shape), spread, parts)


def sketch(base: Params, experts: Sequence[Params | Adapter], path: str) -> Sketch:
    """The fingerprint of a leaf's task vectors. Rows are summed in float32, everything else in float64.

    Args:
        base: weights θ_base.
        experts: one per task.
        path: the path of the leaf.
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
            scale, squares, rows = (to_host(x).astype(np.float64) for x in sums)
            energies[(k, *i)] = scale**2 * squares.sum()
            projections[(k, *i)] = scale * np.sum(u * rows, axis=0)
    return Sketch(energies, projections)


@functools.partial(jax.jit, static_argnames="weights")
def _row_sums(
    base: Array, change: LowRank | Array | None, at: tuple[Int[Array, ""], ...], weights: bool, v: Array
) -> tuple[Array, Array, Array]:
    """The largest |τ|; the sum of squares of every row of τ divided by it; and the products of these rows with v."""
    tau = change_at(base, change, at, weights)
    # scaled, so that the squares of a small task vector do not underflow
    scale = jnp.max(jnp.abs(tau))
    tau = tau / jnp.where(scale > 0, scale, 1.0)
    return scale, jnp.sum(jnp.square(tau), axis=-1), jnp.matmul(tau, v, precision=HIGHEST)


def low_rank_bases(base: Params, experts: Sequence[Params | Adapter], paths: Sequence[str]) -> Iterator[tuple[str, Basis]]:
    """Decomposes low-rank updates; no array of a leaf's size is created.

    Args:
        base: weights θ_base.
        experts: one per task.
        paths: the paths of leaves that are only changed by low-rank updates.

    Yields:
        The path and the basis. Its rank is the largest among the experts; directions that an expert lacks are zero.

    Raises:
        InputError: an update has no decomposition, because its factors or their product are not finite. Inside ``jax.jit``
            values can't be checked; the factors are NaN instead.
    """
    leaves = dict(tree_paths(base))

    def padded(factors: Factors, rank: int) -> Factors:
        def pad(x: AnyArray, axis: int) -> Array:
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
                    f"expected a low-rank update of {path!r} with a finite float32 product, got NaN or infinity in expert {k}; "
                    "correct the adapter"
                )
        rank = max(f.s.shape[-1] for f in factors)
        yield path, basis_of([padded(f, rank) for f in factors])


@functools.partial(jax.jit, static_argnames="weights")
def _leading(
    base: Array, change: LowRank | Array | None, at: tuple[Int[Array, ""], ...], weights: bool, u: Array, v: Array
) -> Array:
    """u_1ᵀ τ v_1 of one matrix of a leaf; ``u`` and ``v`` have the leading directions of all its matrices."""
    tau = change_at(base, change, at, weights)
    return jnp.einsum("m,mn,n->", u[at], tau, v[at], precision=HIGHEST)


def check_bases(
    bases: Mapping[str, Basis], base: Params, experts: Sequence[Params | Adapter], wanted: Sequence[str], rank: int | None
) -> None:
    """Checks that bases belong to these leaves, this rank and these experts: s_1 must be u_1ᵀ τ v_1 of every matrix.

    Args:
        bases: the bases to check.
        base: weights θ_base.
        experts: one per task.
        wanted: the paths of the leaves.
        rank: directions kept; None keeps all.

    Raises:
        InputError: they do not.
    """
    leaves = dict(tree_paths(base))
    if bases.keys() != set(wanted):
        odd = sorted(bases.keys() ^ set(wanted))[0]
        raise InputError(
            f"expected bases of the leaves that these experts change, got a difference at {odd!r}; decompose these experts"
        )
    for path, basis in bases.items():
        expected = basis_shapes(leaves[path].shape, len(experts), rank)
        r = expected[1][-1]
        if tuple(tuple(x.shape) for x in basis) != expected or {np.dtype(x.dtype) for x in basis} != {np.dtype(np.float32)}:
            raise InputError(
                f"expected float32 factors of shapes {list(expected)} for {len(experts)} experts at rank {r} in the basis of "
                f"{path!r}, got {[tuple(x.shape) for x in basis]} in {basis.u.dtype}, {basis.s.dtype} and {basis.vt.dtype}; "
                "decompose these experts"
            )
        for k, (change, whole) in enumerate(changes_of(path, experts)):
            u, s, vt = basis.of(k)
            largest = to_host(s[..., 0])
            # One matrix at a time, because the task vectors of a leaf may not fit. Factors may be on the host, and large.
            leaf, change, u1, v1 = jax.tree.map(jnp.asarray, (leaves[path], change, u[..., 0], vt[..., 0, :]))
            ones = [_leading(leaf, change, tuple(map(np.int32, i)), whole, u1, v1) for i in np.ndindex(largest.shape)]
            error = np.abs(to_host(jnp.stack(ones)).reshape(largest.shape) - largest)
            if not all(are_finite([u, s, vt])) or not np.all(error <= 1e-3 * largest):
                raise InputError(
                    f"expected the finite basis of expert {k} for {path!r}, got another basis; decompose these experts"
                )
