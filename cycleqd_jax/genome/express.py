"""From coefficients to weights: matrix by matrix, with no temporary larger than one matrix.

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

    def write(j: Array, made: list[Array], wholes: list[Parts]) -> list[Array]:
        pairs = [_block(leaf._replace(whole=whole), mixing, j) for leaf, whole in zip(leaves, wholes, strict=True)]
        thetas = [theta if x.dtype == theta.dtype else _bits(theta) for (theta, _), x in zip(pairs, made, strict=True)]
        return [jax.lax.dynamic_update_slice(x, theta, place) for x, theta, (_, place) in zip(made, thetas, pairs, strict=True)]

    wholes = [leaf.whole for leaf in leaves]

    def loop(made: list[Array]) -> list[Array]:
        return jax.lax.fori_loop(0, steps, lambda j, made: write(j, made, wholes), made)

    def loop_over_bits(made: list[Array]) -> list[Array]:
        # XLA's CPU backend has no slices of 16-bit floats: it would widen all of an operand before the loop, and all of the
        # output in each step (measured, a model of 135 M parameters: 4 times the time, 10 times the temporaries).
        def step(j: Array, made: list[Array]) -> list[Array]:
            held, j = jax.lax.optimization_barrier((wholes, j))
            return write(j, made, held)

        filled = jax.lax.fori_loop(0, steps, step, [_bits(x) for x in made])
        return [jax.lax.bitcast_convert_type(x, old.dtype) for x, old in zip(filled, made, strict=True)]

    if all(x.dtype.itemsize > 2 for x in made):
        return loop(made)
    return jax.lax.platform_dependent(made, cpu=loop_over_bits, default=loop)


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


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
        if rows <= columns:  # diag(c ⊙ s) goes to the smaller factor
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
