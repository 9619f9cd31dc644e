"""Which entries of a task vector a merge keeps: the largest ones, without a sort, or random ones.

Every function works on one leaf. A leaf is one tensor, or a stack of tensors along its leading axes, of which every one is
treated on its own. All steps are elementwise or reductions, so a sharded leaf stays where it is.
"""

from __future__ import annotations

import functools
import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.adapter import dense_update
from cycleqd_jax.types import AnyArray, Array, ArrayLeaf, Bool, Float, InputError, LowRank, PRNGKeyArray, UInt32

__all__ = [
    "Cut",
    "Drop",
    "Mask",
    "Update",
    "check_density",
    "delta_of",
    "expand",
    "find_cut",
    "largest",
    "leaf_key",
    "mask_of",
    "norm_ratio",
]

_DIGITS = 16  # of two bits in a float32
_BITS = 2


class Update(NamedTuple):
    """What an expert adds to a leaf of the base, where it does not bring the leaf itself."""

    value: LowRank | AnyArray


class Drop(NamedTuple):
    """Which entries of a leaf are kept at random.

    Attributes:
        key: the key of the mask.
        density: the probability that an entry is kept, ``[*stack]``.
    """

    key: PRNGKeyArray
    density: Float[ArrayLeaf, "*stack"]


class Cut(NamedTuple):
    """Which entries of every tensor of a leaf are the largest in magnitude.

    An entry is kept if its magnitude is above ``magnitude``, or equal to it with a place up to ``last``. Places count the
    entries of a tensor in row-major order.

    Attributes:
        magnitude: the bits of the smallest kept magnitude as float32, ``[*stack]``.
        last: the place of the last kept entry of that magnitude, ``[*stack]``.
    """

    magnitude: UInt32[ArrayLeaf, "*stack"]
    last: UInt32[ArrayLeaf, "*stack"]


Mask = Cut | Drop | AnyArray
"""The kept entries of a leaf: the largest, random ones, or an array of bool of the leaf's shape."""


def delta_of(base: Float[AnyArray, "*shape"], expert: AnyArray | Update) -> Float[Array, "*shape"]:
    """The task vector of one leaf, in float32.

    Args:
        base: the leaf of the base.
        expert: the leaf of the expert, or its update.
    """
    if isinstance(expert, Update):
        return dense_update(expert.value)
    return jnp.asarray(expert, jnp.float32) - jnp.asarray(base, jnp.float32)


def expand(values: Array, ndim: int) -> Array:
    """Values of the tensors of a leaf, with axes of length one for the axes of a tensor.

    Args:
        values: ``[*stack]``.
        ndim: the number of axes of the leaf.
    """
    return values.reshape(*values.shape, *(1,) * (ndim - values.ndim))


def _bits(delta: Array) -> Array:
    """Magnitudes as integers of the same order."""
    return jax.lax.bitcast_convert_type(jnp.abs(delta), jnp.uint32)


def _places(shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The place of every entry in its tensor."""
    places, step = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(axes):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step)
        step *= shape[axis]
    return places


def _count(masks: list[Array], axes: tuple[int, ...]) -> list[Array]:
    """The number of entries in each of several masks, in one pass over the leaf."""
    ones = tuple(mask.astype(jnp.uint32) for mask in masks)
    zeros = tuple(jnp.zeros((), jnp.uint32) for _ in ones)
    return list(jax.lax.reduce(ones, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), axes))


@jax.jit
def find_cut(base: Float[AnyArray, "*shape"], expert: AnyArray | Update, keep: UInt32[AnyArray, "*stack"]) -> Cut:
    """Finds the ``keep`` largest entries of every task vector of a leaf.

    The magnitude of the smallest of them is found two bits at a time, from the highest: 16 passes that count. Of entries of
    exactly this magnitude the first ones are kept; their number is exact. No entry is sorted or moved.

    Args:
        base: the leaf of the base, ``[*stack, *tensor]``.
        expert: the leaf of the expert, or its update.
        keep: how many entries of every tensor to keep, at least one.
    """
    keep = jnp.asarray(keep, jnp.uint32)
    delta = delta_of(base, expert)
    bits, axes = _bits(delta), tuple(range(keep.ndim, delta.ndim))

    def digit(step: Array, found: Array) -> Array:
        shift = jnp.uint32(32 - _BITS) - jnp.uint32(_BITS) * step.astype(jnp.uint32)
        tries = [found | (jnp.uint32(value) << shift) for value in range(1, 1 << _BITS)]
        counts = _count([bits >= jnp.broadcast_to(expand(one, delta.ndim), delta.shape) for one in tries], axes)
        chosen = sum(((count >= keep).astype(jnp.uint32) for count in counts), jnp.zeros_like(found))
        return found | (chosen << shift)

    magnitude = jax.lax.fori_loop(0, _DIGITS, digit, jnp.zeros(keep.shape, jnp.uint32))
    edge = jnp.broadcast_to(expand(magnitude, delta.ndim), delta.shape)
    above, least = _count([bits > edge, bits >= edge], axes)
    # A search by place where some entries of this magnitude must go; entries that are zero may stay.
    size = math.prod(delta.shape[keep.ndim :])
    high = jnp.full(keep.shape, max(size - 1, 0), jnp.uint32)
    low = jnp.where((least > keep) & (magnitude > 0), jnp.zeros_like(high), high)

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // jnp.uint32(2)
        here = (bits == edge) & (_places(delta.shape, axes) <= jnp.broadcast_to(expand(middle, delta.ndim), delta.shape))
        enough = _count([here], axes)[0] + above >= keep
        return jnp.where(enough, low, jnp.minimum(middle + jnp.uint32(1), high)), jnp.where(enough, middle, high)

    low, high = jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (low, high))
    return Cut(magnitude, high)


def largest(delta: Float[Array, "*shape"], cut: Cut) -> Bool[Array, "*shape"]:
    """Which entries of a task vector are the largest.

    Args:
        delta: the task vector of a leaf.
        cut: what :func:`find_cut` found for it.
    """
    bits, stack = _bits(delta), jnp.asarray(cut.magnitude).ndim
    edge, last = (jnp.broadcast_to(expand(jnp.asarray(x), delta.ndim), delta.shape) for x in cut)
    return (bits > edge) | ((bits == edge) & (_places(delta.shape, tuple(range(stack, delta.ndim))) <= last))


def mask_of(mask: Mask, delta: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """The kept entries of a task vector.

    Args:
        mask: how they are chosen.
        delta: the task vector of a leaf.
    """
    if isinstance(mask, Cut):
        return largest(delta, mask)
    if isinstance(mask, Drop):
        density = jnp.broadcast_to(expand(jnp.asarray(mask.density), delta.ndim), delta.shape)
        return jax.random.uniform(mask.key, delta.shape, jnp.float32) < density
    return jnp.asarray(mask)


@functools.partial(jax.jit, static_argnames="stack")
def norm_ratio(base: Float[AnyArray, "*shape"], expert: AnyArray | Update, mask: Mask, stack: int) -> Float[Array, "*stack"]:
    """The L1 norm of every task vector divided by that of its kept entries; one where either is below 1e-7.

    Args:
        base: the leaf of the base.
        expert: the leaf of the expert, or its update.
        mask: the kept entries.
        stack: the number of leading axes that stack tensors.
    """
    delta = delta_of(base, expert)
    axes = tuple(range(stack, delta.ndim))
    before = jnp.sum(jnp.abs(delta), axes)
    after = jnp.sum(jnp.where(mask_of(mask, delta), jnp.abs(delta), 0.0), axes)
    small = (before < 1e-7) | (after < 1e-7)
    return jnp.where(small, 1.0, before / jnp.where(small, 1.0, after))


def leaf_key(key: PRNGKeyArray, path: str, expert: int) -> PRNGKeyArray:
    """The key of the random mask of one expert for one leaf. It does not depend on other leaves and experts.

    Args:
        key: the key of the merge.
        path: the path of the leaf.
        expert: the index of the expert.
    """
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(path.encode())), expert)


def check_density(density: float, where: str) -> None:
    """Checks a density.

    Raises:
        InputError: it is not above zero and at most one.
    """
    if not 0 < density <= 1:
        raise InputError(
            f"expected a density above 0 and at most 1, got {density} for {where}; choose the share of entries to keep"
        )
