"""The singular directions of all experts, laid out so that the sum over experts is one matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from cycleqd_jax.operators.adapter import dense_update
from cycleqd_jax.operators.svd import Factors, Method, factorize, factorize_low_rank
from cycleqd_jax.types import Adapter, Array, Float, LowRank, Params, tree_paths

__all__ = ["Basis", "basis_of", "dense_bases", "low_rank_bases"]


class Basis(NamedTuple):
    """U_k, s_k and V_kᵀ of the experts of one leaf; leading axes are those of the leaf.

    Attributes:
        u: ``[*stack, m, K, r]``: seen as ``[m, K r]`` it is the left side of a product.
        s: ``[K, *stack, r]``, as coefficients are kept.
        vt: ``[*stack, K, r, n]``: seen as ``[K r, n]`` its right side.
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


def basis_of(factors: Sequence[Factors]) -> Basis:
    """The basis of the factors of every expert, which have one rank."""
    return Basis(
        jnp.stack([f.u for f in factors], axis=-2),
        jnp.stack([f.s for f in factors]),
        jnp.stack([f.vt for f in factors], axis=-3),
    )


def _update(path: str, leaf: Array, expert: Params | Adapter) -> Array:
    """τ_k of one leaf, float32."""
    if isinstance(expert, Adapter):
        update = expert.updates.get(path)
        return jnp.zeros(leaf.shape, jnp.float32) if update is None else dense_update(update)
    return dict(tree_paths(expert))[path].astype(jnp.float32) - leaf.astype(jnp.float32)


def dense_bases(
    base: Params, experts: Sequence[Params | Adapter], paths: Sequence[str], rank: int | None, method: Method = "svd"
) -> Iterator[tuple[str, Basis, Float[Array, "k ..."]]]:
    """Decomposes the task vectors of leaves, one leaf of one expert at a time.

    Args:
        base: weights θ_base.
        experts: of each task.
        paths: of the leaves.
        rank: directions kept; None keeps all.
        method: see :func:`~cycleqd_jax.operators.svd.factorize`.

    Yields:
        The path, the basis, and ‖τ_k‖² of every matrix: how much of it the basis holds is ``sum(s**2) / ‖τ_k‖²``.
    """
    leaves = dict(tree_paths(base))
    for path in paths:
        factors, energies = [], []
        for expert in experts:
            tau = _update(path, leaves[path], expert)
            factors.append(factorize({path: tau}, rank, lambda *_: True, method=method)[path])
            energies.append(jnp.sum(jnp.square(tau), axis=(-2, -1)))
        yield path, basis_of(factors), jnp.stack(energies)


def low_rank_bases(base: Params, experts: Sequence[Params | Adapter], paths: Sequence[str]) -> Iterator[tuple[str, Basis]]:
    """Decomposes low-rank updates; nothing of a leaf's size is made.

    Args:
        base: weights θ_base.
        experts: of each task.
        paths: of leaves that are changed by low-rank updates alone.

    Yields:
        The path and the basis, whose rank is the largest of the experts': what an expert lacks of it is zero, and all is where
        it does not change the leaf.
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
        rank = max(f.s.shape[-1] for f in factors)
        yield path, basis_of([padded(f, rank) for f in factors])
