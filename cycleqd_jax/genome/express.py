"""From coefficients to weights: matrix by matrix, with no temporary larger than one matrix.

Factors in bfloat16 are multiplied as they are, and summed in float32: on a GPU's tensor cores that takes a tenth of the time of
float32 in full precision, on CPUs that have such instructions half of it.

One loop over the layers makes a matrix of every stacked leaf in each step. The products of a step don't wait for one another,
which XLA's CPU backend needs: it writes into an array that exists already by one thread, the others make the next product.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Array, Float

__all__ = ["Parts", "block_shape", "express_leaves"]

_BLOCK = 1 << 24
"""Numbers of a temporary: a matrix that is larger (an embedding, a head) is made in blocks of its longer side."""

_CACHED = 1 << 20
"""Numbers of a product that stays in a CPU's cache: a block may be as small where the loop over layers makes it then."""


class Parts(NamedTuple):
    """What a leaf θ is made of.

    Attributes:
        base: θ_base, ``[*shape]``.
        experts: θ_k where every expert has weights of its own here, in the base's dtype; otherwise empty.
        updates: τ_k where some expert changes all of the leaf otherwise, float32, None for those who don't; otherwise empty.
        bases: bases of the directions that coefficients act on.
    """

    base: Array
    experts: tuple[Array, ...]
    updates: tuple[Array | None, ...]
    bases: tuple[Basis, ...]


Coefficients = tuple[Float[Array, "k *stack r"], ...]


def express_leaves(
    parts: Sequence[Parts],
    mixing: Float[Array, " k"],
    coefficients: Sequence[Coefficients],
    outs: Sequence[Array | None],
) -> list[Array]:
    """θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(c_k ⊙ s_k) V_kᵀ of several leaves, summed in float32 and cast once.

    Args:
        parts: of every leaf.
        mixing: a.
        coefficients: of every leaf, c for every basis.
        outs: of every leaf, an array like it whose memory is written over, block by block; for None one of zeros is made first.

    Returns:
        Leaves like the bases.
    """
    found = [_mix(x, mixing, 0.0).astype(x.base.dtype) if not x.bases or x.base.size == 0 else None for x in parts]
    stacks = {math.prod(x.base.shape[:-2]) for x in parts if x.base.ndim > 2}
    loops: dict[int, list[int]] = {}
    for i, x in enumerate(parts):
        if found[i] is None:
            *stack, m, n = x.base.shape
            steps = math.prod(stack) if stack else _blocks(m, n, _width(x), stacks)
            loops.setdefault(steps, []).append(i)
    for steps, members in loops.items():
        leaves = [_matrices(parts[i], coefficients[i], steps) for i in members]
        outs_here = [jnp.zeros_like(parts[i].base) if (out := outs[i]) is None else out for i in members]
        made = [out.reshape(leaf.whole.base.shape) for leaf, out in zip(leaves, outs_here, strict=True)]
        for i, theta in zip(members, _fill(steps, leaves, mixing, made), strict=True):
            found[i] = theta.reshape(parts[i].base.shape)
    return found  # type: ignore[return-value]


class _Matrices(NamedTuple):
    """A leaf as matrices ``[count, m, n]``, and the size of the blocks that they are made in."""

    whole: Parts
    lefts: list[Array]
    rights: list[Array]
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


def _fill(steps: int, leaves: list[_Matrices], mixing: Array, made: list[Array]) -> list[Array]:
    """Makes a matrix, or a block of one, of every leaf in each step."""

    def loop(made: list[Array]) -> list[Array]:
        def step(j: Array, made: list[Array]) -> list[Array]:
            found = [_block(leaf, mixing, j) for leaf in leaves]
            return [jax.lax.dynamic_update_slice(x, theta, place) for x, (theta, place) in zip(made, found, strict=True)]

        return jax.lax.fori_loop(0, steps, step, made)

    def loop_with_bits(made: list[Array]) -> list[Array]:
        held = [{"whole": leaf.whole, "lefts": leaf.lefts, "rights": leaf.rights} for leaf in leaves]

        # XLA's CPU backend has no slices of bfloat16. It would widen all of an operand before the loop: the barrier keeps that
        # in the loop, where it is one with the slice. And it would widen all of the output in each step: written as integers
        # it is not, and as they turn into integers and back where they are written, nothing is copied.
        def step(j: Array, made: list[Array]) -> list[Array]:
            here, j = jax.lax.optimization_barrier((held, j))
            found = [_block(leaf._replace(**x), mixing, j) for leaf, x in zip(leaves, here, strict=True)]
            return [_write_bits(x, theta, place) for x, (theta, place) in zip(made, found, strict=True)]

        return jax.lax.fori_loop(0, steps, step, made)

    if all(x.dtype.itemsize > 2 for x in made):
        return loop(made)
    return jax.lax.platform_dependent(made, cpu=loop_with_bits, default=loop)


def _write_bits(x: Array, theta: Array, place: tuple[Any, Any, Any]) -> Array:
    if x.dtype.itemsize != 2:
        return jax.lax.dynamic_update_slice(x, theta, place)
    bits, written = (jax.lax.bitcast_convert_type(y, jnp.uint16) for y in (x, theta))
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice(bits, written, place), x.dtype)


def _block(leaf: _Matrices, mixing: Array, j: Array) -> tuple[Array, tuple[Any, Any, Any]]:
    """The j-th matrix of a stack, or block of a single one, ``[1, rows, columns]``, and where it belongs."""
    rows, columns = leaf.rows, leaf.columns
    _, m, n = leaf.whole.base.shape
    # a last block that would reach too far is moved back by dynamic_slice, and makes some of its neighbour again
    place = (j, 0, 0) if (rows, columns) == (m, n) else (0, j * rows, 0) if m >= n else (0, 0, j * columns)
    i, row, column = place

    def cut(x: Array, row: Array | int, column: Array | int, rows: int, columns: int) -> Array:
        return jax.lax.dynamic_slice(x, (i, row, column), (1, rows, columns))[0]

    product = 0.0
    for left, right, scale in zip(leaf.lefts, leaf.rights, leaf.scales, strict=True):
        directions = scale.shape[-1]
        u, vt = cut(left, row, 0, rows, directions), cut(right, 0, column, directions, columns)
        diagonal = jax.lax.dynamic_index_in_dim(scale, i, keepdims=False)
        if u.dtype != jnp.float32:  # always the same factor is rounded, whatever part of the matrix is made here
            u = (u * diagonal[None, :]).astype(u.dtype)
        elif rows <= columns:  # diag(c ⊙ s) goes to the smaller factor
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
    """Rows and columns of the largest blocks that a matrix outside of a stack is made in.

    The longer side is cut, so that what is read again for every block is the shorter factor: into the fewest parts of which
    neither the product nor its factor is larger than :data:`_BLOCK`. The last part may reach beyond the matrix.

    Args:
        m: rows of the matrix.
        n: its columns.
        width: K r, the inner dimension of the product.
    """
    return _cut(m, n, _blocks(m, n, width))


def _blocks(m: int, n: int, width: int, loops: Collection[int] = ()) -> int:
    """The fewest blocks, or as many as a loop has steps where that makes them small, and less is read again than made."""
    long, short = max(m, n), max(min(m, n), width)
    fewest = -(-long // max(1, _BLOCK // short))
    fitting = (steps for steps in loops if fewest <= steps <= long // width and m * n <= steps * _CACHED)
    return min(fitting, default=fewest)


def _cut(m: int, n: int, blocks: int) -> tuple[int, int]:
    return (-(-m // blocks), n) if m >= n else (m, -(-n // blocks))
