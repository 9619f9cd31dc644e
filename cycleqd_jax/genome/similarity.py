"""Similarity of experts: the paper's measure of singular values, and the cosine of whole task vectors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.genome.basis import change_at, changes_of
from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Adapter, AnyArray, Array, Float, Int, LowRank, Params, tree_paths

__all__ = ["Similarity", "inner_products", "similarity"]

Table = list[list[float | None]]
"""A number for every pair of experts; None where one of the pair equals the base."""


class Similarity(NamedTuple):
    """The similarity of every pair of experts.

    Attributes:
        singular_values: the paper's s = mean over matrices l of cos(diag Σ_l,A, diag Σ_l,B). Matrices that one of the pair does
            not change have no cosine and are left out. It compares *spectra* only, not directions, and is high for any two
            experts.
        task_vectors: the cosine ⟨τ_A, τ_B⟩ / (‖τ_A‖ ‖τ_B‖) over the whole model.
    """

    singular_values: Table
    task_vectors: Table


def similarity(
    base: Params, experts: Sequence[Params | Adapter], singular_values: Mapping[str, Float[AnyArray, "k ..."]]
) -> Similarity:
    """The similarity of all pairs of experts.

    Args:
        base: weights θ_base.
        experts: the weights of each, or its adapter.
        singular_values: the ``s`` of the :class:`~cycleqd_jax.genome.basis.Basis` of every matrix leaf, ``[K, *stack, r]``, by
            path. For a truncated basis the cosine is that of the kept singular values.

    Returns:
        Tables ``[K][K]``.
    """
    sums, counts = np.zeros((2, len(experts), len(experts)))
    for s in singular_values.values():
        spectra = np.asarray(s, np.float64).reshape(len(experts), -1, s.shape[-1])
        norms = np.linalg.norm(spectra, axis=-1)
        unit = spectra / np.where(norms > 0, norms, 1.0)[..., None]
        sums += np.einsum("alr,blr->ab", unit, unit)
        counts += np.einsum("al,bl->ab", norms > 0, norms > 0, dtype=np.float64)
    products = inner_products(base, experts)
    norms = np.sqrt(np.diag(products))
    return Similarity(_quotients(sums, counts), _quotients(products, np.outer(norms, norms)))


def _quotients(above: np.ndarray, below: np.ndarray) -> Table:
    pairs = [list(zip(*rows, strict=True)) for rows in zip(above.tolist(), below.tolist(), strict=True)]
    return [[min(1.0, max(-1.0, a / b)) if b > 0 else None for a, b in row] for row in pairs]


def inner_products(base: Params, experts: Sequence[Params | Adapter]) -> Float[np.ndarray, "k k"]:
    """⟨τ_A, τ_B⟩ of every pair of experts over the whole model, from weights or from the factors of low-rank updates.

    Rows of matrices are summed in float32, everything else in float64. No array is larger than one matrix.

    Args:
        base: weights θ_base.
        experts: the weights of each, or its adapter.
    """
    pairs = list(itertools.combinations_with_replacement(range(len(experts)), 2))
    total = np.zeros((len(experts), len(experts)))
    for path, leaf in tree_paths(base):
        changes = changes_of(path, experts)
        for row_sums in _leaf_products(leaf, changes):
            for (a, b), sums in zip(pairs, row_sums, strict=True):
                total[a, b] += np.asarray(sums).sum(dtype=np.float64)
    return np.triu(total) + np.triu(total, 1).T


def _leaf_products(leaf: Array, changes: list[tuple[LowRank | Array | None, bool]]) -> Iterator[tuple[Array, ...]]:
    """Partial sums of the inner product of every pair."""
    low_rank = [change for change, _ in changes if change is None or isinstance(change, LowRank)]
    if all(change is None for change, _ in changes):
        return
    if len(low_rank) == len(changes):
        yield _factored(tuple(low_rank))
        return
    values, weights = zip(*changes, strict=True)
    for at in np.ndindex(*leaf.shape[:-2]):
        yield _row_sums(leaf, values, tuple(map(np.int32, at)), weights)


@functools.partial(jax.jit, static_argnames="weights")
def _row_sums(
    leaf: Array, values: tuple[LowRank | Array | None, ...], at: tuple[Int[Array, ""], ...], weights: tuple[bool, ...]
) -> tuple[Array, ...]:
    taus = [change_at(leaf, value, at, is_weights) for value, is_weights in zip(values, weights, strict=True)]
    pairs = itertools.combinations_with_replacement(taus, 2)
    return tuple(jnp.sum(jnp.atleast_1d(a * b), axis=-1) for a, b in pairs)


@jax.jit
def _factored(updates: tuple[LowRank | None, ...]) -> tuple[Array, ...]:
    """⟨A_1 B_1, A_2 B_2⟩ = Σ (A_1ᵀ A_2) ∘ (B_1 B_2ᵀ) for every matrix of the stack."""

    def product(one: LowRank | None, other: LowRank | None) -> Array:
        if one is None or other is None:
            return jnp.zeros(())
        a1, b1, a2, b2 = (jnp.asarray(x, jnp.float32) for x in (*one, *other))
        left = jnp.einsum("...mr,...ms->...rs", a1, a2, precision=HIGHEST)
        return jnp.sum(left * jnp.einsum("...rn,...sn->...rs", b1, b2, precision=HIGHEST), axis=(-2, -1))

    return tuple(product(*pair) for pair in itertools.combinations_with_replacement(updates, 2))
