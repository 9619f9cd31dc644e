"""The arithmetic of static merges on one leaf: weighted sums with and without a vote on signs, and interpolation on a sphere.

Everything is elementwise apart from the norms of :func:`slerp_leaf`. The arithmetic is in float32, with one cast at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.select import Mask, Update, delta_of, expand, mask_of
from cycleqd_jax.types import AnyArray, Array, Float

__all__ = ["linear_leaf", "mix_leaf", "slerp_leaf"]

_COLLINEAR, _TINY = 0.9995, 1e-8  # mergekit's thresholds of SLERP


def _over(values: Float[AnyArray, "*stack"], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    return jnp.broadcast_to(expand(jnp.asarray(values, jnp.float32), len(shape)), shape)


@functools.partial(jax.jit, static_argnames=("elect", "normalize", "dtype"))
def mix_leaf(
    base: Float[AnyArray, "*shape"],
    experts: Sequence[AnyArray | Update | None],
    weights: Sequence[Float[AnyArray, "*stack"]],
    scale: Float[AnyArray, "*stack"],
    masks: Sequence[Mask | None],
    factors: Sequence[Float[AnyArray, "*stack"] | None],
    *,
    elect: bool,
    normalize: bool,
    dtype: str | None = None,
) -> Float[Array, "*shape"]:
    """θ_base + λ Σ_k w_k m_k f_k τ_k for one leaf.

    Args:
        base: the leaf of the base, ``[*stack, *tensor]``.
        experts: the leaf of every expert, or its update; None for an expert that does not change the leaf.
        weights: w_k for every tensor of the leaf.
        scale: λ for every tensor of the leaf.
        masks: m_k, the kept entries of every task vector; None keeps all.
        factors: f_k, what the kept entries are multiplied with; None is one.
        elect: keep only entries with the sign of the sum over experts (TIES); a sum of zero counts as positive.
        normalize: divide by the sum of the weights; with ``elect``, entry by entry by the sum of those that remain. A sum of
            zero counts as one.
        dtype: dtype of the result; the base's by default.
    """
    shape = tuple(base.shape)
    dtype = dtype or str(base.dtype)
    weights = [_over(weight, shape) for weight in weights]
    parts: list[tuple[Array, Array]] = []  # weighted task vector and weight of every expert that changes the leaf
    for expert, weight, mask, factor in zip(experts, weights, masks, factors, strict=True):
        if expert is None:
            continue
        delta = delta_of(base, expert)
        if mask is not None:
            delta = jnp.where(mask_of(mask, delta), delta, 0.0)
        if factor is not None:
            delta = delta * _over(factor, shape)
        parts.append((weight * delta, weight))
    zero = jnp.zeros(shape, jnp.float32)
    total = sum((part for part, _ in parts), zero)
    if elect:
        sign = jnp.where(total >= 0, 1.0, -1.0)
        agreed = [(jnp.sign(part) == sign, part, weight) for part, weight in parts]
        total = sum((jnp.where(same, part, 0.0) for same, part, _ in agreed), zero)
        divisor = sum((jnp.where(same, weight, 0.0) for same, _, weight in agreed), zero)
        divisor = jnp.where(divisor == 0, 1.0, divisor)
    else:
        divisor = sum(weights, zero)
        divisor = jnp.where(jnp.abs(divisor) < 1e-8, 1.0, divisor)
    if normalize:
        total = total / divisor
    return (jnp.asarray(base, jnp.float32) + _over(scale, shape) * total).astype(dtype)


@functools.partial(jax.jit, static_argnames=("normalize", "dtype"))
def linear_leaf(
    models: Sequence[AnyArray], weights: Sequence[Float[AnyArray, "*stack"]], *, normalize: bool, dtype: str | None = None
) -> Float[Array, "*shape"]:
    """Σ_k w_k θ_k for one leaf, divided by Σ_k w_k if ``normalize``.

    Args:
        models: the leaf of every model.
        weights: w_k for every tensor of the leaf.
        normalize: whether the weights count by their share.
        dtype: dtype of the result; that of the first model by default.
    """
    shape = tuple(models[0].shape)
    wide = [_over(weight, shape) for weight in weights]
    zero = jnp.zeros(shape, jnp.float32)
    total = sum((weight * jnp.asarray(model, jnp.float32) for weight, model in zip(wide, models, strict=True)), zero)
    return (total / sum(wide, zero) if normalize else total).astype(dtype or str(models[0].dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def slerp_leaf(
    base: Float[AnyArray, "*shape"],
    first: AnyArray | Update | None,
    second: AnyArray | Update | None,
    t: Float[AnyArray, "*stack"],
    *,
    dtype: str | None = None,
) -> Float[Array, "*shape"]:
    """Interpolates two models on the sphere, for every tensor of one leaf.

    Every tensor counts as one vector. Two vectors whose cosine is above 0.9995 in magnitude are interpolated on the line
    between them.

    Args:
        base: the leaf of the base, to which updates are added.
        first: the leaf at t = 0, or its update; None is the base.
        second: the leaf at t = 1, or its update; None is the base.
        t: the position for every tensor of the leaf.
        dtype: dtype of the result; the base's by default.
    """
    t = jnp.asarray(t, jnp.float32)
    wide = jnp.asarray(base, jnp.float32)
    axes = tuple(range(t.ndim, wide.ndim))
    ends = []
    for end in (first, second):
        update = isinstance(end, Update)
        ends.append(wide if end is None else wide + delta_of(base, end) if update else jnp.asarray(end, jnp.float32))
    norms = [jnp.sqrt(jnp.sum(jnp.square(end), axes)) for end in ends]
    a, b = (end / _over(jnp.where(norm > _TINY, norm, 1.0), wide.shape) for end, norm in zip(ends, norms, strict=True))
    cosine = jnp.clip(jnp.sum(a * b, axes), -1.0, 1.0)
    line = jnp.abs(cosine) > _COLLINEAR
    angle = jnp.arccos(jnp.where(line, 0.0, cosine))
    shares = [jnp.where(line, part, jnp.sin(part * angle) / jnp.sin(angle)) for part in (1.0 - t, t)]
    mixed = _over(shares[0], wide.shape) * ends[0] + _over(shares[1], wide.shape) * ends[1]
    return mixed.astype(dtype or str(base.dtype))
