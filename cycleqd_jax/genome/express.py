"""From coefficients to weights: one leaf, matrix by matrix, with no temporary larger than one matrix."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Array, Float

__all__ = ["Parts", "express_leaf"]

_BLOCK = 1 << 24
"""Numbers of a temporary: a matrix that is larger (an embedding) is made in blocks of rows."""


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


def express_leaf(parts: Parts, mixing: Float[Array, " k"], coefficients: tuple[Float[Array, "k *stack r"], ...]) -> Array:
    """θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(c_k ⊙ s_k) V_kᵀ, summed in float32 and cast once.

    Args:
        parts: of the leaf.
        mixing: a.
        coefficients: c, for every basis.

    Returns:
        A leaf like the base.
    """
    if not parts.bases:
        return _mix(parts, mixing, 0.0).astype(parts.base.dtype)
    *stack, m, n = parts.base.shape
    blocks = 1 if stack else _blocks(m, n)
    rows = m // blocks
    count = math.prod(stack) * blocks

    def matrices(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(count, rows, n)

    whole = Parts(
        matrices(parts.base),  # type: ignore[arg-type]
        tuple(map(matrices, parts.experts)),  # type: ignore[arg-type]
        tuple(map(matrices, parts.updates)),
        (),
    )
    lefts = [b.u.reshape(count, rows, -1) for b in parts.bases]
    rights = [b.vt.reshape(count // blocks, -1, n) for b in parts.bases]
    scales = [
        jnp.moveaxis(c * b.s, 0, -2).reshape(count // blocks, -1, 1) for b, c in zip(parts.bases, coefficients, strict=True)
    ]

    def one(i: Array) -> Array:
        def at(i: Array, x: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

        product = 0.0
        for left, right, scale in zip(lefts, rights, scales, strict=True):
            scaled = at(i // blocks, scale) * at(i // blocks, right)  # diag(c ⊙ s) Vᵀ
            product += jnp.matmul(at(i, left), scaled, precision=HIGHEST, preferred_element_type=jnp.float32)
        return _mix(jax.tree.map(functools.partial(at, i), whole), mixing, product).astype(parts.base.dtype)

    made = one(jnp.int32(0))[None] if count == 1 else jax.lax.map(one, jnp.arange(count))
    return made.reshape(parts.base.shape)


def _mix(parts: Parts, mixing: Array, product: Array | float) -> Array:
    base = parts.base.astype(jnp.float32)
    total = base + product
    for k, theta in enumerate(parts.experts):
        total += mixing[k] * (theta.astype(jnp.float32) - base)
    for k, tau in enumerate(parts.updates):
        if tau is not None:
            total += mixing[k] * tau
    return total


def _blocks(m: int, n: int) -> int:
    """The fewest equal blocks of rows that are no larger than :data:`_BLOCK`."""
    return next(b for b in range(1, m + 1) if m % b == 0 and (m // b) * n <= max(_BLOCK, n))
