"""From coefficients to weights, matrix by matrix: no temporary array is larger than one matrix.

Factors in bfloat16 are multiplied without conversion and summed in float32. On a GPU's tensor cores that takes a tenth of the
time of full-precision float32, and half of it on CPUs with bfloat16 instructions.

One loop over the layers computes a matrix of every stacked leaf in each step. The products of a step are independent, because
XLA's CPU backend updates an existing array in one thread: the other threads can compute the next product meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import AnyArray, Array, Float, Int, MixedMatrix

__all__ = ["Coefficients", "Parts", "block_shape", "express_leaves", "mixed_leaf"]

_BLOCK = 1 << 24
"""The most elements of a temporary: a larger matrix (an embedding, a head) is computed in blocks along its longer side."""

_CACHED = 1 << 20
"""Elements of a product that fits in a CPU's cache: blocks may be as small as this to fit the loop over layers."""


class Parts(NamedTuple):
    """The arrays from which a leaf θ is computed.

    Attributes:
        base: θ_base, ``[*shape]``.
        experts: θ_k in the base's dtype if every expert is given by weights, otherwise empty.
        updates: τ_k in float32 (None for an expert without one) if some adapter replaces the leaf as a whole, otherwise empty.
        bases: the directions that coefficients act on.
    """

    base: Array
    experts: tuple[Array, ...]
    updates: tuple[Array | None, ...]
    bases: tuple[Basis, ...]


Coefficients = tuple[Float[Array, "k ..."], ...]
"""``[K, *stack, r]`` for every basis of a leaf."""


def express_leaves(
    parts: Sequence[Parts],
    mixing: Float[Array, "k ..."],
    coefficients: Sequence[Coefficients],
    outs: Sequence[Array | None],
) -> list[Array]:
    """θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(c_k ⊙ s_k) V_kᵀ of several leaves, summed in float32 and cast once.

    Args:
        parts: the parts of every leaf.
        mixing: a, ``[K]``. For leaves without bases each a_k may also be an array that broadcasts against the leaf.
        coefficients: c, for every basis of every leaf.
        outs: for every leaf an array like it to overwrite block by block; for None, an array of zeros is created first.

    Returns:
        Leaves of the shapes and dtypes of θ_base.
    """
    # Leaves without directions are sums alone, or the base's where no expert changes them; the others are replaced below.
    found = [
        x.base if (x.bases and x.base.size) or not (x.experts or x.updates) else _mix(x, mixing, 0.0).astype(x.base.dtype)
        for x in parts
    ]
    stacks = {math.prod(x.base.shape[:-2]) for x in parts if x.base.ndim > 2}
    loops: dict[int, list[int]] = {}
    for i, x in enumerate(parts):
        if x.bases and x.base.size:
            *stack, m, n = x.base.shape
            steps = math.prod(stack) if stack else _blocks(m, n, _width(x), stacks)
            loops.setdefault(steps, []).append(i)
    for steps, members in loops.items():
        leaves = [_matrices(parts[i], coefficients[i], steps) for i in members]
        outs_here = [jnp.zeros_like(parts[i].base) if (out := outs[i]) is None else out for i in members]
        stacked = [out.reshape(leaf.whole.base.shape) for leaf, out in zip(leaves, outs_here, strict=True)]
        for i, theta in zip(members, _fill(steps, leaves, mixing, stacked), strict=True):
            found[i] = theta.reshape(parts[i].base.shape)
    return found


def mixed_leaf(
    leaf: Array, bases: Sequence[Basis], coefficients: Sequence[Float[Array, "individual k layer r"]]
) -> Array | MixedMatrix:
    """A leaf of several individuals that share its base; low-rank updates are not multiplied out.

    Args:
        leaf: θ_base, ``[layer, m, n]`` where there are bases.
        bases: the experts' low-rank changes.
        coefficients: c of every individual, for each basis.

    Returns:
        ``leaf`` itself if there is no basis.
    """
    if not bases:
        return leaf

    def flat(basis: Basis, c: Array) -> tuple[AnyArray, AnyArray, Array]:
        (layers, m), n = basis.u.shape[:2], basis.vt.shape[-1]
        scaled = jnp.moveaxis(c * basis.s[None], 2, 0)  # [layer, individual, K, r]
        return basis.u.reshape(layers, m, -1), basis.vt.reshape(layers, -1, n), scaled.reshape(*scaled.shape[:2], -1)

    u, vt, c = zip(*(flat(basis, c) for basis, c in zip(bases, coefficients, strict=True)), strict=True)
    return MixedMatrix(leaf, jnp.concatenate(u, 2), jnp.concatenate(vt, 1), jnp.concatenate(c, 2))


_Step = int | Int[Array, ""]


class _Matrices(NamedTuple):
    """A leaf as matrices ``[count, m, n]``, and the size of the blocks in which they are computed."""

    whole: Parts
    lefts: list[AnyArray]
    rights: list[AnyArray]
    scales: list[Array]
    rows: int
    columns: int


def _width(parts: Parts) -> int:
    return max(b.s.shape[0] * b.s.shape[-1] for b in parts.bases)


def _matrices(parts: Parts, coefficients: Coefficients, steps: int) -> _Matrices:
    *stack, m, n = parts.base.shape
    count = math.prod(stack)
    whole = jax.tree.map(lambda x: x.reshape(count, m, n), parts._replace(bases=()))
    scaled = [jnp.moveaxis(c * b.s, 0, -2) for b, c in zip(parts.bases, coefficients, strict=True)]
    widths = [b.s.shape[0] * b.s.shape[-1] for b in parts.bases]
    return _Matrices(
        whole,
        [b.u.reshape(count, m, r) for b, r in zip(parts.bases, widths, strict=True)],
        [b.vt.reshape(count, r, n) for b, r in zip(parts.bases, widths, strict=True)],
        [scale.reshape(count, r) for scale, r in zip(scaled, widths, strict=True)],
        *((m, n) if stack else _cut(m, n, steps)),
    )


def _fill(steps: int, leaves: list[_Matrices], mixing: Array, outs: list[Array]) -> list[Array]:
    """Computes a matrix of every leaf, or a block of one, in each step of a loop, and writes it to ``outs``."""

    def loop(outs: list[Array]) -> list[Array]:
        def step(j: _Step, outs: list[Array]) -> list[Array]:
            found = [_block(leaf, mixing, j) for leaf in leaves]
            return [jax.lax.dynamic_update_slice(x, theta, place) for x, (theta, place) in zip(outs, found, strict=True)]

        return jax.lax.fori_loop(0, steps, step, outs)

    def loop_with_bits(outs: list[Array]) -> list[Array]:
        operands = [{"whole": leaf.whole, "lefts": leaf.lefts, "rights": leaf.rights} for leaf in leaves]

        # XLA's CPU backend can't slice bfloat16. It would convert whole operands to float32 before the loop; the barrier keeps
        # the conversion in the loop, where it is fused with the slice. It would also convert the whole output in each step,
        # but not when integers are written. The casts to integers and back are fused with the write, so nothing is copied.
        def step(j: _Step, outs: list[Array]) -> list[Array]:
            here, j = jax.lax.optimization_barrier((operands, j))
            found = [_block(leaf._replace(**x), mixing, j) for leaf, x in zip(leaves, here, strict=True)]
            return [_write_bits(x, theta, *place) for x, (theta, place) in zip(outs, found, strict=True)]

        return jax.lax.fori_loop(0, steps, step, outs)

    if all(x.dtype.itemsize > 2 for x in outs):
        return loop(outs)
    return jax.lax.platform_dependent(outs, cpu=loop_with_bits, default=loop)


@jax.custom_jvp
def _write_bits(x: Array, theta: Array, *place: Any) -> Array:
    if x.dtype.itemsize != 2:
        return jax.lax.dynamic_update_slice(x, theta, place)
    bits, written = (jax.lax.bitcast_convert_type(y, jnp.uint16) for y in (x, theta))
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice(bits, written, place), x.dtype)


@_write_bits.defjvp
def _write_bits_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """Integers have no derivative: that of the values which they stand for is written as they are."""
    return _write_bits(*primals), jax.lax.dynamic_update_slice(tangents[0], tangents[1], primals[2:])


def _block(leaf: _Matrices, mixing: Array, j: _Step) -> tuple[Array, tuple[Any, Any, Any]]:
    """The j-th matrix of a stack, or block of a single matrix, ``[1, rows, columns]``, and its position."""
    rows, columns = leaf.rows, leaf.columns
    _, m, n = leaf.whole.base.shape
    # dynamic_slice moves a last block that exceeds the matrix back, so that it overlaps its neighbour
    place = (j, 0, 0) if (rows, columns) == (m, n) else (0, j * rows, 0) if m >= n else (0, 0, j * columns)
    i, row, column = place

    def cut(x: AnyArray, row: Array | int, column: Array | int, rows: int, columns: int) -> Array:
        return jax.lax.dynamic_slice(x, (i, row, column), (1, rows, columns))[0]

    product = 0.0
    for left, right, scale in zip(leaf.lefts, leaf.rights, leaf.scales, strict=True):
        directions = scale.shape[-1]
        u, vt = cut(left, row, 0, rows, directions), cut(right, 0, column, directions, columns)
        diagonal = jax.lax.dynamic_index_in_dim(scale, i, keepdims=False)
        if u.dtype != jnp.float32:  # the same factor is rounded for every block size
            u = (u.astype(jnp.float32) * diagonal[None, :]).astype(u.dtype)
        elif rows <= columns:  # diag(c ⊙ s) scales the smaller factor
            u = u * diagonal[None, :]
        else:
            vt = diagonal[:, None] * vt
        product += jnp.matmul(u, vt, precision=HIGHEST, preferred_element_type=jnp.float32)
    here = jax.tree.map(lambda x: cut(x, row, column, rows, columns), leaf.whole)
    return _mix(here, mixing, product).astype(leaf.whole.base.dtype)[None], place


def _mix(parts: Parts, mixing: Array, product: Array | float) -> Array:
    base = parts.base.astype(jnp.float32)
    total = base + product
    for k, theta in enumerate(parts.experts):
        total += mixing[k] * (theta.astype(jnp.float32) - base)
    for k, tau in enumerate(parts.updates):
        if tau is not None:
            total += mixing[k] * tau
    return total


def block_shape(m: int, n: int, width: int) -> tuple[int, int]:
    """The rows and columns of the largest blocks in which a matrix outside of a stack is computed.

    The longer side is cut, so that the shorter factor is the one read again for every block. There are as few blocks as
    possible with a product and a factor of at most :data:`_BLOCK` elements. The last block may exceed the matrix.

    Args:
        m: rows of the matrix.
        n: its columns.
        width: K r, the inner dimension of the product.
    """
    return _cut(m, n, _blocks(m, n, width))


def _blocks(m: int, n: int, width: int, loops: Collection[int] = ()) -> int:
    """The fewest blocks, or the steps of an existing loop if then blocks fit in the cache and cost few repeated reads."""
    long, short = max(m, n), max(min(m, n), width)
    fewest = -(-long // max(1, _BLOCK // short))
    fitting = (steps for steps in loops if fewest <= steps <= long // width and m * n <= steps * _CACHED)
    return min(fitting, default=fewest)


def _cut(m: int, n: int, blocks: int) -> tuple[int, int]:
    return (-(-m // blocks), n) if m >= n else (m, -(-n // blocks))
