"""Static merges of task vectors, leaf by leaf: arguments per expert and per leaf, masks, and the merge of whole trees.

One leaf is merged at a time, so memory beside inputs and output is that of one leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.operators.adapter import check_updates
from cycleqd_jax.operators.mix import mix_leaf
from cycleqd_jax.operators.select import Drop, Mask, Update, check_density, find_cut, leaf_key, norm_ratio
from cycleqd_jax.operators.svd import is_matrix, is_norm_or_bias
from cycleqd_jax.operators.task_vector import check_same_shapes
from cycleqd_jax.types import Adapter, AnyArray, Array, Float, InputError, Params, PRNGKeyArray, PyTree, tree_paths

__all__ = [
    "PerExpert",
    "Rescale",
    "by_path",
    "check_experts",
    "entries",
    "fill",
    "keep_counts",
    "leaf_of",
    "mix",
    "stack_axes",
    "value_at",
]

PerExpert = float | np.number | Float[AnyArray, ""] | Sequence[PyTree]
"""One number for all experts, or one entry for each: a number, or a tree like the base. A leaf of the tree is a number, or an
array with a number for every tensor that the base's leaf stacks."""

Rescale = Literal["none", "density", "l1"]
"""What kept entries are multiplied with: nothing, 1 / density, or the ratio of the tensor's L1 norms before and after."""


def stack_axes(path: str, leaf: AnyArray | jax.ShapeDtypeStruct) -> int:
    """The number of leading axes of a leaf that stack tensors: all except two of a matrix, all except one of others.

    A matrix of one column is one tensor too, unless the leaf is called a norm or a bias.

    Args:
        path: the path of the leaf.
        leaf: an array or ``ShapeDtypeStruct``.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import stack_axes
    >>> stack_axes("layers/attn/q", jnp.zeros((2, 8, 8))), stack_axes("layers/input_norm", jnp.zeros((2, 8)))
    (1, 1)
    """
    one_column = leaf.ndim >= 2 and leaf.shape[-1] == 1 and not is_norm_or_bias(path)
    return max(leaf.ndim - (2 if one_column or is_matrix(path, leaf) else 1), 0)


def keep_counts(density: float | np.ndarray, size: int) -> np.ndarray:
    """How many entries of a tensor are kept: the integer part of density · size, at least one.

    Args:
        density: the share of entries, for every tensor.
        size: the number of entries of a tensor.

    >>> from cycleqd_jax.operators import keep_counts
    >>> int(keep_counts(0.2, 9))
    1
    """
    return np.asarray(np.maximum((np.asarray(density, np.float64) * size).astype(np.uint32), np.uint32(1)))


def entries(values: PerExpert, count: int, what: str) -> list[PyTree]:
    """A value for every expert.

    Args:
        values: one number, or one entry for each expert.
        count: the number of experts.
        what: the name of the values, for the error.

    Raises:
        InputError: the numbers differ, or there is a mapping, such as one tree for all experts.
    """
    if isinstance(values, Mapping):
        raise InputError(
            f"expected one number, or a list with one {what} for each of {count} experts, got a mapping for the {what}; make a "
            "list with a tree like the base for each expert"
        )
    each: Any = values
    found = [each] * count if _is_number(each) else list(each)
    if len(found) != count:
        raise InputError(f"expected one {what} for each of {count} experts, got {len(found)}; correct the list")
    return found


def _is_number(value: PyTree) -> bool:
    return isinstance(value, (int, float, np.number)) or getattr(value, "ndim", None) == 0


def value_at(entry: PyTree, path: str) -> PyTree:
    """The value of one expert for one leaf.

    Args:
        entry: a number, or a tree like the base.
        path: the path of the leaf.

    Raises:
        InputError: the tree has no such leaf.
    """
    if _is_number(entry):
        return entry
    leaves = dict(tree_paths(entry))
    if path not in leaves:
        raise InputError(f"expected a number, or a tree like the base, got no value for the leaf {path!r}; add it")
    return leaves[path]


def check_experts(base: Params, experts: Sequence[Params | Adapter]) -> None:
    """Checks that there are experts, and that they match the base.

    Raises:
        InputError: there is none, or one differs from the base in its leaves or shapes.
    """
    if not experts:
        raise InputError("expected at least one expert to merge, got none; pass the experts")
    for k, expert in enumerate(experts):
        if isinstance(expert, Adapter):
            check_updates(expert, base, f"expert {k}")
        else:
            check_same_shapes(expert, base, f"expert {k}")


def leaf_of(expert: Mapping[str, AnyArray] | Adapter, path: str) -> AnyArray | Update | None:
    """One leaf of an expert, its update, or None where an adapter has none.

    Args:
        expert: an adapter, or leaves by path.
        path: the path of the leaf.
    """
    if isinstance(expert, Adapter):
        return Update(expert.updates[path]) if path in expert.updates else None
    return expert[path]


def by_path(expert: Params | Adapter) -> Mapping[str, AnyArray] | Adapter:
    """The leaves of an expert by path; an adapter has them already."""
    return expert if isinstance(expert, Adapter) else dict(tree_paths(expert))


def fill(value: PyTree, stack: tuple[int, ...]) -> Float[Array, "*stack"]:
    """A value for every tensor of a leaf, in float32."""
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), stack)


def mix(
    base: Params,
    experts: Sequence[Params | Adapter],
    *,
    weights: PerExpert,
    scale: PyTree,
    normalize: bool,
    elect: bool,
    densities: PerExpert = 1.0,
    key: PRNGKeyArray | None = None,
    masks: Sequence[PyTree] | None = None,
    rescale: Rescale = "none",
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """θ_base + λ Σ_k w_k m_k f_k τ_k, leaf by leaf; see :func:`~cycleqd_jax.operators.mix.mix_leaf`.

    Args:
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.
        weights: w_k.
        scale: λ, a number or a tree like the base.
        normalize: divide by the sum of the weights.
        elect: elect a sign for each entry, as TIES does.
        densities: the share of entries that the masks m_k keep: the largest entries, or random ones if there is a key.
        key: the key of random masks; consumed.
        masks: the masks of all experts, trees of bool like the base, instead of masks by density.
        rescale: the factors f_k of kept entries.
        stack: the number of leading axes of a leaf that stack tensors.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: see :func:`check_experts` and :func:`check_density`; or a list has another length than the experts,
            ``rescale`` is unknown, or a mask lacks a leaf or has another shape than it.
    """
    if rescale not in get_args(Rescale):
        raise InputError(f"expected rescale to be one of {', '.join(get_args(Rescale))}, got {rescale!r}; choose one of them")
    check_experts(base, experts)
    each_weight, each_density = (entries(v, len(experts), n) for v, n in ((weights, "weight"), (densities, "density")))
    given = None if masks is None else [dict(tree_paths(mask)) for mask in entries(masks, len(experts), "mask")]
    found = [by_path(expert) for expert in experts]
    leaves = []
    for path, leaf in tree_paths(base):
        depth = stack(path, leaf)
        shape, size = tuple(leaf.shape[:depth]), int(np.prod(leaf.shape[depth:]))
        parts = [leaf_of(expert, path) for expert in found]
        chosen: list[Mask | None] = []
        factors: list[Array | None] = []
        for k, part in enumerate(parts):
            density = np.broadcast_to(np.asarray(value_at(each_density[k], path), np.float64), shape)
            for value in density.flat:
                check_density(float(value), f"the leaf {path!r} of expert {k}")
            mask: Mask | None = None
            if part is not None and given is not None:
                one = given[k].get(path)
                if one is None or jnp.shape(one) != tuple(leaf.shape):
                    raise InputError(
                        f"expected a mask of shape {tuple(leaf.shape)} for the leaf {path!r} of expert {k}, got "
                        f"{'none' if one is None else jnp.shape(one)} in masks; use trees of bool like the base"
                    )
                mask = one
            elif part is not None and key is not None and density.min(initial=1) < 1:
                mask = Drop(leaf_key(key, path, k), jnp.asarray(density, jnp.float32))
            elif part is not None and key is None and density.min(initial=1) < 1:
                mask = find_cut(leaf, part, keep_counts(density, size))
            factor = None
            if mask is not None and part is not None and rescale != "none":
                factor = norm_ratio(leaf, part, mask, depth) if rescale == "l1" else jnp.asarray(1 / density, jnp.float32)
            chosen.append(mask)
            factors.append(factor)
        each = [fill(value_at(weight, path), shape) for weight in each_weight]
        total = fill(value_at(scale, path), shape)
        leaves.append(mix_leaf(leaf, parts, each, total, chosen, factors, elect=elect, normalize=normalize))
    return jax.tree.unflatten(jax.tree.structure(base), leaves)
