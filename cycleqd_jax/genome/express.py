"""From coefficients to weights: one leaf, matrix by matrix, with no temporary larger than one matrix.

On GPUs and for float32; XLA's CPU backend widens the 16-bit operands of a loop and holds them in float32 besides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Array, Float

__all__ = ["Parts", "block_shape", "express_leaf"]

_BLOCK = 1 << 24
"""Numbers of a temporary: a matrix that is larger (an embedding, a head) is made in blocks of its longer side."""


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


def express_leaf(
    parts: Parts,
    mixing: Float[Array, " k"],
    coefficients: tuple[Float[Array, "k *stack r"], ...],
    out: Array | None = None,
) -> Array:
    """θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(c_k ⊙ s_k) V_kᵀ, summed in float32 and cast once.

    Args:
        parts: of the leaf.
        mixing: a.
        coefficients: c, for every basis.
        out: an array like the leaf whose memory is written over, block by block; without, one of zeros is made first.

    Returns:
        A leaf like the base.
    """
    if not parts.bases or parts.base.size == 0:
        return _mix(parts, mixing, 0.0).astype(parts.base.dtype)
    *stack, m, n = parts.base.shape
    count = math.prod(stack)
    widths = [b.s.shape[0] * b.s.shape[-1] for b in parts.bases]
    rows, columns = (m, n) if stack else block_shape(m, n, max(widths))
    blocks = -(-m // rows) * -(-n // columns)

    def matrices(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(count, m, n)

    whole = Parts(
        matrices(parts.base),  # type: ignore[arg-type]
        tuple(map(matrices, parts.experts)),  # type: ignore[arg-type]
        tuple(map(matrices, parts.updates)),
        (),
    )
    lefts = [b.u.reshape(count, m, r) for b, r in zip(parts.bases, widths, strict=True)]
    rights = [b.vt.reshape(count, r, n) for b, r in zip(parts.bases, widths, strict=True)]
    scaled = [jnp.moveaxis(c * b.s, 0, -2) for b, c in zip(parts.bases, coefficients, strict=True)]
    scales = [scale.reshape(count, r) for scale, r in zip(scaled, widths, strict=True)]

    def write(j: Array, made: Array) -> Array:
        i, block = j // blocks, j % blocks
        # a last block that would reach too far is moved back by dynamic_slice, and makes some of its neighbour again
        row, column = (block * rows, 0) if m >= n else (0, block * columns)

        def cut(x: Array, row: Array | int, column: Array | int, rows: int, columns: int) -> Array:
            return jax.lax.dynamic_slice(x, (i, row, column), (1, rows, columns))[0]

        product = 0.0
        for left, right, scale in zip(lefts, rights, scales, strict=True):
            directions = scale.shape[-1]
            u, vt = cut(left, row, 0, rows, directions), cut(right, 0, column, directions, columns)
            diagonal = jax.lax.dynamic_index_in_dim(scale, i, keepdims=False)
            if rows <= columns:  # diag(c ⊙ s) goes to the smaller factor
                u = u * diagonal[None, :]
            else:
                vt = diagonal[:, None] * vt
            product += jnp.matmul(u, vt, precision=HIGHEST, preferred_element_type=jnp.float32)
        here = jax.tree.map(lambda x: cut(x, row, column, rows, columns), whole)
        theta = _mix(here, mixing, product).astype(parts.base.dtype)
        return jax.lax.dynamic_update_slice(made, theta[None], (i, row, column))

    made = jnp.zeros_like(parts.base) if out is None else out
    return jax.lax.fori_loop(0, count * blocks, write, made.reshape(count, m, n)).reshape(parts.base.shape)


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
    """Rows and columns of the blocks that a matrix outside of a stack is made in.

    The longer side is cut, so that what is read again for every block is the shorter factor: into the fewest parts of which
    neither the product nor its factor is larger than :data:`_BLOCK`. The last part may reach beyond the matrix.

    Args:
        m: rows of the matrix.
        n: its columns.
        width: K r, the inner dimension of the product.
    """
    long, short = max(m, n), max(min(m, n), width)
    blocks = -(-long // max(1, _BLOCK // short))
    return (-(-m // blocks), n) if m >= n else (m, -(-n // blocks))
